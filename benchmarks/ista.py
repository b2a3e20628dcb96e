"""ISTA on CIFAR-10 from the packaged ResNet-20: its curve beside uniform and bn_scale, and what rescaling does.

    python benchmarks/ista.py --data-root DATA --runs RUNS              # about 35 minutes on one core
    python benchmarks/ista.py --data-root DATA --runs RUNS --limit 45000 --epochs 30 --tune-epochs 10   # on a GPU

1. One run of sparse training down to --macs passes through a network at each epoch. Those nearest to 37 % and 68 %
   fewer parameters (points A and B of the paper) and to half the MACs are fine-tuned.
2. `uniform` and `bn_scale` at the MACs of each of these points, from the same weights, with the same fine-tuning.
3. Steps of sparse training at a fixed rho until 10 % and 50 % of the scales are zero, for alpha 1, 0.1 and 0.01.

An epoch is --limit images. Every network has a run directory below RUNS: the same command goes on after a kill. The
test set is read once for each network of the tables, after fine-tuning; it decides nothing.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

import sentei
from sentei.atomic import write_atomic
from sentei.data import Data, load_data
from sentei.graph import ChannelGraph
from sentei.machine import machine
from sentei.methods.common.genes import inner_groups
from sentei.methods.ista import Ista
from sentei.methods.ista.lasso import Proximal, costs_of_units, penalised
from sentei.models import build_model
from sentei.plan import Budget, Constraints
from sentei.runfiles import is_finished, read_summary
from sentei.surgery.scales import rescale
from sentei.threads import set_threads
from sentei.train import Recipe, evaluate, fit

SOURCE = "sentei:resnet20-cifar10"
POINTS = (("params", 0.63), ("macs", 0.5), ("params", 0.32))
FREE = Constraints(round_to=1, max_ratio=0.95)
PAPER = (("A", "176,596 of 281,304 (-37%)", "92.0% -> 90.9%"), ("B", "90,504 of 281,304 (-68%)", "92.0% -> 88.8%"))
"""Parameters (with moving statistics and 2x2 projections) and accuracy of Ye et al. 2018, table 2: from scratch, 80,000
steps of sparse training and 50,000 of fine-tuning at batch 125, colour augmentation, averaged weights."""


def pruned(folder: Path, model: nn.Module, data: Data, method: Any, budget: Budget, recipe: Recipe) -> dict[str, Any]:
    """The summary of a run, which is finished first if need be."""
    if not is_finished(folder):
        sentei.prune(
            model, data, method=method, budget=budget, run_dir=folder, recipe=recipe, constraints=FREE, source=SOURCE,
            distill=False, say=lambda line: print(f"  {line}", flush=True), progress=True,
        )  # fmt: skip
    return read_summary(folder)


def chosen(curve: Sequence[dict[str, Any]], full: Any) -> list[int]:
    """Numbers of the epochs whose networks come nearest to `POINTS`."""
    found = {
        min(range(len(curve)), key=lambda i: abs(curve[i][what] / getattr(full, what) - share)) + 1
        for what, share in POINTS
    }
    return sorted(n for n in found if curve[n - 1]["sparsity"] > 0)


def tuned(run: Path, number: int, data: Data, recipe: Recipe) -> dict[str, Any]:
    """A network of the curve, fine-tuned and measured; once."""
    file = run.parent / f"point-{number:02d}.json"
    if not file.exists():
        small = sentei.load(build_model(SOURCE), run / "curve" / f"{number:02d}")
        before = evaluate(small, data.val).value
        result = fit(small, data, recipe, run_dir=run.parent, name=f"point-{number:02d}")
        cost = sentei.trace(small, torch.zeros(1, *data.input_shape)).cost()
        record = {
            "before": before, "val": result.value, "test": evaluate(small, data.test).value,
            "macs": cost.macs, "params": cost.params,
        }  # fmt: skip
        write_atomic(file, json.dumps(record).encode())
    return dict(json.loads(file.read_text()))


def row(name: str, before: float, val: float, test: float, macs: int, params: int, full: Any) -> str:
    return (
        f"| {name} | {before:.2%} | {val:.2%} | {test:.2%} | {macs / 1e6:.2f} M ({macs / full.macs:.1%}) | "
        f"{params:,} ({params / full.params:.1%}) |"
    )


def curve_table(given: argparse.Namespace, model: nn.Module, data: Data, graph: ChannelGraph) -> None:
    full = graph.cost()
    tune = Recipe(epochs=given.tune_epochs, lr=0.02, limit=given.limit, seed=given.seed)
    how = Ista(sparse_epochs=given.epochs, alpha=given.alpha, growth=given.growth, sparse_lr=given.lr)
    run = given.runs / "ista"
    summary = pruned(run, model, data, how, Budget(macs=given.macs), tune)
    curve = summary["ista"]["curve"]
    print("\n| epoch | rho | loss | Lasso | zero | MACs | parameters | validation |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for i, p in enumerate(curve):
        print(
            f"| {i + 1} | {p['rho']:.3g} | {p['loss']:.3f} | {p['lasso']:.3f} | {p['sparsity']:.1%} | "
            f"{p['macs'] / full.macs:.1%} | {p['params'] / full.params:.1%} | {p['val_accuracy']:.2%} |"
        )
    print("\n| network | val before fine-tuning | val | test | MACs | parameters |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    base = summary["base"]
    size = f"{full.macs / 1e6:.2f} M | {full.params:,}"
    print(f"| original | | {base['val_accuracy']:.2%} | {base['accuracy']:.2%} | {size} |")
    ends = [(f"ista, epoch {n}", tuned(run, n, data, tune)) for n in chosen(curve, full) if n < len(curve)]
    last = summary["pruned"]
    ends.append(("ista, end", {"before": summary["after_cut"]["val_accuracy"], "val": last["val_accuracy"],
                               "test": last["accuracy"], "macs": last["macs"], "params": last["params"]}))  # fmt: skip
    for name, p in ends:
        print(row(name, p["before"], p["val"], p["test"], p["macs"], p["params"], full), flush=True)
        for method in ("uniform", "bn_scale"):
            found = pruned(
                given.runs / f"{method}-{p['macs']}", model, data, method, Budget(macs=float(p["macs"])), tune
            )
            end = found["pruned"]
            print(row(method, found["after_cut"]["val_accuracy"], end["val_accuracy"], end["accuracy"], end["macs"],
                      end["params"], full), flush=True)  # fmt: skip
    for name, params, accuracy in PAPER:
        print(f"| paper, {name} (from scratch, longer) | | | {accuracy} | | {params} |")


class Enough(Exception):
    """Sparse enough: the training stops."""


def onset(model: nn.Module, data: Data, graph: ChannelGraph, alpha: float, given: argparse.Namespace) -> dict[str, Any]:
    """Steps of sparse training at the given rho until 10 % and 50 % of the scales are zero."""
    names = inner_groups(graph)
    images = next(data.train.batches(8, limit=8))[0]
    trained = copy.deepcopy(model)
    rescale(model, graph, names, alpha, images).apply(trained)
    groups = penalised(trained, graph, names, [1] * len(names))
    prox = Proximal(graph, groups, (given.rho * costs_of_units(graph, names)).tolist(), {})
    units, found = sum(g.width for g in groups), {"alpha": alpha, "10%": None, "50%": None, "steps": 0, "zero": 0.0}

    def after_step(net: nn.Module, lr: float) -> None:
        prox(net, lr)
        zero = sum(int((g.norms(net) == 0).sum()) for g in groups) / units
        found.update(steps=prox.steps, zero=zero)
        for name, share in (("10%", 0.1), ("50%", 0.5)):
            if found[name] is None and zero >= share:
                found[name] = prox.steps
        if found["50%"] is not None or prox.steps >= given.onset_steps:
            raise Enough

    recipe = Recipe(epochs=1000, lr=given.lr, schedule="constant", warmup_epochs=0, seed=given.seed)
    with suppress(Enough):
        fit(trained, data, replace(recipe, limit=given.limit), after_step=after_step,
            plain=[s.gamma for g in groups for s in g.scales], progress=False)  # fmt: skip
    return found


def onset_table(given: argparse.Namespace, model: nn.Module, data: Data, graph: ChannelGraph) -> None:
    print(
        f"\n| alpha | steps to 10 % | steps to 50 % | zero at the end | steps |  (rho {given.rho:g}, lr {given.lr:g})"
    )
    print("| ---: | ---: | ---: | ---: | ---: |")
    for alpha in (1.0, 0.1, 0.01):
        file = given.runs / f"onset-{alpha:g}-{given.rho:g}.json"
        if not file.exists():
            write_atomic(file, json.dumps(onset(model, data, graph, alpha, given)).encode())
        r = json.loads(file.read_text())
        shown = [r["10%"] or f"> {r['steps']}", r["50%"] or f"> {r['steps']}"]
        print(f"| {alpha:g} | {shown[0]} | {shown[1]} | {r['zero']:.1%} | {r['steps']} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", help="folder that holds cifar-10-batches-py")
    parser.add_argument("--runs", type=Path, required=True, help="folder for the run directories")
    parser.add_argument("--limit", type=int, default=15000, help="training images an epoch")
    parser.add_argument("--epochs", type=int, default=20, help="epochs of sparse training, at most")
    parser.add_argument("--tune-epochs", type=int, default=3, help="epochs of fine-tuning")
    parser.add_argument("--macs", type=float, default=0.4, help="where the curve ends, share of the MACs")
    parser.add_argument("--alpha", type=float, help="rescaling of the curve's run; the method's own unless given")
    parser.add_argument("--growth", type=float, default=1.5)
    parser.add_argument("--lr", type=float, default=0.01, help="learning rate of sparse training")
    parser.add_argument("--rho", type=float, default=0.05, help="penalty of the comparison of alphas")
    parser.add_argument("--onset-steps", type=int, default=400, help="steps of that comparison, at most")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()

    set_threads()
    data = load_data("cifar10", root=given.data_root)
    model = build_model(SOURCE).eval()
    graph = sentei.trace(model, torch.zeros(1, *data.input_shape))
    curve_table(given, model, data, graph)
    onset_table(given, model, data, graph)
    where = machine(torch.device("cpu"))
    print(
        f"\n{where['cpu']}, {where['threads']} threads, torch {where['torch']}, {given.limit:,} images an epoch, "
        f"{given.tune_epochs} epochs of fine-tuning, seed {given.seed}, {datetime.date.today()}."
    )


if __name__ == "__main__":
    main()
