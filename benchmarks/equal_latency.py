"""Accuracy at equal measured milliseconds: a budget of latency beside a budget of MACs, MobileNetV2 on Imagenette.

    python benchmarks/equal_latency.py --data FOLDER --weights mobilenet_v2.pth --runs RUNS      # 40 minutes on a core

The network with ImageNet weights gets a new last layer of ten classes and is trained on --images. `latency`
prunes it to --latency of its milliseconds (ONNX Runtime, one thread, one image); `macs` prunes it to the share of the
MACs whose network takes just as long, found by cutting and measuring, half an interval at a time. The same method, the
same seeds and the same fine-tuning, without a teacher, for both. At the end all networks are timed side by side. A
tenth of train/ is the validation split; val/ is the test set, read once a run. Repeat the command after a kill: it goes
on where it stopped.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import sentei
from sentei.atomic import write_atomic
from sentei.data import Data, load_data
from sentei.methods.common.pruning import DEFAULT_CONSTRAINTS
from sentei.models import build_model
from sentei.plan.criteria import criterion
from sentei.runfiles import is_finished, read_summary
from sentei.speed.latency import whole_pass
from sentei.speed.timing import Timer, clock_for, measure
from sentei.threads import set_threads
from sentei.train import Recipe, fit

MODEL = "torchvision:mobilenet_v2"
RUNTIME = "onnxruntime"
HALVINGS, SECONDS = 5, 15


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train/ and val/")
    parser.add_argument("--weights", required=True, help="torchvision's MobileNet_V2 file")
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--method", default="taylor")
    parser.add_argument("--latency", type=float, default=0.5)
    parser.add_argument("--size", type=int, default=128, help="pixels")
    parser.add_argument("--epochs", type=int, default=2, help="of fine-tuning")
    parser.add_argument("--images", type=int, default=4000, help="of an epoch, also of the dense network's one")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    given = parser.parse_args()
    set_threads()
    data = load_data(f"imagefolder:{given.data}", image_size=given.size)
    torch.manual_seed(0)
    model = build_model(MODEL, num_classes=data.num_classes, weights=given.weights)
    shared = {"lr": 0.02, "batch_size": 64, "limit": given.images}
    model = fit(model, data, Recipe(epochs=1, **shared), run_dir=given.runs / "dense").model.eval()

    networks: dict[str, nn.Module] = {"dense": model}
    rows: dict[str, list[dict[str, Any]]] = {}
    for seed in given.seeds:
        recipe = Recipe(epochs=given.epochs, seed=seed, **shared)
        for kind in ("latency", "macs"):
            share = given.latency if kind == "latency" else as_fast(model, data, given)
            folder, budget = given.runs / f"{kind}-s{seed}", sentei.Budget(**{kind: share})
            rows.setdefault(kind, []).append(pruned(folder, model, data, given.method, budget, recipe))
            networks[folder.name] = sentei.load(build_model(MODEL, num_classes=data.num_classes), folder)
    print(table(rows, timed(data, networks), given))


def as_fast(model: nn.Module, data: Data, given: argparse.Namespace) -> float:
    """The share of the MACs at which the method's network takes as long as the one pruned to a share of the latency."""
    file = given.runs / "macs.json"
    if not file.exists():
        goal = read_summary(given.runs / f"latency-s{given.seeds[0]}")["latency"]["share"]
        graph = sentei.trace(model, torch.zeros(1, *data.input_shape))
        batches = data.train.batches(64, limit=2048)
        scores = criterion(given.method)(model, graph, batches=batches)
        low, high = 0.2, 0.8
        for _ in range(HALVINGS):
            share = (low + high) / 2
            budget = sentei.Budget(macs=share)
            plan = sentei.allocate(graph, budget, scores, constraints=DEFAULT_CONSTRAINTS)
            used = timed(data, {"dense": model, "small": sentei.cut(model, graph, plan)})
            taken = used["small"] / used["dense"]
            print(f"{share:.1%} of the MACs take {taken:.1%} of the time, wanted are {goal:.1%}", flush=True)
            low, high = (share, high) if taken < goal else (low, share)
        write_atomic(file, json.dumps((low + high) / 2).encode())
    return float(json.loads(file.read_text()))


def timed(data: Data, networks: dict[str, nn.Module]) -> dict[str, float]:
    """Milliseconds of each, all in every round."""
    passes = {}
    for name, network in networks.items():
        graph = sentei.trace(network, torch.zeros(1, *data.input_shape))
        passes[name] = whole_pass(network, graph, RUNTIME, 1)
    timer = Timer(passes, clock_for(passes["dense"], 1))
    measure(timer, lambda t: [t.speedup(name, "dense") for name in networks if name != "dense"], SECONDS)
    return {name: 1e3 * timer.fast(name) for name in networks}


def pruned(
    folder: Path, model: nn.Module, data: Data, method: str, budget: sentei.Budget, recipe: Recipe
) -> dict[str, Any]:
    """The summary of a run, which is finished first if need be."""
    if not is_finished(folder):
        sentei.prune(
            model, data, method=method, budget=budget, run_dir=folder, recipe=recipe, source=MODEL,
            distill=False, timing=sentei.Timing(RUNTIME), say=lambda line: print(f"  {line}", flush=True),
        )  # fmt: skip
    return read_summary(folder)


def table(rows: dict[str, list[dict[str, Any]]], ms: dict[str, float], given: argparse.Namespace) -> str:
    some = rows["latency"][0]
    base, where = some["base"], some["machine"]
    lines = [
        "| budget | ms | of the dense | MACs | parameters | val after cut | val | test |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        f"| dense | {ms['dense']:.2f} | | {base['macs'] / 1e6:.1f} M | {base['params']:,} | | "
        f"{base['val_accuracy']:.2%} | {base['accuracy']:.2%} |",
    ]
    for kind, found in rows.items():
        for seed, run in zip(given.seeds, found, strict=True):
            taken, p = ms[f"{kind}-s{seed}"], run["pruned"]
            lines.append(
                f"| {kind}, seed {seed} | {taken:.2f} | {taken / ms['dense']:.1%} | {p['macs'] / base['macs']:.1%} | "
                f"{p['params'] / base['params']:.1%} | {run['after_cut']['val_accuracy']:.2%} | "
                f"{p['val_accuracy']:.2%} | {p['accuracy']:.2%} |"
            )
    means = {kind: np.mean([run["pruned"]["accuracy"] for run in found]) for kind, found in rows.items()}
    gain = 100 * (means["latency"] - means["macs"])
    lines.append(f"\nlatency - macs: {gain:+.2f} points on the test set, on average")
    lines.append(
        f"{MODEL} at {given.size} pixels, {given.method}, {given.epochs} epochs of {given.images:,} images, {RUNTIME}, "
        f"one thread; {where['cpu']}, torch {where['torch']}"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
