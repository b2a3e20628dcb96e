"""`sentei inspect`: what can be pruned, what cannot, and why."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from torch import nn

from sentei.cli.networks import build_named, load_run
from sentei.cli.options import MODEL, Code, Limits, Output, Ref, Trust, is_code
from sentei.cli.running import print_json
from sentei.cli.saved import permit, quoted, saved_command
from sentei.console import say, screen
from sentei.errors import ConfigError, TraceError
from sentei.graph import ChannelGraph, trace
from sentei.graph.inputs import Inputs
from sentei.models import input_shape_of
from sentei.report.tables import cost_table, frozen_table, group_table, smallest
from sentei.runfiles import is_finished, is_started, read_config, read_summary
from sentei.tasks import task_of
from sentei.tasks.detectors import is_detector
from sentei.tasks.task import Forward


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
    task: Annotated[str | None, tyro.conf.arg(metavar="TASK")] = None
    """What the network is for, where only a part of it is traced: detection, or FILE.py:CLASS."""
    code: Code = None
    limits: Limits = field(default_factory=Limits)
    """What the smallest reachable size depends on; the defaults are those of sentei prune."""
    trust: Trust = False
    """Where MODEL is a run, let the code run that its config names."""
    output: Output = field(default_factory=Output)

    def execute(self) -> None:
        model, example, part = self.build()
        try:
            graph = trace(model, example, forward=part)
        except TraceError as error:
            if part is None and is_detector(model):
                hint = "--task detection traces the part of torchvision's detectors without that"
                raise TraceError(f"{error}\n{hint}") from error
            if self.input is not None or not is_code(self.model):
                raise
            guess = "x".join(map(str, example.shape))
            raise TraceError(f"{error}\n{guess} is a guess; --input N,C,H,W gives another") from error
        if self.output.as_json:
            print_json(self.result(graph))
        else:
            self.show(graph)

    def show(self, graph: ChannelGraph) -> None:
        screen().print(cost_table(self.model, graph, self.limits.constraints()))
        free = [g for g in graph.groups if not g.frozen]
        say(
            f"{len(graph.groups)} groups, {len(free)} prunable with {sum(g.width for g in free):,} units; "
            f"{len(graph.groups) - len(free)} frozen."
        )
        for bundle in graph.bundles:
            say(f"Keep the same share of their units: {', '.join(graph.groups[i].name for i in bundle)}")
        unread = unread_line(graph)
        if unread is not None:
            say(unread)
        frozen = frozen_table(graph)
        if frozen is not None:
            screen().print(frozen)
        if self.groups:
            screen().print(group_table(graph))
        else:
            say(f"Every group:  sentei inspect {quoted(self.model)}{' --trust' if self.trust else ''} --groups")

    def result(self, graph: ChannelGraph) -> dict[str, object]:
        macs, params = graph.prunable()
        return {
            "model": self.model,
            "input": str(graph.inputs),
            **asdict(graph.cost()),
            "prunable": {"macs": macs, "params": params},
            "smallest": smallest(graph, self.limits.constraints()),
            "same_share": [[graph.groups[i].name for i in bundle] for bundle in graph.bundles],
            "groups": [{"name": g.name, "width": g.width, "frozen": g.why if g.frozen else None} for g in graph.groups],
        }

    def build(self) -> tuple[nn.Module, Any, Forward | None]:
        """The model, example inputs, and the part of it that is traced."""
        given = None if self.input is None else torch.zeros(parse_shape(self.input))
        if is_started(self.model):
            model, part = self.of_run()
            return model, given if given is not None else example_of_run(self.model), part
        shape = (1, *input_shape_of(self.model)) if given is None else given.shape
        channels = shape[1] if given is not None and len(shape) > 1 and not is_torchvision(self.model) else None
        part = None if self.task is None else task_of(self.task).part
        model, example = build_named(self.model, self.num_classes, channels), torch.zeros(shape)
        if given is None and part is not None and is_detector(model):
            example = model.transform([example[0]])[0].tensors
        return model, example, part

    def of_run(self) -> tuple[nn.Module, Forward | None]:
        saved = saved_command(self.model)
        permit(self.model, [None if self.code else saved.dense.ref, None if self.task else saved.data.task], self.trust)
        part = replace(saved.data, task=self.task or saved.data.task).purpose().part
        if (Path(self.model) / "model.safetensors").is_file():
            return load_run(self.model, self.trust, self.code), part
        return saved.dense.build(), part


def is_torchvision(ref: str) -> bool:
    return ref.startswith("torchvision:")


def example_of_run(folder: str) -> Any:
    """Inputs as those that a run was traced on; an image of its data while it has not been."""
    if is_finished(folder) and (spec := read_summary(folder).get("inputs")):
        inputs = Inputs.from_spec(spec)
        return inputs.args or dict(inputs.kwargs)
    shape = read_config(folder)["resolved"]["data"]["input_shape"]
    if shape is None:
        raise ConfigError(f"the run in {folder} is not finished, and what its network takes is not known: give --input")
    return torch.zeros(1, *shape)


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
