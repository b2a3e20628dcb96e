"""The methods side by side: one trained CIFAR-10 network, half its MACs, the same fine-tuning for every method.

    python benchmarks/cifar10.py --data-root DATA --runs RUNS
    python benchmarks/cifar10.py --data-root DATA --runs RUNS --model resnet56 --weights FILE --normalize imagenet \\
        --methods uniform taylor

Each method has a run directory below RUNS: finished ones are only read, a broken one goes on where it stopped, so the
same command may be repeated after a kill. Validation images (5,000 of the training images, seed 0) decide which
structure a search picks and nothing else; the test set is read once a run, after fine-tuning. Searches evaluate
`--evaluations` structures each; abc_train is abc with the paper's fitness, short training from random filters, here on
`--short-images` images a structure.
"""

from __future__ import annotations

import argparse
import datetime
import os
from pathlib import Path
from typing import Any

import torchvision
from torch import nn

from sentei.data import Data, load_data
from sentei.errors import ConfigError
from sentei.methods import METHODS, prune
from sentei.models import build_model
from sentei.plan import Budget
from sentei.runfiles import is_finished, read_summary
from sentei.threads import set_threads
from sentei.train import Recipe

SEARCHES = ("abc", "evolution", "random_search", "abc_train")


def options(method: str, given: argparse.Namespace) -> dict[str, Any]:
    """The settings of a method that are not its defaults."""
    short = {"fitness": "train", "inherit": "random", "fitness_epochs": 1, "fitness_images": given.short_images}
    search = {"evaluations": given.evaluations, "warm": False}
    return (search if method in SEARCHES else {}) | (short if method == "abc_train" else {})


def outcome(
    folder: Path, model: nn.Module, data: Data, method: str, recipe: Recipe, given: argparse.Namespace
) -> dict[str, Any]:
    """The summary of a run, which is finished first if need be."""
    if not is_finished(folder):
        prune(
            model,
            data,
            method=method.removesuffix("_train"),
            budget=Budget(macs=given.macs),
            run_dir=folder,
            recipe=recipe,
            source=given.model,
            distill=False,
            say=lambda line: print(f"  {line}", flush=True),
            progress=True,
            **options(method, given),
        )
    summary = read_summary(folder)
    settings = summary["settings"]
    if (settings["recipe"], settings["budget"]) != (recipe.to_dict(), {"macs": given.macs}):
        raise ConfigError(f"{folder} holds a finished run with other settings; choose another --runs")
    return {**summary, "title": method}


def table(found: list[dict[str, Any]]) -> str:
    base = found[0]["base"]
    head = ("method", "val after cut", "val after fine-tuning", "test", "points lost", "MACs", "parameters",
            "evaluations", "max error of the cut", "seconds, search", "seconds, fine-tuning")  # fmt: skip
    lines = [head, ("---", *["---:"] * (len(head) - 1))]
    lines.append(
        (
            "original",
            "",
            f"{base['val_accuracy']:.2%}",
            f"{base['accuracy']:.2%}",
            "",
            f"{base['macs'] / 1e6:.2f} M",
            f"{base['params']:,}",
            *[""] * 4,
        )  # fmt: skip
    )
    for r in found:
        pruned, seconds = r["pruned"], r["seconds"]
        lines.append(
            (
                r["title"] + (f", seed {r['seed']}" if len({f["seed"] for f in found}) > 1 else ""),
                f"{r['after_cut']['val_accuracy']:.2%}",
                f"{pruned['val_accuracy']:.2%}",
                f"{pruned['accuracy']:.2%}",
                f"{100 * (r['base']['accuracy'] - pruned['accuracy']):.2f}",
                f"{pruned['macs'] / 1e6:.2f} M ({pruned['macs'] / base['macs']:.1%})",
                f"{pruned['params']:,} ({pruned['params'] / base['params']:.1%})",
                f"{r['search']['evaluations']}" if "search" in r else "",
                f"{r['check']['max_error']:.0e}",
                f"{seconds['search']:,.0f}" if "search" in seconds else "",
                f"{seconds['finetune']:,.0f}",
            )
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def provenance(found: list[dict[str, Any]], recipe: Recipe) -> str:
    where = found[-1]["machine"]
    seeds = ", ".join(sorted({str(r["seed"]) for r in found}))
    return (
        f"{found[0]['model']} on CIFAR-10; {recipe.epochs} epochs, peak learning rate {recipe.lr}, batch "
        f"{recipe.batch_size}; BatchNorm recalibrated after the cut. {where.get('gpu') or where['cpu']}, "
        f"{os.cpu_count()} cores, {where['threads']} threads, torch {where['torch']}, torchvision "
        f"{torchvision.__version__}, Python {where['python']}, seeds {seeds}, {datetime.date.today()}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", help="folder that holds cifar-10-batches-py")
    parser.add_argument("--runs", type=Path, required=True, help="folder for the run directories")
    parser.add_argument("--model", default="sentei:resnet20-cifar10", help="model reference")
    parser.add_argument("--weights", help="weights file, where the model has none of its own")
    parser.add_argument("--normalize", choices=("imagenet", "none"), help="what the weights were trained with")
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=[*METHODS, "abc_train"],
        default=["uniform", "random", "l1", "bn_scale", "taylor"],
    )
    parser.add_argument("--macs", type=float, default=0.5)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--evaluations", type=int, default=100, help="structures that a search evaluates")
    parser.add_argument("--short-images", type=int, default=5000, help="images that abc_train trains on")
    parser.add_argument("--limit", type=int, help="train on only so many images an epoch, to try the script")
    given = parser.parse_args()

    set_threads()
    data = load_data("cifar10", root=given.data_root, normalize=given.normalize)
    model = build_model(given.model, weights=given.weights)
    found = []
    for seed in given.seeds:
        recipe = Recipe(epochs=given.epochs, lr=given.lr, seed=seed, limit=given.limit)
        for method in given.methods:
            name = given.model.removeprefix("sentei:").replace(":", "-")
            folder = given.runs / f"{name}-{method}-{given.macs:g}-seed{seed}"
            print(f"{method}, seed {seed}: {folder.name}", flush=True)
            found.append(outcome(folder, model, data, method, recipe, given))
    print("\n".join(("", table(found), "", provenance(found, recipe))))


if __name__ == "__main__":
    main()
