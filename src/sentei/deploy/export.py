"""A network as a file that runs without sentei, proven before it is handed over."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from sentei.data import Data
from sentei.data.batches import mapped
from sentei.deploy.axes import Batch, Image, resized
from sentei.deploy.detectors import refuse_boxes
from sentei.deploy.formats import Format, format_of
from sentei.deploy.handover import described, files_of, hand_over, workshop
from sentei.deploy.making import Job, Made, Say
from sentei.deploy.plain import Plain
from sentei.deploy.proof import SAYS_LITTLE, variation
from sentei.deploy.record import (
    Statistics,
    classes_of,
    facts_of,
    heading,
    inputs_of,
    normalisation_of,
    outputs_of,
)
from sentei.errors import ExportError
from sentei.graph.inputs import arguments
from sentei.graph.part import Forward, check_forward, name_of
from sentei.runfiles import SIDECAR
from sentei.sealed import sealed_json
from sentei.surgery.belongs import unwrapped
from sentei.tasks import Task, task_of


@dataclass(frozen=True)
class Exported:
    """A file that was proven, and what is known of it."""

    path: Path
    files: tuple[Path, ...]
    """All that has to be handed over; OpenVINO keeps weights in a second file."""
    sidecar: Path
    seconds: float
    record: dict[str, Any] = field(repr=False)
    """What the sidecar says."""

    @property
    def checksum(self) -> str:
        """SHA-256 of `path`."""
        return str(self.record["files"][0]["sha256"])

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return sum(int(file["bytes"]) for file in self.record["files"])

    @property
    def max_error(self) -> float:
        """Largest max|a - b| / max|b| between the outputs a of the file and b of the network."""
        return float(self.record["max_error"])

    @property
    def figures(self) -> dict[str, float] | None:
        """What the file reached on validation data; None if it was not measured."""
        accuracy = self.record["accuracy"]
        return None if accuracy is None else dict(accuracy["file"])


def export(
    model: nn.Module,
    example: Any,
    path: str | Path,
    *,
    format: str = "onnx",
    batch: Batch = None,
    image: Image = None,
    forward: Forward | None = None,
    outputs: Sequence[str] | None = None,
    tolerance: float | None = None,
    data: Data | None = None,
    task: str | Task | None = None,
    images: int | None = None,
    recorded: float | None = None,
    normalisation: Statistics | None = None,
    classes: int | Sequence[str] | None = None,
    source: str | None = None,
    say: Say | None = None,
    progress: bool = False,
) -> Exported:
    """Write a network as a file that runs without sentei, after proof that it computes the same.

    >>> sentei.export(small, torch.zeros(1, 3, 224, 224), "small.onnx")  # doctest: +SKIP
    >>> sentei.export(small, x, "small.xml", format="openvino", batch="dynamic", data=data)  # doctest: +SKIP

    Args:
        model: any network; it is left as it is. A copy is exported, on the CPU and in eval mode.
        example: what it is called with: a tensor, a tuple (by position) or a dict (by keyword), as for `trace`.
        path: the file, or a folder, in which it is called `model`. Beside it comes `FILE.export.json`.
        format: ``onnx``, ``pt2`` (torch.export), ``openvino`` or ``executorch``.
        batch: samples that the file takes at once: a number, ``"dynamic"`` for any, or None for those of the example.
        image: height and width of inputs N,C,H,W, in pixels: a number, a pair, ``"dynamic"`` or None likewise.
        forward: ``forward(model, *inputs)``, to export the part of the model that it runs.
        outputs: names of the outputs that are wanted, where the network returns a mapping; all but those that begin
            with ``aux`` unless given.
        tolerance: largest max|a - b| / max|b| between the outputs a of the file and b of the network; 1e-5 in float32
            unless given, 5e-2 in float16.
        data: validation data, on which the file and the network are measured; class names and normalisation are
            taken from it.
        task: what the network is for: a name, a `Task`, or what the data are for. A task with a `forward` of its own
            exports the part that it runs.
        images: validation samples to measure on, evenly spaced; all unless given, none for 0.
        recorded: the metric that is known of the network on all validation data, for the record.
        normalisation: (mean, std) of the channels, for pixels in 0..1, as the network was trained with.
        classes: their number, or their names in the order of the outputs.
        source: where the network comes from, for the record.
        say: takes a line of text at a time; what is worth knowing of the way.
        progress: show a bar while the file is measured on a terminal.

    The file is read back and run in a process in which sentei cannot be imported. Its outputs on three seeded inputs,
    and on other batches and another image size where these are free, are within 1e-5 of the network's (float32,
    relative to the largest output). The record in the file and beside it says what that found: see docs/shipping.md.

    Raises ExportError, before anything is written, if a package is missing, if the network cannot be exported in this
    format (for ``"dynamic"``: which of the two it is, and what can be had), or if the file computes something else.
    """
    started, tell = time.perf_counter(), say or (lambda line: None)
    kind = format_of(format)
    where = _target(Path(path), kind)
    check_forward(forward)
    model = unwrapped(model)
    task = task_of(task, data) if task is not None or data is not None else None
    forward = forward or (None if task is None else task.part)
    refuse_boxes(model, forward)
    network = copy.deepcopy(model).cpu().eval()
    plain = Plain(network, _as_taken(network, example), forward, outputs)
    with workshop(where.parent) as place:
        job = Job.of(kind, plain, _as_taken(network, example), batch, image, tolerance)
        made = job.made(place / where.name)
        accuracy = None
        if data is not None and task is not None and images != 0:
            accuracy = made.accuracy(data, task, images, recorded, progress, tell)
        if plain.left_out:
            tell(f"Left out: {', '.join(plain.left_out)}, which serves training alone; `outputs` can name it")
        record = {
            **heading(kind, network, source),
            **_facts(made, forward),
            "normalisation": normalisation_of(normalisation, data, network),
            "classes": classes_of(classes, data),
            "accuracy": accuracy,
        }
        if record["variation"] < SAYS_LITTLE:
            tell("The network answers all random inputs alike, so that equal outputs say little: measure it on data")
        files = made.sealed(record)
        seconds = time.perf_counter() - started
        record |= {"seconds": round(seconds, 2), "files": described(files)}
        sidecar = place / (where.name + SIDECAR)
        sidecar.write_bytes(sealed_json(record))
        before = files_of(where.parent / sidecar.name)
        moved = hand_over([*reversed(files), sidecar], where.parent)
        for name in before - {file.name for file in moved}:  # weights beside a file that now holds its own
            (where.parent / name).unlink(missing_ok=True)
    return Exported(where, tuple(moved[-2::-1]), moved[-1], seconds, record)


def _facts(made: Made, forward: Forward | None) -> dict[str, Any]:
    """What the network is, and that the file is the same."""
    plain, whole = made.plain, made.plain.whole
    example = plain.arguments(resized(made.tensors, 1))
    parameters = sum(p.numel() for p in whole.parameters())
    return {
        "part": None if forward is None else name_of(forward),
        "inputs": inputs_of(plain.names, made.tensors, made.free, made.kind.bounded),
        "outputs": outputs_of([case.outputs for case in made.cases]),
        **facts_of(whole, example[0] or example[1], forward),
        "parameters": made.parameters,
        "left_out": {"parameters": parameters - made.parameters, "outputs": list(plain.left_out)},
        "max_error": max(made.errors.values()),
        "errors": made.errors,
        "variation": variation(made.cases),
    }


def _target(path: Path, kind: Format) -> Path:
    if path.is_dir():
        return path / f"model{kind.suffix}"
    if path.suffix != kind.suffix:
        raise ExportError(
            f"format {kind.name} is written to a file {kind.suffix}, got {path}: name it {path.name}{kind.suffix}"
        )
    return path


def _as_taken(network: nn.Module, example: Any) -> Any:
    """The example where the network is, in its precision, where it has a single one."""
    dtypes = {p.dtype for p in network.parameters() if p.is_floating_point()}
    dtype = dtypes.pop() if len(dtypes) == 1 else None
    args, kwargs = arguments(example)
    return mapped(args or kwargs, lambda t: t.detach().to("cpu", dtype if t.is_floating_point() else None))
