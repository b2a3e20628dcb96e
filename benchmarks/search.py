"""How many structures a minute a search evaluates: ResNet-20, 1,000 recalibration and 2,000 validation images.

    python benchmarks/search.py --data-root DATA

In this process with all threads, and in worker processes with their share of them. Random structures at half the MACs,
the first one not counted.
"""

from __future__ import annotations

import argparse
import datetime
import time
from pathlib import Path

import numpy as np
import torch

import sentei
from sentei.methods.summary import machine
from sentei.models import build_model
from sentei.plan import Constraints
from sentei.search import Job, Recalibrate, budgeted, open_executor
from sentei.search.executors import Where
from sentei.train import load_data
from sentei.train.threads import available_cpus, set_threads


def rate(where: Where, workers: int, evaluator: Recalibrate, jobs: list[Job]) -> tuple[float, float]:
    """Structures a minute, and the best fitness among them."""
    with open_executor(where, evaluator, workers) as executor:
        list(executor.run(jobs[:workers]))
        started = time.perf_counter()
        found = list(executor.run(jobs[workers:]))
        minutes = (time.perf_counter() - started) / 60
    return len(found) / minutes, max(o.result["fitness"] for o in found if o.result)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--model", default="sentei:resnet20-cifar10")
    parser.add_argument("--structures", type=int, default=60)
    given = parser.parse_args()

    set_threads()
    data = load_data("cifar10", root=given.data_root)
    model = build_model(given.model).eval().to(memory_format=torch.channels_last)
    graph = sentei.trace(model, torch.zeros(1, *data.input_shape))
    names = [g.name for g in graph.groups if not g.frozen]
    space = budgeted(graph, names, sentei.Budget(macs=0.5), Constraints(max_ratio=0.9))
    rng = np.random.default_rng(0)
    widths = [space.widths(space.random(rng)) for _ in range(given.structures)]
    jobs = [Job(i, tuple(w.tolist())) for i, w in enumerate(widths)]
    evaluator = Recalibrate(model, graph, data)
    cpus = available_cpus()
    print("| where | workers | threads each | structures a minute |\n|---|---:|---:|---:|")
    places: list[tuple[Where, int]] = [("here", 1), ("process", 1), *([("process", cpus)] if cpus > 1 else [])]
    for where, workers in places:
        found, _ = rate(where, workers, evaluator, jobs)
        threads = torch.get_num_threads() if where == "here" else cpus // workers
        print(f"| {where} | {workers} | {threads} | {found:.0f} |", flush=True)
    about = machine(data.device)
    where_and_when = f"{about['cpu']}, {cpus} cores, torch {about['torch']}, {datetime.date.today()}"
    print(f"\n{given.model}, {given.structures} structures, seed 0, {where_and_when}.")


if __name__ == "__main__":
    main()
