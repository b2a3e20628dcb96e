"""One experiment from start to end: prune, fine-tune, measure; resumed where a kill left it."""

from __future__ import annotations

import copy
import json
import subprocess
import time
from dataclasses import replace
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

import sentei
from ledger.peers import cut_by_peer
from ledger.plan import TOOLS, Row
from sentei.answers import packed
from sentei.data import Data, load_data
from sentei.machine import machine
from sentei.methods.stagewise.fidelity import Fidelity, measure_fidelity
from sentei.models import build_model
from sentei.plan import Constraints
from sentei.runfiles import JOURNAL, is_finished, read_summary
from sentei.runs import Run
from sentei.train import Recipe, evaluate, fit, recalibrate
from sentei.train.checkpoint import digest
from sentei.train.journal import Journal

FINE = Constraints(round_to=1, max_ratio=0.9)
"""Steps of one channel for every contender: layers of 16 channels have few widths as it is."""
NETWORKS = {"resnet20": "sentei:resnet20-cifar10", "resnet56": "resnet56"}
PACKAGES = ("torch", *(package for package, _ in TOOLS.values()))


def made(row: Row, folder: Path, model: nn.Module, data: Data) -> dict[str, Any]:
    """What the ledger keeps of a row."""
    maker = by_peer if row.how.is_peer else by_fidelity if row.how.method == "fidelity" else by_sentei
    result = maker(row, folder, model, data)
    return {
        **result, "device": data.device.type, "machine": machine(data.device), "versions": versions(),
        "commit": commit(), "when": time.strftime("%Y-%m-%d"),
    }  # fmt: skip


def recipe_of(row: Row) -> Recipe:
    return Recipe(epochs=row.epochs, lr=row.lr, limit=row.limit, seed=row.seed, hint_weight=row.hints, **row.recipe)


def total_images(row: Row, data: Data) -> int:
    """Images that may go through training steps, whatever for: whole batches only."""
    return row.epochs * data.epoch_images(recipe_of(row).batch_size, row.epoch)


def by_sentei(row: Row, folder: Path, model: nn.Module, data: Data) -> dict[str, Any]:
    run, how = folder / "run", row.how
    if not is_finished(run):
        budget = None if how.options.get("paper") else sentei.Budget(**row.limits)
        sentei.prune(
            model, data, method=how.method, budget=budget, run_dir=run, recipe=recipe_of(row), constraints=FINE,
            distill=row.distill, total_images=total_images(row, data), source=NETWORKS[row.network],
            say=lambda line: print(f"  {line}", flush=True), **how.options,
        )  # fmt: skip
    found = read_summary(run)
    pruned, base = found["pruned"], found["base"]
    return {
        "dense": {
            "test": base["accuracy"], "val": base["val_accuracy"], "macs": base["macs"], "params": base["params"]
        },
        "cut": found["after_cut"]["val_accuracy"], "val": pruned["val_accuracy"], "test": pruned["accuracy"],
        "macs": pruned["macs"], "params": pruned["params"], "images": found["images_trained"],
        "evaluations": found.get("search", {}).get("evaluations"), "seconds": found["seconds"], "refused": None,
        "widths": {name: widths[1] for name, widths in found["widths"].items()},
        "answers": found["answers"]["pruned"],
    }  # fmt: skip


def by_fidelity(row: Row, folder: Path, model: nn.Module, data: Data) -> dict[str, Any]:
    """Proxies beside the real accuracy of structures; the test images are not read.

    Rows that differ in the supernet alone share the structures, which another row may have trained already.
    """
    run, recipe = folder / "run", recipe_of(row)
    how, budget = Fidelity(**row.how.options), sentei.Budget(**row.limits)
    if not is_finished(run):
        config = {"verb": "fidelity", **row.to_json(), "base_sha256": digest(model), "recipe": recipe.to_dict()}
        with Run.open(run, json.loads(json.dumps(config))) as opened:
            for record in _measured(folder.parent / replace(row, contender="fidelity").name / "run", opened):
                opened.journal.append(record, wait=False)
            told = measure_fidelity(
                model, data, how, recipe=recipe, budget=budget, run=opened, source=NETWORKS[row.network],
                constraints=FINE, say=lambda line: print(f"  {line}", flush=True),
            )  # fmt: skip
            opened.finish(told)
    found = read_summary(run)
    kept = {name: found[name] for name in ("proxies", "agreement", "structures", "seconds")}
    return {"refused": None, **kept}


def _measured(first: Path, opened: Run) -> list[dict[str, Any]]:
    """What a finished row has measured, for one that begins."""
    if not is_finished(first) or first == opened.folder or opened.journal.records():
        return []
    return [record for record in Journal(first / JOURNAL).records() if record.get("phase") == "measure"]


def by_peer(row: Row, folder: Path, model: nn.Module, data: Data) -> dict[str, Any]:
    """Another tool's cut, and from there on the same as for sentei's own: fresh statistics, the same loop."""
    dense, image = copy.deepcopy(model), torch.zeros(1, *data.input_shape, device=data.device)
    cost = sentei.trace(dense, image).cost()
    whole = {"macs": cost.macs, "params": cost.params}
    note = folder / "peer.json"
    if not note.is_file():
        cut_by_peer(folder, row.how.method, dict(row.how.options), model, data, row.limits["macs"], recipe_of(row))
    told = json.loads(note.read_text())
    if told["refused"]:
        return {"refused": told["refused"], "dense": whole}
    small: nn.Module = torch.load(folder / "peer.pt", weights_only=False).to(data.device)
    recalibrate(small, data.train.batches(256, train=True, limit=2048))
    cut, size = evaluate(small, data.val).value, sentei.trace(small, image).cost()
    recipe = recipe_of(row)
    left = total_images(row, data) - told["images"]
    recipe = replace(recipe, epochs=left // data.epoch_images(recipe.batch_size, recipe.limit))
    teacher = dense if row.distill else None
    tuned = fit(small, data, recipe, run_dir=folder, name="tune", teacher=teacher, progress=False)
    tested = evaluate(tuned.model, data.test)
    return {
        "dense": {"test": evaluate(dense, data.test).value, "val": evaluate(dense, data.val).value, **whole},
        "cut": cut, "val": evaluate(tuned.model, data.val).value, "test": tested.value,
        "answers": packed(tested.right),
        "macs": size.macs, "params": size.params, "refused": None, "evaluations": None,
        "judged": told["judged"],
        "images": {"sparse": told["images"], "finetune": tuned.images, "total": told["images"] + tuned.images},
        "seconds": {"cut": told["seconds"], "finetune": round(tuned.seconds, 1)},
    }  # fmt: skip


@cache
def commit() -> str | None:
    """Of the code that computed this; None outside of a checkout."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    told = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    return told.stdout.strip() or None


def versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def ground(row: Row, root: str, weights: str | None, device: str) -> tuple[nn.Module, Data]:
    """The dense network and its data."""
    outside = row.network != "resnet20"
    data = load_data("cifar10", root=root, device=device, normalize="imagenet" if outside else None)
    return build_model(NETWORKS[row.network], weights=weights if outside else None).to(data.device).eval(), data
