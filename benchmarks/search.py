"""What a width search costs, and how well its strategies search.

    python benchmarks/search.py speed --data-root DATA    # structures a minute, ResNet-20 at half its MACs
    python benchmarks/search.py moves                     # strategies on a fitness with a known optimum
    python benchmarks/search.py starts --data-root DATA --out starts.jsonl    # begun at random, or where rankings lead

speed: recalibration fitness, 1,000 recalibration and 2,000 validation images, in this process with all threads and in
worker processes with their share of them. moves: the 27 inner widths of ResNet-56 at half its MACs; the fitness is 1 at
a random optimum and falls with the distance; 200 evaluations, seeds 0 to 9, about two minutes. starts: the bees with
recalibration fitness, 100 structures from each beginning for each seed; a finished search is a line of --out and is not
made again.
"""

from __future__ import annotations

import argparse
import datetime
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

import sentei
from sentei.data import load_data
from sentei.machine import machine
from sentei.methods.common.genes import inner_groups
from sentei.methods.common.searching import RANKINGS
from sentei.methods.common.starts import starting_points
from sentei.models import build_model
from sentei.plan import Constraints, criterion
from sentei.search import (
    Colony,
    Evolution,
    Job,
    RandomSearch,
    Recalibrate,
    Search,
    Space,
    Store,
    Strategy,
    budgeted,
    open_executor,
)
from sentei.search.jobs import Where
from sentei.search.testing import Synthetic, play
from sentei.threads import available_cpus, set_threads

LIMITS = Constraints(max_ratio=0.9)


def speed(data_root: Path | None, name: str, structures: int) -> None:
    data = load_data("cifar10", root=data_root)
    model = build_model(name).eval()
    graph = sentei.trace(model, torch.zeros(1, *data.input_shape))
    names = [g.name for g in graph.groups if not g.frozen]
    space = budgeted(graph, names, sentei.Budget(macs=0.5), LIMITS)
    rng = np.random.default_rng(0)
    jobs = [Job(i, tuple(space.widths(space.random(rng)).tolist())) for i in range(structures)]
    evaluator = Recalibrate(model, graph, data)
    cpus = available_cpus()
    print("| where | workers | threads each | structures a minute |\n|---|---:|---:|---:|")
    places: list[tuple[Where, int]] = [("here", 1), ("process", cpus)]
    for where, workers in places:
        threads = torch.get_num_threads() if where == "here" else max(1, cpus // workers)
        print(f"| {where} | {workers} | {threads} | {rate(where, workers, evaluator, jobs):.0f} |", flush=True)
    print(f"\n{name}, {structures} structures, seed 0, {provenance()}")


def rate(where: Where, workers: int, evaluator: Recalibrate, jobs: list[Job]) -> float:
    """Structures a minute, after one for each worker that does not count."""
    with open_executor(where, evaluator, workers) as executor:
        list(executor.run(jobs[:workers]))
        started = time.perf_counter()
        found = list(executor.run(jobs[workers:]))
        return 60 * len(found) / (time.perf_counter() - started)


def moves(evaluations: int = 200, seeds: int = 10) -> None:
    graph = sentei.trace(build_model("resnet56"), torch.zeros(1, 3, 32, 32))
    space = budgeted(graph, inner_groups(graph), sentei.Budget(macs=0.5), LIMITS)
    paper = {"moved": 1.0, "guide": 0.0}
    strategies: dict[str, Callable[[Space, int], Strategy]] = {
        "random search": lambda s, i: RandomSearch(s, seed=i, evaluations=evaluations),
        "evolution": lambda s, i: Evolution(s, seed=i, evaluations=evaluations),
        "bees, all genes move": lambda s, i: Colony(s, seed=i, evaluations=evaluations, **paper),
        "bees, half of the genes move": lambda s, i: Colony(s, seed=i, evaluations=evaluations, guide=0.0),
        "bees, half of the genes, guided (default)": lambda s, i: Colony(s, seed=i, evaluations=evaluations),
    }
    print("| strategy | mean best fitness | lowest | highest |\n|---|---:|---:|---:|")
    for name, make in strategies.items():
        best = []
        for seed in range(seeds):
            strategy = make(space, seed)
            play(strategy, Synthetic(space, space.random(np.random.default_rng(1000 + seed))), 10**6)
            best.append(strategy.best_fitness)
        print(f"| {name} | {np.mean(best):.3f} | {min(best):.3f} | {max(best):.3f} |", flush=True)
    print(f"\n{len(space)} genes, {evaluations} evaluations, seeds 0 to {seeds - 1}, {datetime.date.today()}.")


def starts(data_root: Path | None, name: str, out: Path, seeds: int, evaluations: int = 100) -> None:
    data = load_data("cifar10", root=data_root)
    model = build_model(name).eval()
    graph, budget = sentei.trace(model, torch.zeros(1, *data.input_shape)), sentei.Budget(macs=0.5)
    limits = Constraints(round_to=1, max_ratio=0.9)
    space = budgeted(graph, [g.name for g in graph.groups if not g.frozen], budget, limits)
    evaluator = Recalibrate(model, graph, data)
    scores = [criterion(n)(model, graph, batches=data.train.batches(64, limit=2048)) for n in RANKINGS]
    where = starting_points(space, graph, budget, limits, scores)
    print("Where rankings lead: " + ", ".join(f"{evaluator(space.widths(s))['fitness']:.2%}" for s in where) + "\n")
    rows = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    for seed in range(seeds):
        for warm in (True, False):
            if any((row["seed"], row["warm"]) == (seed, warm) for row in rows):
                continue
            strategy = Colony(space, seed=seed, evaluations=evaluations)
            strategy.begin_with(where if warm else ())
            with open_executor("here", evaluator) as executor:
                found = Search(strategy, Store({"fitness": "recalibrate"}, None), executor).run()
            rows.append({"seed": seed, "warm": warm, "curve": found.report["curve"]})
            with out.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
    after = (10, 20, 50, 100)
    print("| seed | begun | " + " | ".join(f"best of {n}" for n in after) + " |\n|---|---|" + "---:|" * len(after))
    for row in sorted(rows, key=lambda row: (row["seed"], row["warm"])):
        best = [max(value for count, value in row["curve"] if count <= n) for n in after]
        begun = "where rankings lead" if row["warm"] else "at random"
        print(f"| {row['seed']} | {begun} | " + " | ".join(f"{value:.2%}" for value in best) + " |")
    print(f"\n{name}, {len(space)} genes, {provenance()}")


def provenance() -> str:
    about = machine(torch.device("cpu"))
    return f"{about['cpu']}, {available_cpus()} cores, torch {about['torch']}, {datetime.date.today()}."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["speed", "moves", "starts"])
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--model", default="sentei:resnet20-cifar10")
    parser.add_argument("--structures", type=int, default=60)
    parser.add_argument("--out", type=Path, default=Path("starts.jsonl"))
    parser.add_argument("--seeds", type=int, default=4)
    given = parser.parse_args()
    set_threads()
    if given.part == "speed":
        speed(given.data_root, given.model, given.structures)
    elif given.part == "starts":
        starts(given.data_root, given.model, given.out, given.seeds)
    else:
        moves()


if __name__ == "__main__":
    main()
