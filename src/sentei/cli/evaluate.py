"""`sentei evaluate`: measure a run, or any model with weights."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from torch import nn

from sentei.cli.networks import (
    announce,
    dense_model,
    load_run,
    packaged_weights,
    random_parameter,
    refuse_missing_run,
)
from sentei.cli.options import (
    MODEL,
    Code,
    DataOptions,
    Output,
    Ref,
    Trust,
    absolute_or_none,
    device_of,
    resolved_ref,
)
from sentei.cli.running import print_json
from sentei.cli.saved import permit_run, resume_hint, saved_command
from sentei.console import say, screen
from sentei.data import Data
from sentei.errors import ConfigError
from sentei.graph import trace
from sentei.methods.common.summary import measured_task
from sentei.report.tables import count, table
from sentei.runfiles import is_finished, is_started, read_summary
from sentei.tasks import Task
from sentei.train import Evaluation, evaluate


@dataclass(frozen=True)
class Evaluate:
    """Measure a finished run again, from its files, or any model with --weights."""

    model: Annotated[Ref, tyro.conf.arg(metavar="RUN", help=MODEL)]
    images: DataOptions = field(default_factory=DataOptions)
    weights: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Weights, where RUN is a model."""
    split: Literal["test", "val"] = "test"
    """Which images to measure on."""
    code: Code = None
    trust: Trust = False
    """Let the code run that the config of RUN names (FILE.py:FUNCTION)."""
    output: Output = field(default_factory=Output)

    def execute(self) -> None:
        model, data, task, recorded = self.run() if is_started(self.model) else self.named()
        model = model.to(device_of(self.images.device))
        cost = trace(model, task.example(model, data), forward=task.part).cost()
        if not len(getattr(data, self.split)):
            other = "val" if self.split == "test" else "test"
            hint = f": --split {other} measures on the other" if len(getattr(data, other)) else ""
            raise ConfigError(f"{data.name} has no {self.split} images{hint}")
        found = evaluate(model, getattr(data, self.split), task=task)
        result = {
            "model": self.model, "data": data.name, "split": self.split, **measured_task(task), **found.figures,
            "images": found.images, **asdict(cost), "recorded": recorded,
        }  # fmt: skip
        if self.output.as_json:
            print_json(result)
        else:
            self.show(result, task, found)

    def show(self, result: dict[str, Any], task: Task, found: Evaluation) -> None:
        out = table(f"{self.model} on {result['data']}", "", "measured")
        out.add_row(f"{self.split} {task.metric}", task.told(found.value))
        for name, value in found.figures.items():
            if name != task.metric and not name.startswith("majority"):
                out.add_row(name, f"{value:.4f}")
        out.add_row("images", f"{result['images']:,}")
        out.add_row("MACs", count(result["macs"]))
        out.add_row("parameters", count(result["params"]))
        screen().print(out)
        recorded = result["recorded"]
        if recorded is not None:
            same = abs(recorded - found.value) < max(0.5 / found.images, 1e-6 * abs(recorded))
            say(f"The run recorded {'the same' if same else task.told(recorded)}.")

    def run(self) -> tuple[nn.Module, Data, Task, float | None]:
        """Network, data and task of a run, and the metric that its summary has for the same images."""
        if self.weights is not None:
            raise ConfigError(f"{self.model} is a run and has its own weights; leave out --weights")
        if not is_finished(self.model):
            raise ConfigError(f"the run in {self.model} is not finished. Go on with:  {resume_hint(self.model)}")
        summary, saved = read_summary(self.model), saved_command(self.model)
        permit_run(self.model, saved, self.trust, self.images, self.code)
        options = replace(self, images=self.images.filled(saved.data))
        model, data = load_run(self.model, self.trust, self.code), options.images.load()
        part = summary.get("pruned", summary)
        same = data.identity["content"] == summary["data_description"]["content"]
        task = options.images.purpose()
        return model, data, task, part.get(f"{'val_' * (self.split == 'val')}{task.metric}") if same else None

    def named(self) -> tuple[nn.Module, Data, Task, None]:
        """A model by reference, with weights, and the data that are asked for."""
        refuse_missing_run(self.model)
        data = self.images.load(self.model)
        weights = absolute_or_none(self.weights)
        ref = packaged_weights(self.model, self.images.data) if weights is None else self.model
        task = self.images.purpose()
        model, dense = dense_model(resolved_ref(ref), weights, data, task, 0, code=self.code)
        announce(self.model, dense, data, task, random_parameter(dense))
        return model, data, task, None
