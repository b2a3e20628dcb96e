"""`sentei train`: a dense network from a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro
from torch import nn

from sentei.cli.networks import announce, dense_model, random_parameter, refuse_missing_run
from sentei.cli.options import (
    DataOptions,
    Dense,
    Preset,
    Ref,
    TrainingOutput,
    Trust,
    absolute_or_none,
    command_of,
    default_folder,
    resolved_ref,
)
from sentei.cli.running import begin, tell, watched
from sentei.cli.saved import Saved, quoted, trust_flag
from sentei.console import say, screen
from sentei.data import Data
from sentei.distributed import agree_weights
from sentei.graph import trace
from sentei.machine import machine
from sentei.methods.common.summary import measured_on, measured_task, tested
from sentei.models.user_file import code_of
from sentei.report.tables import count, table
from sentei.runs import JustFinished, Run
from sentei.tasks import Task
from sentei.tasks.task import shown
from sentei.threads import computed_on
from sentei.train import Recipe, fit
from sentei.train.checkpoint import digest, save_weights


@dataclass(frozen=True)
class Train:
    """Train a network; the run directory can then be pruned.

    The test set is read once, at the end. A killed run goes on with `sentei resume RUN`, or with the same command.
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
    trust: Trust = False
    """Where MODEL is a run, let the code run that its config names."""
    output: TrainingOutput = field(default_factory=TrainingOutput)
    preset: Preset = None

    @property
    def folder(self) -> Path:
        return self.run or default_folder(self.model, self.images.data or "data")

    def execute(self) -> None:
        refuse_missing_run(self.model)
        begin(self.folder, self.overwrite)
        data = self.images.load()
        ref, weights, task = resolved_ref(self.model), absolute_or_none(self.weights), self.images.purpose()
        model, dense = dense_model(ref, weights, data, task, self.recipe.seed, self.trust)
        announce(self.model, dense, data, task, random_parameter(dense))
        with suppress(JustFinished), watched(self.folder, self.output):
            train(self, model, dense, data, task)
        tell(show, self.folder, self.output.as_json)

    def command(self, dense: Dense) -> dict[str, Any]:
        return command_of("train", dense.ref, dense, self.images, recipe=self.recipe.to_dict())

    @classmethod
    def of(cls, folder: Path, saved: Saved) -> Train:
        weights = saved.dense.weights
        return cls(saved.model, saved.data, saved.recipe, folder, None if weights is None else Path(weights))


def train(options: Train, model: nn.Module, dense: Dense, data: Data, task: Task) -> None:
    """Train, measure once on the test set, save."""
    model, recipe = model.to(data.device), options.recipe
    agree_weights(model)
    identity = {
        "verb": "train", "task": task.settings, "base_sha256": digest(model), "code": code_of(dense.ref),
        "data": data.identity, "recipe": recipe.to_dict(), **computed_on(data.device),
    }  # fmt: skip
    with Run.open(options.folder, identity, options.command(dense), options.overwrite) as run:
        found = fit(
            model, data, recipe, task=task, run_dir=run.folder, name="train",
            checkpoint_minutes=options.output.checkpoint_minutes,
        )  # fmt: skip
        if run.folder is not None:
            save_weights(run.folder / "model.safetensors", found.model)
        splits = {"val": data.val, "test": data.test}
        measured = lambda: {name: measured_on(found.model, split, task).figures for name, split in splits.items()}  # noqa: E731
        final = run.once("final", measured, together=True)
        graph = trace(found.model, task.example(found.model, data), forward=task.part)
        run.finish(
            {
                "verb": "train",
                **measured_task(task),
                "model": options.model,
                "data": data.name,
                "seed": recipe.seed,
                **tested(final["test"], task),
                f"val_{task.metric}": final["val"].get(task.metric),
                **asdict(graph.cost()),
                "layers": {name: [macs] for name, macs in graph.macs_by_layer().items()},
                "inputs": graph.inputs.spec(),
                "seconds": {"train": round(found.seconds, 2), "evaluate": final.get("seconds", {}).get("final", 0.0)},
                "images_per_second": round(found.images_per_second, 1),
                "images_trained": {"train": found.images, "total": found.images},
                "machine": machine(data.device),
                "epochs": recipe.epochs,
                "settings": {"recipe": recipe.to_dict()},
                "data_description": {**data.identity, "data": data.name},
            }
        )


def show(folder: Path, summary: Mapping[str, Any]) -> None:
    out = table(f"{summary['model']} on {summary['data']}", "", "trained")
    name, percent = summary["metric"]["name"], summary["metric"]["percent"]
    out.add_row(f"test {name}", shown(summary[name], percent))
    out.add_row(f"validation {name}", shown(summary[f"val_{name}"], percent))
    out.add_row("MACs", count(summary["macs"]))
    out.add_row("parameters", count(summary["params"]))
    screen().print(out)
    say(f"Run directory: {folder}")
    say(f"Next:  sentei prune {quoted(folder)}{trust_flag(folder)} --macs 0.5")
