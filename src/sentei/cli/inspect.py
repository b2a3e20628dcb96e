"""`sentei inspect`: what can be pruned, what cannot, and why."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro
from torch import nn

from sentei.cli.console import say, stdout
from sentei.cli.evaluate import load_run
from sentei.cli.options import MODEL, Dense, Ref, run_command
from sentei.errors import ConfigError
from sentei.graph import ChannelGraph, trace
from sentei.models import build_model, input_shape_of
from sentei.report.tables import cost_table, frozen_table, group_table
from sentei.runs import is_started, read_config


@dataclass(frozen=True)
class Inspect:
    """Show what a network costs, which channels belong together, and what is frozen and why. Needs no data."""

    model: Annotated[Ref, tyro.conf.arg(metavar="MODEL", help=MODEL)]
    input: Annotated[str | None, tyro.conf.arg(metavar="N,C,H,W")] = None
    """Shape of an input; the model's usual one unless given."""
    groups: bool = False
    """List every group."""
    num_classes: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Number of classes; the model's own unless given."""

    def execute(self) -> None:
        model, shape = self.build()
        graph = trace(model, torch.zeros(shape))
        console = stdout()
        console.print(cost_table(self.model, graph))
        free = [g for g in graph.groups if not g.frozen]
        say(
            f"{len(graph.groups)} groups, {len(free)} prunable with {sum(g.width for g in free):,} units; "
            f"{len(graph.groups) - len(free)} frozen."
        )
        unread = unread_line(graph)
        if unread is not None:
            say(unread)
        frozen = frozen_table(graph)
        if frozen is not None:
            console.print(frozen)
        if self.groups:
            console.print(group_table(graph))
        else:
            say(f"Every group:  sentei inspect {self.model} --groups")

    def build(self) -> tuple[nn.Module, tuple[int, ...]]:
        """The model, and the shape of an input."""
        given = None if self.input is None else parse_shape(self.input)
        if is_started(self.model):
            shape = tuple(read_config(self.model)["resolved"]["data"]["input_shape"])
            if (Path(self.model) / "model.safetensors").is_file():
                return load_run(self.model), given or (1, *shape)
            return Dense(**run_command(self.model)["dense"]).build(), given or (1, *shape)
        shape = given or (1, *input_shape_of(self.model))
        channels = shape[1] if given and len(given) > 1 and not self.model.startswith("torchvision:") else None
        return build_model(self.model, num_classes=self.num_classes, in_channels=channels), shape


def unread_line(graph: ChannelGraph) -> str | None:
    """What the forward never reads, and its share of the parameters; None if it reads everything."""
    sizes = {name: math.prod(shape) for name, shape in graph.params.items()}
    lost = sum(sizes[name] for name in graph.unread)
    if not lost:
        return None
    modules = list(dict.fromkeys(name.rpartition(".")[0] or name for name in graph.unread))
    named = ", ".join(modules[:3]) + (f" and {len(modules) - 3} more" if len(modules) > 3 else "")
    return f"The forward never reads {lost:,} parameters ({lost / sum(sizes.values()):.1%} of them): {named}."


def parse_shape(text: str) -> tuple[int, ...]:
    """
    >>> parse_shape("1,3,224,224"), parse_shape("2x3x32x32")
    ((1, 3, 224, 224), (2, 3, 32, 32))
    """
    try:
        shape = tuple(int(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise ConfigError(f"--input {text!r}: expected sizes separated by commas, for instance 1,3,224,224")
    return shape
