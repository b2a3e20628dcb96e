"""Stage-wise pruning of ResNet-20 on CIFAR-10 beside other methods at equal MACs.

    python benchmarks/stagewise.py --data-root DATA --out RUNS    # accuracy at 50 % and 30 % of the MACs

Every run is a run directory in RUNS: a killed script goes on where it stopped, a finished one only prints its tables.
The first stage-wise run trains the supernet, the others use it again. --limit and --epochs set the size of
everything; the defaults take about 20 minutes on one core of a 2026 server. Random seeds: --seeds 0 1 2.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

import sentei
from sentei.console import say
from sentei.data import Data, load_data
from sentei.methods.common.pruning import DEFAULT_CONSTRAINTS
from sentei.models import build_model
from sentei.plan import Budget
from sentei.runfiles import is_finished, read_summary
from sentei.threads import set_threads
from sentei.train import Recipe

METHODS = ("stagewise", "abc", "uniform", "random")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="sentei:resnet20-cifar10")
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--data-root")
    parser.add_argument("--out", type=Path, default=Path("runs/stagewise"))
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.5, 0.3])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--limit", type=int, default=20_000, help="training images an epoch, everywhere")
    parser.add_argument("--epochs", type=int, default=2, help="of fine-tuning")
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--supernet-epochs", type=int, default=3)
    parser.add_argument("--evaluations", type=int, default=200, help="structures each search measures")
    parser.add_argument("--stages", nargs="*", default=[], help="modules that end a stage")
    parser.add_argument("--round-to", type=int, default=1)
    options = parser.parse_args()
    set_threads()
    data = load_data(options.data, root=options.data_root)
    model = build_model(options.model)
    compare(model, data, options)


def compare(model: nn.Module, data: Data, options: argparse.Namespace) -> None:
    rows = []
    for seed in options.seeds:
        supernet: str | None = None
        for budget in options.budgets:
            for method in options.methods:
                folder = options.out / f"{method}-{budget:g}-seed{seed}"
                extra = dict(settings_of(method, options, supernet))
                rows.append(pruned(model, data, method, budget, seed, folder, extra, options))
                supernet = str(folder) if method == "stagewise" else supernet
    table(rows, options)


def settings_of(method: str, options: argparse.Namespace, supernet: str | None) -> Iterator[tuple[str, Any]]:
    """Options of each method. Both searches look at the same groups: those inside branches."""
    if method == "abc":
        yield from {"evaluations": options.evaluations, "genes": "inner", "warm": False}.items()
    if method == "stagewise":
        yield from {"evaluations": options.evaluations, "genes": "inner", "supernet": supernet}.items()
        yield from {"supernet_epochs": options.supernet_epochs, "stages": tuple(options.stages)}.items()


def pruned(
    model: nn.Module, data: Data, method: str, budget: float, seed: int, folder: Path, extra: dict[str, Any],
    options: argparse.Namespace,
) -> dict[str, Any]:  # fmt: skip
    if is_finished(folder):
        return read_summary(folder)
    say(f"\n{method} at {budget:.0%} of the MACs, seed {seed}")
    return sentei.prune(
        model, data, method=method, budget=Budget(macs=budget), run_dir=folder, seed=seed, source=options.model,
        recipe=Recipe(epochs=options.epochs, lr=options.lr, limit=options.limit, hint_weight=0),
        constraints=replace(DEFAULT_CONSTRAINTS, round_to=options.round_to), distill=True, say=say, progress=True,
        **extra,
    ).summary  # fmt: skip


def table(rows: list[dict[str, Any]], options: argparse.Namespace) -> None:
    about = rows[0]["machine"]
    print(
        f"\n{options.model}, test accuracy {rows[0]['base']['accuracy']:.2%}; fine-tuning {options.epochs} epochs of "
        f"{options.limit:,} images with distillation, seeds {options.seeds}; {about['cpu']}, {about['threads']} "
        "threads\n"
    )
    print("| MACs | method | MACs left | parameters left | validation, cut | validation, tuned | test | search, s |")
    print("|---|---|---|---|---|---|---|---|")
    for budget in options.budgets:
        for method in options.methods:
            same = [r for r in rows if r["method"] == method and r["budget"]["macs"] == budget]
            print(f"| {budget:.0%} | {method} | {' | '.join(cells(same))} |")


def cells(runs: list[dict[str, Any]]) -> list[str]:
    """One row: means over seeds, and the spread of the test accuracy where there are several."""
    base, pruned = runs[0]["base"], [r["pruned"] for r in runs]
    test = np.array([p["accuracy"] for p in pruned])
    search = [sum(r["seconds"].get(k, 0) for k in ("search", "stagewise", "full")) for r in runs]
    return [
        f"{np.mean([p['macs'] for p in pruned]) / base['macs']:.1%}",
        f"{np.mean([p['params'] for p in pruned]) / base['params']:.1%}",
        f"{np.mean([r['after_cut']['val_accuracy'] for r in runs]):.2%}",
        f"{np.mean([p['val_accuracy'] for p in pruned]):.2%}",
        f"{test.mean():.2%}" + (f" ± {test.std(ddof=1):.2%}" if len(test) > 1 else ""),
        f"{np.mean(search):.0f}",
    ]


if __name__ == "__main__":
    main()
