"""Peak memory and time of a training step, with and without what saves memory: ResNet-50 and ResNet-101 at 224 pixels.

    python benchmarks/memory.py --out memory.jsonl                 # about half an hour on two cores; resumable
    python benchmarks/memory.py --out memory.jsonl --table         # Markdown, of what is there

train      a step of `sentei.train.fit`, SGD with momentum
ista       the same with the proximal step of `sentei.Sparsifier`
supernet   a step of the stage-wise supernet: full network, narrowest and one random one
evaluate   the metric on 500 images
Each is a process of its own: two steps on batches of random images, random weights. The peak is the largest
resident size during the steps less that before the first, when the network is there; the time is that of the second
step, for evaluate that of all images. "told" is what sentei reckons with before it starts, less the network itself:
gradients, momentum and activations (for the supernet and to evaluate activations alone).
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import re
import subprocess
import sys
import time
from itertools import product
from pathlib import Path
from typing import Any

NETWORKS = ("resnet50", "resnet101")
PHASES = ("train", "ista", "supernet", "evaluate")
SAVING: dict[str, dict[str, Any]] = {
    "nothing": {},
    "half": {"memory": 0.5},
    "recompute": {"recompute": True},
}
"""Nothing; half of what is told without it; blocks computed again."""
MB = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measured(*given.one, given.batch, rows(given.out))))
    elif given.table:
        print(table(rows(given.out)))
    else:
        run(given.out, given.batch)


def run(out: Path, batch: int) -> None:
    for network, phase, saving in product(NETWORKS, PHASES, SAVING):
        done = [(r["network"], r["phase"], r["saving"]) for r in rows(out)]
        if (network, phase, saving) in done or (saving == "recompute" and phase in ("supernet", "evaluate")):
            continue
        again = [sys.executable, __file__, "--out", str(out), "--batch", str(batch), "--one", network, phase, saving]
        answer = subprocess.run(again, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1]
        with open(out, "a") as file:
            file.write(answer + "\n")
        print(answer, flush=True)


def rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []


# -- in the process of one measurement


def measured(network: str, phase: str, saving: str, batch: int, known: list[dict[str, Any]]) -> dict[str, Any]:
    import torch

    from sentei.machine import machine

    torch.manual_seed(0)
    images = [(torch.randn(batch, 3, 224, 224), torch.randint(0, 1000, (batch,))) for _ in range(2)]
    limit = None
    if "memory" in SAVING[saving]:
        plain = next(r for r in known if (r["network"], r["phase"], r["saving"]) == (network, phase, "nothing"))
        limit = round(plain["told_mb"] * SAVING[saving]["memory"]) + plain["network_mb"]
    step, told, size = PREPARED[phase](network, images, limit, "recompute" in SAVING[saving])
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what building has freed is given back
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts over
    seconds = step()
    return {
        "network": network, "phase": phase, "saving": saving, "batch": batch, "limit_mb": limit,
        "told_mb": round(told), "network_mb": round(size),
        "peak_mb": round((resident("VmHWM") - before) / MB), "seconds": round(seconds, 2),
        "machine": machine(torch.device("cpu")), "threads": torch.get_num_threads(),
    }  # fmt: skip


def resident(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024


def prepared(network: str, images: list[Any], **recipe: Any) -> Any:
    """A run of the method `stagewise` on these images, up to where its training begins; its base is the network."""
    import sentei
    from sentei.methods.prune import prepared as made
    from sentei.models import build_model
    from sentei.train import Recipe

    model = build_model(f"torchvision:{network}")
    data = sentei.Data.of(images, images, example=images[0][0][:1])
    how = Recipe(epochs=1, warmup_epochs=0, bf16=False, batch_size=len(images[0][0]), **recipe)
    pruning, method = made(model, data, method="stagewise", recipe=how, memory_mb=10**6)
    pruning.graph = pruning.trace()
    return pruning, method


def train(network: str, images: list[Any], limit: int | None, again: bool, sparse: bool = False) -> Any:
    from sentei.methods.ista.sparsifier import Sparsifier
    from sentei.train import fit
    from sentei.train.memory import MB as UNIT
    from sentei.train.memory import memory_of

    pruning, _ = prepared(network, images, train_memory_mb=limit, recompute=again)
    model, after = pruning.base, None
    if sparse:
        sparsifier = Sparsifier(model, pruning.graph, images[0][0][:2], rho=1e-4, lr=0.01, steps=2)
        model, after = sparsifier.model, lambda trained, lr: sparsifier.step(lr)
    few = (images[0][0][:2], images[0][1][:2])
    memory = memory_of(model, few, pruning.task, pruning.recipe)
    size = sum(t.numel() * t.element_size() for t in model.state_dict().values()) / UNIT
    pieces = 1 if limit is None else memory.pieces(len(images[0][0]), limit)
    told = memory.bytes(-(-len(images[0][0]) // pieces)) / UNIT - size
    how = {"progress": False}
    return timed(lambda note: fit(model, pruning.data, pruning.recipe, after_step=note(after), **how)), told, size


def supernet(network: str, images: list[Any], limit: int | None, again: bool) -> Any:
    from dataclasses import replace

    from sentei.supernet.stages import find_stages
    from sentei.supernet.training import SupernetLoss
    from sentei.train import fit
    from sentei.train.memory import training_bytes

    pruning, method = prepared(network, images)
    method = replace(method, memory_mb=limit or method.memory_mb)
    net = method.sorted_net(pruning, find_stages(pruning.base, pruning.graph, ()), pruning.base)
    chunk = method.chunk(pruning, net)
    few = (images[0][0][:2], images[0][1][:2])
    told = chunk * (training_bytes(net.model, few, pruning.task) + net.stages.feature_bytes()) / MB
    objective = SupernetLoss(net, method.rule, method.subnets, chunk)
    how = {"objective": objective, "progress": False}
    return timed(lambda note: fit(net.model, pruning.data, pruning.recipe, after_step=note(None), **how)), told, 0


def evaluate(network: str, images: list[Any], limit: int | None, again: bool) -> Any:
    import torch

    from sentei.data.splits import Augment, TensorSplit
    from sentei.tasks import Classification
    from sentei.train import evaluate
    from sentei.train.passes import at_once, bytes_of, peak_bytes

    pruning, _ = prepared(network, images)
    pixels, labels = torch.zeros(500, 224, 224, 3, dtype=torch.uint8), torch.zeros(500, dtype=torch.long)
    split = TensorSplit(pixels, labels, (0.5,) * 3, (0.5,) * 3, Augment())
    model, size, task = pruning.base.eval(), bytes_of(pruning.base) / MB, Classification()
    batch = at_once(model, split, 500, task, limit)
    told = batch * (peak_bytes(model, images[0][0][:1]) + images[0][0][0].nbytes) / MB

    def step() -> float:
        started = time.perf_counter()
        evaluate(model, split, memory_mb=limit)
        return time.perf_counter() - started

    return step, told, size


def timed(fitted: Any) -> Any:
    """What trains and returns the seconds between the two steps."""
    moments: list[float] = []

    def note(after: Any) -> Any:
        def stepped(model: Any, lr: float) -> None:
            if after is not None:
                after(model, lr)
            moments.append(time.perf_counter())

        return stepped

    def step() -> float:
        fitted(note)
        return moments[1] - moments[0]

    return step


PREPARED: dict[str, Any] = {
    "train": train,
    "ista": lambda *how: train(*how, sparse=True),
    "supernet": supernet,
    "evaluate": evaluate,
}


def table(found: list[dict[str, Any]]) -> str:
    lines = ["| network | phase | saving | told MB | peak MB | seconds a step |", "|---|---|---|--:|--:|--:|"]
    for r in found:
        saving = f"train_memory_mb={r['limit_mb']:,}" if r["limit_mb"] else r["saving"].replace("nothing", "")
        lines.append(
            f"| {r['network']} | {r['phase']} | {saving} | {r['told_mb']:,} | {r['peak_mb']:,} | {r['seconds']:.1f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
