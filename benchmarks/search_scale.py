"""How far a width search scales: structures a minute for 1 to 1,000 workers, and what one driver can take.

    python benchmarks/search_scale.py driver      # seconds of the driver for each result, by what it does
    python benchmarks/search_scale.py tasks       # times of the tasks: ResNet-20, recalibration fitness
    python benchmarks/search_scale.py simulate    # from both: synchronous and steady-state search, 1 to 1,000 workers
    python benchmarks/search_scale.py measure     # the same by real workers, 1, 2 and 4, which sleep or --compute

`driver` and `tasks` write what they found to --found, from where the others read it. Times of tasks and of the driver
are processor seconds of one thread, so that other work on the machine does not count. Simulated workers take task times
at random from the measured ones; the driver serves one result after the other. Workers that sleep do so for the
measured times: then processes, pipes, journal and strategy are real, and more workers than processors are fair.
"""

from __future__ import annotations

import argparse
import heapq
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision

import sentei
from sentei.machine import machine
from sentei.models import build_model
from sentei.plan import Constraints
from sentei.search import (
    Colony,
    Crew,
    Job,
    Recalibrate,
    Search,
    Space,
    SteadySearch,
    Store,
    Strategy,
    budgeted,
    open_executor,
)
from sentei.search.processes import Processes
from sentei.search.testing import small_space
from sentei.train.journal import Journal

WORKERS = (1, 2, 4, 8, 16, 64, 256, 1000)
LIMITS = Constraints(max_ratio=0.9)


class Null:
    """Answers at once."""

    settings = {"fitness": "null"}

    def __call__(self, widths: np.ndarray, share: float = 1.0) -> dict[str, float]:
        return {"fitness": float(np.sin(widths * np.arange(1, len(widths) + 1)).sum())}


class Sleeper(Null):
    """Answers after one of the measured times, which depends on the structure."""

    def __init__(self, times: Sequence[float]) -> None:
        self.times = list(times)

    def __call__(self, widths: np.ndarray, share: float = 1.0) -> dict[str, float]:
        time.sleep(self.times[int(widths @ np.arange(1, len(widths) + 1)) % len(self.times)])
        return super().__call__(widths)


# -- the driver


def spaces() -> dict[str, Space]:
    found = {"6 genes": small_space(budget=True)}
    for name in ("resnet18", "resnet50"):
        model = getattr(torchvision.models, name)().eval()
        found[name] = space_of(sentei.trace(model, torch.zeros(1, 3, 224, 224)))
    return found


def space_of(graph: sentei.ChannelGraph) -> Space:
    names = [g.name for g in graph.groups if not g.frozen]
    return budgeted(graph, names, sentei.Budget(macs=0.5), LIMITS)


def spent(work: Callable[[], Any], times: int, repeats: int = 5) -> float:
    """Milliseconds of one call, the least of some repeats."""
    best = np.inf
    for _ in range(repeats):
        started = time.process_time()
        for _ in range(times):
            work()
        best = min(best, (time.process_time() - started) / times)
    return 1000 * best


def driver(found: Path) -> None:
    """What a result costs the driver, part by part, and what is left of a journal that is synced each time."""
    rows = {name: parts(space) for name, space in spaces().items()}
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(Path(folder) / "journal.jsonl")
        started = time.perf_counter()
        for i in range(200):
            journal.append({"event": "evaluation", "number": i, "widths": [64] * 40, "fitness": 0.5})
        synced = 200 / (time.perf_counter() - started)
        started = time.perf_counter()
        for i in range(2000):
            journal.append({"event": "evaluation", "number": i, "widths": [64] * 40, "fitness": 0.5}, wait=False)
        journal.sync()
        grouped = 2000 / (time.perf_counter() - started)
    write(found, driver={name: row["all"] / 1000 for name, row in rows.items()})
    print("| space | propose (ms) | note (ms) | all of it (ms) | results/s of one core | results/s by the clock |")
    print("|---|---:|---:|---:|---:|---:|")
    for name, row in rows.items():
        print(f"| {name} | {row['propose']:.2f} | {row['note']:.3f} | {row['all']:.2f} | {1000 / row['all']:,.0f} "
              f"| {row['wall']:,.0f} |")  # fmt: skip
    print(f"\nJournal alone, by the clock: {synced:,.0f} records/s synced one by one, {grouped:,.0f}/s in groups.")


def parts(space: Space) -> dict[str, float]:
    """Milliseconds to propose a structure, to note an answer, and of a whole search by its answers; and its rate."""
    rng = np.random.default_rng(0)
    widths = space.widths(space.random(rng))
    record = {"phase": "employed", "cycle": 3, "fitness": 0.912345, "error": None, "seconds": 2.345}
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Null.settings, Journal(Path(folder) / "journal.jsonl"))
        note = spent(lambda: store.add(widths, 1.0, {"number": 1234, **record, "answer": 1234, "proposed": 1298}), 200)
        store.sync()
    seconds, clock = whole(space)
    return {"propose": spent(lambda: space.random(rng), 100), "note": note, "all": 1000 * seconds, "wall": 1 / clock}


def whole(space: Space, evaluations: int = 250, repeats: int = 4) -> tuple[float, float]:
    """Seconds an answer of a whole search whose evaluator answers at once, of the processor and by the clock."""
    best, clock = np.inf, np.inf
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder, open_executor("here", Null()) as executor:
            store = Store(Null.settings, Journal(Path(folder) / "journal.jsonl"))
            search = SteadySearch(Colony(space, evaluations=evaluations), store, executor, pending=64)
            before, started = time.process_time(), time.perf_counter()
            search.run()
            best = min(best, (time.process_time() - before) / evaluations)
            clock = min(clock, (time.perf_counter() - started) / evaluations)
    return best, clock


# -- the tasks


def evaluator(images: int) -> tuple[Recalibrate, Space]:
    """ResNet-20 on noise: the time does not depend on what the images show."""
    torch.manual_seed(0)

    def batches(count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        sizes = [250] * (count // 250)
        return [(torch.randn(n, 3, 32, 32), torch.randint(10, (n,))) for n in sizes]

    data = sentei.Data.of(train=batches(images), val=batches(2 * images), test=batches(250))
    model = build_model("resnet20").eval()
    graph = sentei.trace(model, torch.zeros(1, 3, 32, 32))
    found = Recalibrate(model, graph, data, calibration_images=images, validation_images=2 * images)
    return found, space_of(graph)


def tasks(found: Path, structures: int) -> None:
    measure, space = evaluator(1000)
    rng, times = np.random.default_rng(0), []
    for _ in range(structures):
        widths = space.widths(space.random(rng))
        started = time.process_time()
        measure(widths)
        times.append(time.process_time() - started)
    write(found, tasks=times)
    print(f"{structures} structures of ResNet-20, 1,000 + 2,000 images: mean {np.mean(times):.2f} s, "
          f"{np.min(times):.2f} to {np.max(times):.2f} s of one thread")  # fmt: skip


# -- simulation


def steady_rate(workers: int, times: np.ndarray, cost: float, structures: int, rng: np.random.Generator) -> float:
    """Structures a minute where each worker gets a new one as soon as the driver has seen its last."""
    ready = [(float(t), i) for i, t in enumerate(rng.choice(times, workers))]
    heapq.heapify(ready)
    clock = 0.0
    for _ in range(structures):
        done, worker = heapq.heappop(ready)
        clock = max(clock, done) + cost
        heapq.heappush(ready, (clock + float(rng.choice(times)), worker))
    return 60 * structures / clock


def batch_rate(
    workers: int, batch: int, times: np.ndarray, cost: float, structures: int, rng: np.random.Generator
) -> float:
    """Structures a minute where a batch is proposed once the last of the one before is there."""
    clock, done = 0.0, 0
    while done < structures:
        clock += cost * batch
        free = [clock] * min(workers, batch)
        for t in rng.choice(times, batch).tolist():
            heapq.heappush(free, heapq.heappop(free) + t)
        clock, done = max(free), done + batch
    return 60 * done / clock


def simulate(found: Path) -> None:
    known = json.loads(found.read_text())
    cost = known["driver"]["resnet50"]
    for shorter in (1, 10):
        times = np.array(known["tasks"]) / shorter
        spread = f"{times.min():.2f} to {times.max():.2f}"
        print(f"\nTasks of {times.mean():.2f} s on average ({spread}), {1000 * cost:.2f} ms of the driver for each: at "
              f"most {60 / cost:,.0f} structures a minute\n")  # fmt: skip
        print("| workers | batches of 8 | batches of 64 | as many sources as workers | steady | ideal |")
        print("|---:|---:|---:|---:|---:|---:|")
        for workers in WORKERS:
            rng = np.random.default_rng(0)
            structures = max(400, 20 * workers)
            sync = [batch_rate(workers, b, times, cost, structures, rng) for b in (8, 64, max(8, workers))]
            steady = steady_rate(workers, times, cost, structures, rng)
            cells = " | ".join(f"{value:,.0f}" for value in (*sync, steady, 60 * workers / times.mean()))
            print(f"| {workers:,} | {cells} |")


# -- measurement


def measured(make: Callable[[int], Strategy], work: Any, workers: int, pending: int | None) -> float:
    """Structures a minute, once all workers have started."""
    seen: list[float] = []

    class Heard:
        def began(self, *_: Any) -> None: ...
        def told(self, *_: Any) -> None: ...
        def evaluated(self, _: Any) -> None:
            seen.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder, open_executor(Crew("process", workers), work) as executor:
        store = Store(work.settings, Journal(Path(folder) / "journal.jsonl"))
        strategy = make(workers)
        started = 0
        while started < workers:  # each is sent something until none is missing
            widths = tuple(strategy.space.full.tolist())
            list(executor.run([Job(-i, widths) for i in range(1, workers + 1)]))
            assert isinstance(executor.executor, Processes)
            started = sum(worker.ready for worker in executor.executor.crew)
        begun = time.perf_counter()
        search = (
            Search(strategy, store, executor, Heard())
            if pending is None
            else SteadySearch(strategy, store, executor, Heard(), pending=pending)
        )
        search.run()
    return 60 * len(seen) / (seen[-1] - begun)


def measure(found: Path, evaluations: int, shorter: float, computing: bool) -> None:
    known = json.loads(found.read_text())
    times, cost = np.array(known["tasks"]) / shorter, known["driver"]["resnet50"]
    computed, space = evaluator(250)
    work: Any = computed if computing else Sleeper(times)
    print(f"Workers {'compute' if computing else f'sleep, {times.mean():.2f} s on average'}; structures a minute\n")
    print("| workers | batches of 8 | simulated | steady | simulated |\n|---:|---:|---:|---:|---:|")
    for workers in (1, 2, 4):
        rng = np.random.default_rng(0)
        rates = [measured(lambda _: Colony(space, evaluations=evaluations), work, workers, pending)
                  for pending in (None, 2 * workers)]  # fmt: skip
        batches = batch_rate(workers, 8, times, cost, 400, rng)
        steady = steady_rate(workers, times, cost, 400, rng)
        told = ["-"] * 2 if computing else [f"{batches:,.0f}", f"{steady:,.0f}"]
        print(f"| {workers} | {rates[0]:,.0f} | {told[0]} | {rates[1]:,.0f} | {told[1]} |", flush=True)


def write(path: Path, **more: Any) -> None:
    known = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**known, **more}, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("what", choices=["driver", "tasks", "simulate", "measure"])
    parser.add_argument("--found", type=Path, default=Path(tempfile.gettempdir()) / "search_scale.json")
    parser.add_argument("--structures", type=int, default=24, help="tasks: structures to time; measure: evaluations")
    parser.add_argument("--shorter", type=float, default=1, help="measure: sleep for so many times less")
    parser.add_argument("--compute", action="store_true", help="measure: workers compute instead, on 750 images")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.what == "driver":
        driver(asked.found)
    elif asked.what == "tasks":
        tasks(asked.found, asked.structures)
    elif asked.what == "simulate":
        simulate(asked.found)
    else:
        measure(asked.found, asked.structures, asked.shorter, asked.compute)
    print(f"\n{machine(torch.device('cpu'))}")


if __name__ == "__main__":
    main()
