"""`sentei export`: a file that runs without sentei."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from torch import nn

from sentei.cli.inspect import parse_shape
from sentei.cli.networks import build_named, dense_model, load_run, refuse_missing_run
from sentei.cli.options import (
    MODEL,
    Code,
    DataOptions,
    Output,
    Ref,
    Trust,
    absolute_or_none,
    resolved_ref,
    short,
)
from sentei.cli.running import print_json
from sentei.cli.saved import permit_run, saved_command
from sentei.console import say, screen
from sentei.data import Data
from sentei.deploy.export import Exported, export
from sentei.deploy.formats import FORMATS, Format, format_of
from sentei.errors import ConfigError, DataError
from sentei.graph.inputs import Inputs
from sentei.models import input_shape_of, load_weights
from sentei.report.tables import count, table
from sentei.runfiles import SIDECAR, is_started, read_summary
from sentei.tasks import Task, task_of
from sentei.tasks.task import shown

Dynamic = Literal["dynamic"]


@dataclass(frozen=True)
class _Network:
    """What is exported, and what is known of it."""

    model: nn.Module
    example: Any
    task: Task | None = None
    data: Data | None = None
    known: dict[str, Any] = field(default_factory=dict)
    """Further arguments of `export`."""


@dataclass(frozen=True)
class Export:
    """Write a network as a file that runs without sentei, after proof that it computes the same.

    The file is read back in a process that cannot import sentei; its outputs are compared with those of the network,
    and its accuracy is measured on the validation data of the run. docs/shipping.md has a loader for each format.
    """

    model: Annotated[Ref, tyro.conf.arg(metavar="RUN", help=MODEL)]
    images: DataOptions = field(default_factory=DataOptions)
    format: Annotated[str, tyro.conf.arg(metavar="{" + ",".join(FORMATS) + "}")] = "onnx"
    """What kind of file."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Where to; RUN/model.onnx, or as the format wants it, unless given."""
    batch: Annotated[str | None, tyro.conf.arg(metavar="{N,dynamic}")] = None
    """Samples that the file takes at once: a number, or any; 1 unless given."""
    image: Annotated[str | None, tyro.conf.arg(metavar="{N,HxW,dynamic}")] = None
    """Pixels of the images that it takes, or any; those of the run unless given."""
    outputs: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME")] = ()
    """Outputs that are wanted, where the network names them; all but auxiliary ones unless given."""
    tolerance: Annotated[float | None, tyro.conf.arg(metavar="X")] = None
    """Largest relative difference of outputs that is taken for rounding; 1e-5 in float32 unless given."""
    samples: Annotated[int | None, tyro.conf.arg(name="images", metavar="N")] = None
    """Validation images to measure the file on; all unless given, 0 for none."""
    weights: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Weights, where RUN is a model."""
    num_classes: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Number of classes, where RUN is a model; its own unless given."""
    input: Annotated[str | None, tyro.conf.arg(metavar="N,C,H,W")] = None
    """Shape of an input, where RUN is a model; its usual one unless given."""
    code: Code = None
    trust: Trust = False
    """Let the code run that the config of RUN names (FILE.py:FUNCTION)."""
    output: Output = field(default_factory=Output)

    def execute(self) -> None:
        kind = format_of(self.format)
        batch, image = parse_batch(self.batch), parse_image(self.image)
        path = self.target(kind)
        refuse_foreign(path)
        before = path.is_file()
        found = self.run() if is_started(self.model) else self.named()
        made = export(
            found.model, found.example, path, format=self.format, batch=batch, image=image, data=found.data,
            task=found.task, outputs=self.outputs or None, tolerance=self.tolerance, images=self.samples,
            source=Path(self.model).name, say=say, progress=True, **found.known,
        )  # fmt: skip
        if before:
            say(f"Replaced the {path.name} that was exported before")
        if self.output.as_json:
            print_json({"path": str(made.path), **made.record})
        else:
            show(made)

    def target(self, kind: Format) -> Path:
        if self.out is not None:
            return self.out / f"model{kind.suffix}" if self.out.is_dir() else self.out
        if is_started(self.model):
            return Path(self.model) / f"model{kind.suffix}"
        return Path(short(self.model) + kind.suffix)

    def run(self) -> _Network:
        """The network of a run, its validation data, and what its summary tells."""
        given = {"--weights": self.weights, "--num-classes": self.num_classes, "--input": self.input}
        if unwanted := [name for name, value in given.items() if value is not None]:
            raise ConfigError(f"{self.model} is a run and brings its own; leave out {', '.join(unwanted)}")
        summary, saved = read_summary(self.model), saved_command(self.model)
        permit_run(self.model, saved, self.trust, self.images, self.code)
        options = replace(self, images=self.images.filled(saved.data))
        model, task = load_run(self.model, self.trust, self.code), options.images.purpose()
        described = summary["data_description"]
        data = None if self.samples == 0 else self.measured_on(options.images)
        args, kwargs = Inputs.from_spec(summary["inputs"]).filled()
        known: dict[str, Any] = {}
        if data is None:
            statistics = described.get("mean"), described.get("std")
            known = {"normalisation": None if None in statistics else statistics, "classes": described.get("classes")}
        elif data.identity["content"] == described["content"]:
            known = {"recorded": summary.get("pruned", summary).get(f"val_{task.metric}")}
        return _Network(model, args or kwargs, task, data, known)

    def measured_on(self, options: DataOptions) -> Data:
        try:
            return options.load()
        except DataError as error:
            raise DataError(f"{error} (--images 0 exports without measuring the file)") from error

    def named(self) -> _Network:
        """A model by reference, with the data if any are asked for."""
        refuse_missing_run(self.model)
        weights = absolute_or_none(self.weights)
        if weights is None and not self.model.startswith("sentei:"):
            say(f"Model {self.model}: no --weights, so what it computes is that of its own code")
        if self.images.data is not None:
            data, task = self.images.load(self.model), self.images.purpose()
            model, _ = dense_model(resolved_ref(self.model), weights, data, task, 0, code=self.code)
            return _Network(model, task.example(model, data), task, data)
        shape = (1, *input_shape_of(self.model)) if self.input is None else parse_shape(self.input)
        model = build_named(self.model, self.num_classes, None)
        if weights is not None:
            load_weights(model, weights)
        return _Network(model, torch.zeros(shape), None if self.images.task is None else task_of(self.images.task))


def parse_batch(text: str | None) -> int | Dynamic | None:
    """
    >>> parse_batch("dynamic"), parse_batch("8"), parse_batch(None)
    ('dynamic', 8, None)
    """
    if text is None or text == "dynamic":
        return "dynamic" if text else None
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"--batch {text}: expected a number of samples, or dynamic")
    return int(text)


def parse_image(text: str | None) -> int | tuple[int, int] | Dynamic | None:
    """
    >>> parse_image("dynamic"), parse_image("224"), parse_image("480x640"), parse_image(None)
    ('dynamic', 224, (480, 640), None)
    """
    if text is None or text == "dynamic":
        return "dynamic" if text else None
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() and int(side) for side in sides):
        raise ConfigError(f"--image {text}: expected pixels, such as 224 or 480x640 (height x width), or dynamic")
    return int(text) if len(sides) == 1 else (int(sides[0]), int(sides[1]))


def refuse_foreign(path: Path) -> None:
    """ConfigError if a file would be replaced that was not exported by sentei."""
    if path.exists() and not path.with_name(path.name + SIDECAR).exists():
        raise ConfigError(f"{path} is there already, and sentei did not export it. Choose another file with --out")


def show(made: Exported) -> None:
    record = made.record
    out = table(f"{made.path}", "", record["kind"])
    out.add_row("size", f"{made.size / 1e6:.2f} MB")
    out.add_row("MACs", "-" if record["macs"] is None else count(record["macs"]))
    out.add_row("parameters", count(record["parameters"]))
    for side in ("inputs", "outputs"):
        for value in record[side]:
            out.add_row(f"{side[:-1]} {value['name']}", "x".join("?" if n is None else str(n) for n in value["shape"]))
    out.add_row("max error", f"{made.max_error:.1e}")
    accuracy = record["accuracy"]
    if accuracy is not None:
        for who in ("file", "network"):
            out.add_row(f"validation {accuracy['metric']}, {who}", _told(accuracy, who))
    screen().print(out)
    for line in _notes(made):
        say(line)


def _told(accuracy: dict[str, Any], who: str) -> str:
    return shown(accuracy[who][accuracy["metric"]], accuracy["percent"])


def _notes(made: Exported) -> list[str]:
    record, accuracy = made.record, made.record["accuracy"]
    lines = [f"Run without sentei: its outputs equal those of the network on {len(record['errors'])} inputs."]
    if record["part"] is not None:
        lines.append(f"This is a part of the network, {record['part']}; what comes before and after it stays with you.")
    if accuracy is not None and accuracy["recorded"] is not None:
        value, recorded = accuracy["file"][accuracy["metric"]], accuracy["recorded"]
        same = abs(value - recorded) < max(0.5 / accuracy["images"], 1e-6 * abs(recorded))
        lines.append(f"The run recorded {'the same' if same else shown(recorded, accuracy['percent'])} "
                     f"on these {accuracy['images']:,} images.")  # fmt: skip
    if lost := record["left_out"]["parameters"]:
        lines.append(f"Left out: {lost:,} parameters that the file never reads.")
    if odd := record["odd_widths"]:
        named = ", ".join(f"{name} {width}" for name, width in list(odd.items())[:3])
        more = f" and {len(odd) - 3} more" if len(odd) > 3 else ""
        lines.append(f"Odd widths, no multiples of 4, run slower than their MACs tell: {named}{more}.")
    names = ", ".join(str(file.name) for file in made.files)
    lines.append(f"Hand over {names}; {made.sidecar.name} tells the rest. Loaders: docs/shipping.md")
    return lines
