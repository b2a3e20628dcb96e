"""Removing channels that are constant: does the network still compute what it computed? sentei beside torch-pruning.

    python benchmarks/folding.py                      # about two minutes on one core
    python benchmarks/folding.py --models resnet18

Weights, statistics and betas are random, and every gamma of a random half of the units of each group is exactly zero,
so that these units are constant. Then they are removed:

exact          `fold`: constants moved into biases, running means and carriers
bias           `fold(mode="bias")`: into biases and running means alone, as in the ISTA paper
dropped        `cut` without folding: the constants are lost
torch-pruning  `BasePruner` with BNScaleImportance and pruning_ratio 0.5 within each group, which removes these units

The error is that of the cut network on other random images than were used for folding, relative to the largest output
(max) and as relative L2 norm. float32.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import sentei
from sentei.machine import machine
from sentei.models import build_model
from sentei.surgery import fold

MODELS = {
    "torchvision:resnet18": 64, "resnet20": 32, "vgg16": 32, "googlenet": 32, "densenet40": 32, "mobilenetv2": 32,
    "torchvision:efficientnet_b0": 64, "torchvision:mobilenet_v3_small": 64,
}  # fmt: skip


def silenced(name: str, size: int, seed: int) -> tuple[nn.Module, Any, dict[str, np.ndarray]]:
    """A network with constant channels, its graph, and the units that are constant."""
    torch.manual_seed(seed)
    generator, rng = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    model = build_model(name).eval()
    norms = {n: m for n, m in model.named_modules() if isinstance(m, _BatchNorm)}
    graph = sentei.trace(model, torch.zeros(1, 3, size, size))
    off = {g.name: np.sort(rng.permutation(g.width)[: g.width // 2]) for g in graph.groups if not g.frozen}
    with torch.no_grad():
        for norm in norms.values():
            norm.weight.uniform_(0.5, 1.5, generator=generator)
            norm.bias.normal_(0, 0.5, generator=generator)
            norm.running_mean.normal_(0, 0.1, generator=generator)
            norm.running_var.uniform_(0.5, 1.5, generator=generator)
        for group in graph.groups:
            for member in group.members if group.name in off else ():
                path, _, leaf = member.param.rpartition(".")
                if path in norms and leaf == "weight":
                    norms[path].weight[torch.from_numpy(member.indices[off[group.name]].ravel())] = 0
    return model, graph, off


def by_sentei(mode: str) -> Callable[..., nn.Module]:
    def removed(model: nn.Module, graph: Any, off: dict[str, np.ndarray], images: Tensor) -> nn.Module:
        if mode == "dropped":
            keep = {n: np.setdiff1d(np.arange(graph.group(n).width), units) for n, units in off.items()}
            return sentei.cut(model, graph, sentei.Plan(keep, graph.structure))
        found = fold(model, graph, images, mode=mode)  # type: ignore[arg-type]
        return sentei.cut(found.model, graph, found.plan)

    return removed


def by_torch_pruning(model: nn.Module, graph: Any, off: dict[str, np.ndarray], images: Tensor) -> nn.Module:
    import torch_pruning

    small = copy.deepcopy(model)
    heads = [m for m in small.modules() if isinstance(m, nn.Linear)]
    pruner = torch_pruning.pruner.BasePruner(
        small, images[:1], importance=torch_pruning.importance.BNScaleImportance(), pruning_ratio=0.5,
        ignored_layers=heads[-1:],
    )  # fmt: skip
    pruner.step()
    return small


WAYS: dict[str, Callable[..., nn.Module]] = {
    "exact": by_sentei("exact"), "bias": by_sentei("bias"), "dropped": by_sentei("dropped"),
    "torch-pruning": by_torch_pruning,
}  # fmt: skip


def measured(name: str, size: int, way: str, seed: int) -> str:
    model, graph, off = silenced(name, size, seed)
    images, others = torch.randn(2, 4, 3, size, size)
    started = time.perf_counter()
    try:
        small = WAYS[way](model, graph, off, images).eval()
        with torch.no_grad():
            found, expected = small(others), model(others)
    except Exception as error:
        return f"| {name} | {way} | {type(error).__name__} | | | |"
    seconds = time.perf_counter() - started
    largest = float((found - expected).abs().max() / expected.abs().max())
    norm = float((found - expected).norm() / expected.norm())
    share = sum(p.numel() for p in small.parameters()) / sum(p.numel() for p in model.parameters())
    return f"| {name} | {way} | {largest:.1e} | {norm:.1e} | {share:.1%} | {seconds:.1f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), help="zoo names or torchvision:NAME")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()

    warnings.simplefilter("ignore")
    print("| network | way | error, max | error, L2 | parameters left | seconds |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    for name in given.models:
        name = name if name in MODELS or ":" in name else f"torchvision:{name}"
        for way in given.ways:
            print(measured(name, MODELS.get(name, 224), way, given.seed), flush=True)
    where = machine(torch.device("cpu"))
    tools = f"torch {where['torch']}, torch-pruning {version('torch-pruning')}"
    print(f"\n{where['cpu']}, {where['threads']} threads, {tools}, seed {given.seed}, {datetime.date.today()}.")


if __name__ == "__main__":
    main()
