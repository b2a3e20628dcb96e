"""A user's own case: MobileNetV2 with ImageNet weights, ten classes of one's own, half of the MACs.

    python benchmarks/imagenette.py --data FOLDER --weights mobilenet_v2.pth --runs RUNS

FOLDER is Imagenette as an image folder (train/CLASS/*, val/CLASS/*), seen at 160 pixels; the weights are torchvision's
own file. With a new last layer of ten classes the network is trained for --epochs, pruned to --macs, fine-tuned for
--fine-tune epochs, saved, loaded into a freshly built network and evaluated again. A tenth of train/ is the validation
split; val/ is the test set. Repeat the command after a kill: it goes on where it stopped.
"""

from __future__ import annotations

import argparse
import datetime
import os
import time
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn

import sentei
from sentei.data import Data, load_data
from sentei.errors import ConfigError
from sentei.methods import METHODS, prune
from sentei.models import build_model
from sentei.plan import Budget
from sentei.runfiles import is_finished, read_summary
from sentei.threads import set_threads
from sentei.train import Recipe, evaluate, fit

MODEL, SIZE = "torchvision:mobilenet_v2", 160


def dense_model(data: Data, weights: str, recipe: Recipe, runs: Path) -> nn.Module:
    """ImageNet's network with a new last layer, trained on the user's classes."""
    torch.manual_seed(recipe.seed)
    model = build_model(MODEL, num_classes=data.num_classes, weights=weights)
    return fit(model, data, recipe, run_dir=runs / "dense").model


def half(model: nn.Module, data: Data, method: str, macs: float, recipe: Recipe, folder: Path) -> dict[str, Any]:
    """The summary of the pruning run, which is finished first if need be."""
    if not is_finished(folder):
        prune(
            model,
            data,
            method=method,
            budget=Budget(macs=macs),
            run_dir=folder,
            recipe=recipe,
            source=MODEL,
            distill=False,
            say=lambda line: print(line, flush=True),
            progress=True,
        )
    summary = read_summary(folder)
    found = {key: summary["settings"][key] for key in ("method", "budget", "recipe")}
    if found != {"method": method, "budget": {"macs": macs}, "recipe": recipe.to_dict()}:
        raise ConfigError(f"{folder} holds a finished run with other settings; choose another --runs")
    return summary


def table(summary: dict[str, Any], loaded: float) -> str:
    base, pruned = summary["base"], summary["pruned"]
    rows = [
        ("", "val", "test", "MACs", "parameters"),
        ("---", "---:", "---:", "---:", "---:"),
        ("before, ten classes", base["val_accuracy"], base["accuracy"], base["macs"], base["params"]),
        ("after the cut", summary["after_cut"]["val_accuracy"], None, pruned["macs"], pruned["params"]),
        ("after fine-tuning", pruned["val_accuracy"], pruned["accuracy"], pruned["macs"], pruned["params"]),
        ("saved, loaded, evaluated again", None, loaded, pruned["macs"], pruned["params"]),
    ]
    return "\n".join(f"| {' | '.join(map(_cell, row))} |" for row in rows)


def _cell(value: str | float | int | None) -> str:
    if isinstance(value, float):
        return f"{value:.2%}"
    return "" if value is None else f"{value / 1e6:.2f} M" if isinstance(value, int) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train/ and val/")
    parser.add_argument("--weights", required=True, help="torchvision's MobileNet_V2 file")
    parser.add_argument("--runs", type=Path, required=True, help="folder for the run directories")
    parser.add_argument("--method", choices=METHODS, default="taylor")
    parser.add_argument("--macs", type=float, default=0.5)
    parser.add_argument("--epochs", type=int, default=1, help="of training before the cut")
    parser.add_argument("--fine-tune", type=int, default=3, help="epochs after the cut")
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--limit", type=int, help="train on only so many images an epoch, to try the script")
    parser.add_argument("--val", type=int, help="validation images; a tenth of train/ unless given")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()

    threads = set_threads()
    started = time.perf_counter()
    data = load_data(f"imagefolder:{given.data}", image_size=SIZE, val=given.val, seed=given.seed)
    shared = {"lr": given.lr, "batch_size": given.batch_size, "limit": given.limit, "seed": given.seed}
    dense = dense_model(data, given.weights, Recipe(epochs=given.epochs, **shared), given.runs)
    folder = given.runs / f"{given.method}-{given.macs:g}"
    summary = half(dense, data, given.method, given.macs, Recipe(epochs=given.fine_tune, **shared), folder)
    loaded = sentei.load(build_model(MODEL, num_classes=data.num_classes), folder)
    again = evaluate(loaded, data.test).value

    print(f"\nmethod {given.method}\n\n{table(summary, again)}\n")
    sizes = ", ".join(f"{k} {summary['data_description'][k]:,}" for k in ("train", "val", "test"))
    where = summary["machine"]
    print(
        f"{MODEL} at {SIZE} pixels, images {sizes}; {given.epochs} epochs before, {given.fine_tune} after the cut, "
        f"peak learning rate {given.lr}, batch {given.batch_size}, seed {given.seed}; fine-tuning "
        f"{summary['seconds']['finetune']:,.0f} s, this call {time.perf_counter() - started:,.0f} s. "
        f"{where.get('gpu') or where['cpu']}, {os.cpu_count()} cores, {threads} threads, torch {where['torch']}, "
        f"torchvision {torchvision.__version__}, Python {where['python']}, {datetime.date.today()}."
    )


if __name__ == "__main__":
    main()
