"""`sentei train`: a dense network from a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from torch import nn

from sentei.cli.console import say, stdout
from sentei.cli.options import DataOptions, Dense, Ref, announce, dense_model, plain, recipe_from, resolved_ref
from sentei.graph import trace
from sentei.methods.pruning import accuracy_of
from sentei.methods.summary import machine
from sentei.report.tables import count, percent, table
from sentei.runs import Run, clear, refuse_existing
from sentei.train import Data, Recipe, fit
from sentei.train.checkpoint import digest, save_weights


@dataclass(frozen=True)
class Train:
    """Train a network; the run directory can then be pruned.

    The test set is read once, at the end. A killed run goes on with `sentei resume RUN`.
    """

    model: Annotated[Ref, tyro.conf.arg(metavar="MODEL")]
    """Zoo name, torchvision:NAME, timm:NAME or FILE.py:FUNCTION."""
    images: DataOptions = field(default_factory=DataOptions)
    recipe: Recipe = field(default_factory=Recipe)
    """How to train: SGD with momentum, linear warm-up, then cosine decay to zero."""
    run: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Run directory; runs/MODEL-DATA unless given."""
    weights: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Start from these weights (safetensors or a state_dict); a last layer of another size is made new."""
    overwrite: bool = False
    """Replace what the run directory holds."""

    @property
    def folder(self) -> Path:
        return self.run or Path("runs") / f"{short(self.model)}-{short(self.images.data or 'data')}"

    def execute(self, resume: bool = False) -> None:
        if self.overwrite:
            clear(self.folder)
        elif not resume:
            refuse_existing(self.folder)
        data = self.images.load()
        weights = None if self.weights is None else str(self.weights.resolve())
        ref = resolved_ref(self.model) or self.model
        model, dense = dense_model(ref, weights, data, self.recipe.seed)
        announce(self.model, dense, data)
        train(self, model, dense, data)

    def command(self, dense: Dense) -> dict[str, Any]:
        return {
            "verb": "train",
            "model": dense.ref,
            "dense": plain(dense),
            "data": plain(self.images.resolved()),
            "recipe": self.recipe.to_dict(),
        }

    @classmethod
    def of(cls, folder: Path, command: Mapping[str, Any]) -> Train:
        weights = command["dense"]["weights"]
        return cls(
            command["model"],
            DataOptions(**command["data"]),
            recipe_from(command["recipe"]),
            folder,
            None if weights is None else Path(weights),
        )


def train(options: Train, model: nn.Module, dense: Dense, data: Data) -> None:
    """Train, measure once on the test set, save."""
    model = model.to(data.device)
    resolved = {"task": "train", "model": dense.ref, "base_sha256": digest(model), "data": data.description}
    run = Run.open(options.folder, resolved | {"recipe": options.recipe.to_dict()}, options.command(dense))
    found = fit(model, data, options.recipe, run_dir=run.folder, name="train")
    save_weights(options.folder / "model.safetensors", found.model)
    final = run.once(
        "final", lambda: {"val": accuracy_of(found.model, data.val), "test": accuracy_of(found.model, data.test)}
    )
    cost = trace(found.model, torch.zeros(1, *data.input_shape, device=data.device)).cost()
    summary = {
        "task": "train",
        "model": options.model,
        "data": data.name,
        "seed": options.recipe.seed,
        "accuracy": final["test"],
        "val_accuracy": final["val"],
        **asdict(cost),
        "seconds": {"train": round(found.seconds, 2), "evaluate": final["seconds"]["final"]},
        "images_per_second": round(found.images_per_second, 1),
        "machine": machine(data.device),
        "epochs": options.recipe.epochs,
        "settings": {"recipe": options.recipe.to_dict()},
        "data_description": data.description,
    }
    run.finish(summary)
    show(options.folder, summary)


def show(folder: Path, summary: Mapping[str, Any]) -> None:
    out = table(f"{summary['model']} on {summary['data']}", "", "trained")
    out.add_row("test accuracy", percent(summary["accuracy"]))
    out.add_row("validation accuracy", percent(summary["val_accuracy"]))
    out.add_row("MACs", count(summary["macs"]))
    out.add_row("parameters", count(summary["params"]))
    stdout().print(out)
    say(f"Run directory: {folder}")
    say(f"Next:  sentei prune {folder} --method l1 --macs 0.5")


def short(ref: str) -> str:
    """A reference as a part of a folder's name.

    >>> short("torchvision:mobilenet_v2"), short("nets/mine.py:make"), short("imagefolder:photos/cats")
    ('mobilenet_v2', 'make', 'cats')
    """
    return Path(ref.rpartition(":")[2]).name or "model"
