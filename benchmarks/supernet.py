"""What a supernet costs: a training iteration against a plain one, and candidates evaluated a minute.

A supernet iteration is the full network, the narrowest and one random subnet; its time is given in plain iterations
of the full network (forward, backward, optimiser step) on the same batch. Candidates are measured with 1,000 images for
the BatchNorm statistics and 2,000 for the accuracy, and by stage distances on 500. Random weights and images: only
times count. Each figure is the median of interleaved rounds.

    python benchmarks/supernet.py                         # ResNet-20, about a minute on two cores
    python benchmarks/supernet.py resnet56 --batch 128
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

import sentei
from sentei.machine import machine
from sentei.methods.common.genes import searched_groups
from sentei.models import build_model
from sentei.plan import Constraints
from sentei.plan.criteria import l1
from sentei.supernet.proxies import StageDistances, SubnetMetric
from sentei.supernet.shares import shares
from sentei.supernet.stages import find_stages
from sentei.supernet.training import SortedNet, SupernetLoss
from sentei.threads import set_threads
from sentei.train.recipe import bf16_supported


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="*", default=["resnet20"])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--candidates", type=int, default=12)
    options = parser.parse_args()
    set_threads()
    about = machine(torch.device("cpu"))
    print(f"{about['cpu']}, {about['threads']} threads, torch {about['torch']}, batch {options.batch}, seed 0\n")
    print("| model | plain iteration | stagewise | sandwich | random-path | accuracies a minute | distances a minute |")
    print("|---|---|---|---|---|---|---|")
    for name in options.models:
        print(row(name, options), flush=True)


def row(name: str, options: argparse.Namespace) -> str:
    torch.manual_seed(0)
    model = build_model(name).to(memory_format=torch.channels_last)
    graph = sentei.trace(model, torch.zeros(1, 3, options.size, options.size))
    stages = find_stages(model, graph)
    inside = [graph.groups[g].name for part in stages.inside for g in part]
    inner = [name for name in searched_groups(graph, "inner") if name in inside]
    net = SortedNet.of(model, graph, stages, shares(graph, inner, Constraints(max_ratio=0.9)), l1(model, graph))
    x = torch.randn(options.batch, 3, options.size, options.size).to(memory_format=torch.channels_last)
    y = torch.arange(options.batch) % 10
    steps: dict[str, Callable[[], None]] = {"plain": lambda: plain(net.model, x, y)}
    for rule in ("stagewise", "sandwich", "random-path"):
        objective = SupernetLoss(net, rule)  # type: ignore[arg-type]
        steps[rule] = lambda objective=objective: supernet(net.model, objective, x, y)  # type: ignore[misc]
    times = interleaved(steps, options.rounds)
    ratios = " | ".join(f"{times[r] / times['plain']:.2f}x" for r in ("stagewise", "sandwich", "random-path"))
    accuracy, distances = candidates(net, options)
    return f"| {name} | {times['plain'] * 1e3:.0f} ms | {ratios} | {accuracy:.0f} | {distances:.0f} |"


def plain(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
    optimizer = torch.optim.SGD(model.parameters(), 1e-4, momentum=0.9)
    model.train()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16_supported(x.device)):
        scores = model(x)
    nn.functional.cross_entropy(scores.float(), y).backward()
    optimizer.step()
    optimizer.zero_grad()


def supernet(model: nn.Module, objective: SupernetLoss, x: torch.Tensor, y: torch.Tensor) -> None:
    optimizer = torch.optim.SGD(model.parameters(), 1e-4, momentum=0.9)
    model.train()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16_supported(x.device)):
        objective(model, x, y)
    optimizer.step()
    optimizer.zero_grad()


def interleaved(steps: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Median seconds of each step; the rounds alternate, so that a busy machine slows all alike."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for i in range(rounds + 1):
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            if i:
                times[name].append(time.perf_counter() - started)
    return {name: float(np.median(t)) for name, t in times.items()}


def candidates(net: SortedNet, options: argparse.Namespace) -> tuple[float, float]:
    """Candidates a minute by accuracy and by stage distances."""
    images = torch.randn(2000, 3, options.size, options.size).to(memory_format=torch.channels_last)
    labels = torch.arange(2000) % 10
    batches = list(zip(images.split(500), labels.split(500), strict=True))
    small = list(zip(images[:1000].split(250), labels[:1000].split(250), strict=True))
    rng = np.random.default_rng(0)
    widths = [net.space.widths(net.space.random(rng)) for _ in range(options.candidates)]
    rates = []
    fast = bf16_supported(images.device)
    for proxy in (SubnetMetric(net, small, batches, fast), StageDistances(net, small[:2], bf16=fast)):
        proxy(widths[0])
        started = time.perf_counter()
        for w in widths[1:]:
            proxy(w)
        rates.append(60 * (len(widths) - 1) / (time.perf_counter() - started))
    return rates[0], rates[1]


if __name__ == "__main__":
    main()
