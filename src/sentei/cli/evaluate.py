"""`sentei evaluate`: measure a run, or any model with weights."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from torch import nn

from sentei.cli.console import say, stdout
from sentei.cli.options import (
    MODEL,
    DataOptions,
    Dense,
    Ref,
    announce,
    dense_model,
    device_of,
    packaged_weights,
    resolved_ref,
    run_command,
)  # fmt: skip
from sentei.graph import trace
from sentei.models import load_weights
from sentei.report.tables import count, percent, table
from sentei.runs import is_started, read_summary
from sentei.surgery import load
from sentei.train import evaluate


@dataclass(frozen=True)
class Evaluate:
    """Measure a finished run again, from its files, or any model with --weights."""

    model: Annotated[Ref, tyro.conf.arg(metavar="RUN", help=MODEL)]
    images: DataOptions = field(default_factory=DataOptions)
    weights: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Weights, where RUN is a model."""
    split: Literal["test", "val"] = "test"
    """Which images to measure on."""

    def execute(self) -> None:
        recorded: float | None = None
        if is_started(self.model):
            summary = read_summary(self.model)
            part = summary.get("pruned", summary)
            options = replace(self, images=self.images.filled(run_command(self.model)["data"]))
            if options.images.data == summary["data_description"]["data"]:
                recorded = part["accuracy" if self.split == "test" else "val_accuracy"]
            model = load_run(self.model)
            data = options.images.load()
        else:
            data = self.images.load(self.model)
            weights = None if self.weights is None else str(self.weights)
            ref = packaged_weights(self.model, self.images.data) if weights is None else self.model
            model, dense = dense_model(resolved_ref(ref) or ref, weights, data, 0)
            announce(self.model, dense, data)
        model = model.to(device_of(self.images.device))
        graph = trace(model, torch.zeros(1, *data.input_shape, device=data.device))
        found = evaluate(model, getattr(data, self.split))
        out = table(f"{self.model} on {data.name}", "", "measured")
        out.add_row(f"{self.split} accuracy", percent(found.accuracy))
        out.add_row("cross entropy", f"{found.loss:.4f}")
        out.add_row("images", f"{found.images:,}")
        out.add_row("MACs", count(graph.cost().macs))
        out.add_row("parameters", count(graph.cost().params))
        stdout().print(out)
        if recorded is not None:
            same = "the same" if abs(recorded - found.accuracy) < 0.5 / found.images else f"{percent(recorded)}"
            say(f"The run recorded {same}.")


def load_run(folder: str) -> nn.Module:
    """The network of a finished run, dense or pruned, from its files alone."""
    command: dict[str, Any] = run_command(folder)
    dense = Dense(**command["dense"])
    if command["verb"] == "prune":
        return load(dense.build(), folder)
    model = dense.build()
    load_weights(model, Path(folder) / "model.safetensors")
    return model
