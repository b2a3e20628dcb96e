"""Segmentation (CamVid) and detection (BCCD) before and after pruning, with the same fine-tuning for every method.

    python benchmarks/tasks.py segmentation segmentation:camvid runs/camvid --weights mobilenet_v2.pth
    python benchmarks/tasks.py detection coco:bccd runs/bccd --weights mobilenet_v2.pth

Trains the dense network once, prunes it by every method at every budget, and prints a table. One seed. What is done is
kept in the run directories; started again, it goes on. Searching, sparse training and supernets come on top of the
fine-tuning; the column `images` counts all images that a method trained on.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import torch

import dense_models
import sentei
from sentei.data import load_data
from sentei.models import load_weights
from sentei.tasks import task_of
from sentei.threads import set_threads
from sentei.train import Recipe, fit
from sentei.train.checkpoint import save_weights

SEARCH = {"evaluations": 24, "calibration_images": 96, "validation_images": 87, "warm": False}
JOBS: dict[str, dict[str, Any]] = {
    "segmentation": {
        "model": dense_models.lraspp,
        "train": Recipe(epochs=20, batch_size=8, lr=0.02, weight_decay=1e-4),
        "tune": Recipe(epochs=5, batch_size=8, lr=0.01, weight_decay=1e-4),
        "budgets": (0.5, 0.3),
        "methods": {
            "uniform": {},
            "taylor": {},
            "abc": SEARCH,
            "stagewise": {
                "supernet_epochs": 3, "supernet_lr": 0.01, "evaluations": 40, "table_images": 48, "candidates": 6,
                "calibration_images": 96, "validation_images": 101, "interfaces": "searched",
            },
            "ista": {"sparse_epochs": 6, "genes": "all"},
        },
    },
    "detection": {
        "model": dense_models.ssdlite,
        "train": Recipe(epochs=30, batch_size=8, lr=0.01, weight_decay=1e-4),
        "tune": Recipe(epochs=8, batch_size=8, lr=0.005, weight_decay=1e-4),
        "budgets": (0.5,),
        "methods": {"uniform": {}, "taylor": {}, "abc": SEARCH},
    },
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=JOBS)
    parser.add_argument("data")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--weights", help="ImageNet weights of torchvision's mobilenet_v2")
    parser.add_argument("--image-size", type=int)
    given = parser.parse_args()
    set_threads()
    if given.weights:
        os.environ["MOBILENET"] = given.weights
    job, task = JOBS[given.task], task_of(given.task)
    data = load_data(given.data, image_size=given.image_size, workers=0)
    torch.manual_seed(0)
    model = job["model"]()
    trained = given.folder / "dense" / "model.safetensors"
    started = time.perf_counter()
    if trained.is_file():
        load_weights(model, trained)
    else:
        fit(model, data, job["train"], task=task, run_dir=given.folder / "dense")
        save_weights(trained, model)
        print(f"dense network: {time.perf_counter() - started:,.0f} s", flush=True)
    for budget in job["budgets"]:
        for method, options in job["methods"].items():
            run = given.folder / f"{method}-{budget:g}"
            if not (run / "summary.json").is_file():
                own = dict(options)
                if method == "stagewise" and budget != job["budgets"][0]:
                    own["supernet"] = str(given.folder / f"stagewise-{job['budgets'][0]:g}")
                try:
                    sentei.prune(
                        model, data, task=task, method=method, budget=sentei.Budget(macs=budget), run_dir=run,
                        recipe=job["tune"], images=128, distill=method == "stagewise" and task.imitates,
                        say=lambda line: print(line, flush=True), progress=True, **own,
                    )  # fmt: skip
                except sentei.SenteiError as error:
                    print(f"{method} at {budget:.0%}: {error}", flush=True)
                    continue
            print(row(method, json.loads((run / "summary.json").read_text())), flush=True)


def row(method: str, summary: dict[str, Any]) -> str:
    name = summary["metric"]["name"]
    base, pruned = summary["base"], summary["pruned"]
    return (
        f"| {method} | {pruned['macs'] / base['macs']:.1%} | {pruned['params'] / base['params']:.1%} "
        f"| {summary['after_cut'][f'val_{name}']:.2%} | {pruned[f'val_{name}']:.2%} | {pruned[name]:.2%} "
        f"| {summary['seconds']['total']:,.0f} s | (dense: {base[name]:.2%})"
    )


if __name__ == "__main__":
    main()
