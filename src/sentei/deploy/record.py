"""What an exported file says of itself, and the same with checksums beside it."""

from __future__ import annotations

import datetime
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

from torch import Tensor, nn

from sentei.data import Data
from sentei.deploy.axes import most_of
from sentei.deploy.formats import Format
from sentei.errors import TraceError
from sentei.graph import ChannelGraph, trace
from sentei.graph.part import Forward
from sentei.plan.constraints import FAST, channels_of
from sentei.runfiles import version
from sentei.tasks.detectors import is_detector

KIND, VERSION = "sentei export", 1
Statistics = tuple[Sequence[float], Sequence[float]]


def facts_of(model: nn.Module, example: Any, forward: Forward | None) -> dict[str, Any]:
    """MACs of the example, and layers of odd width; what cannot be known is None."""
    try:
        graph = trace(model, example, forward)
    except TraceError:
        return {"macs": None, "odd_widths": None}
    return {"macs": graph.cost().macs, "odd_widths": odd_widths(graph)}


def odd_widths(graph: ChannelGraph) -> dict[str, int]:
    """Channels of the groups that kernels, which work on several channels at once, are slow at."""
    channels = {g.name: g.width * channels_of(g) for g in graph.groups if not g.frozen}
    return {name: count for name, count in channels.items() if count >= 4 * FAST and count % FAST}


def inputs_of(
    names: Sequence[str], tensors: Sequence[Tensor], free: Sequence[Mapping[int, str]], bounded: bool
) -> list[dict[str, Any]]:
    """Name, dtype and shape of each input; a free dimension is a name, with its largest value where it has one."""
    out = []
    for name, tensor, dims in zip(names, tensors, free, strict=True):
        largest = {dims[d]: n for d, n in most_of(tensor, dims).items()} if bounded else {}
        out.append({"name": name, **_described(tensor, dims), **({"largest": largest} if largest else {})})
    return out


def outputs_of(cases: Sequence[Mapping[str, Tensor]]) -> list[dict[str, Any]]:
    """Name, dtype and shape of each output; sizes that differ from case to case are the batch, or None."""
    first, out = cases[0], []
    for name, tensor in first.items():
        dims = [d for d, n in enumerate(tensor.shape) if any(case[name].shape[d] != n for case in cases)]
        out.append({"name": name, **_described(tensor, {d: None if d else "batch" for d in dims})})
    return out


def _described(tensor: Tensor, dims: Mapping[int, str | None]) -> dict[str, Any]:
    shape = [dims.get(d, n) for d, n in enumerate(tensor.shape)]
    return {"shape": shape, "dtype": str(tensor.dtype).removeprefix("torch.")}


def normalisation_of(given: Statistics | None, data: Data | None, network: nn.Module) -> dict[str, Any] | None:
    """How pixels are brought to what the file takes: (pixel - mean) / std, channel by channel.

    Detectors do that themselves, before the part that is exported.
    """
    known = {} if data is None else data.description
    mean, std = given if given is not None else (known.get("mean"), known.get("std"))
    if mean is None and is_detector(network):
        mean, std = network.transform.image_mean, network.transform.image_std
    if mean is None or std is None:
        return None
    return {"of": "pixels in 0..1", "mean": [float(v) for v in mean], "std": [float(v) for v in std]}


def classes_of(given: int | Sequence[str] | None, data: Data | None) -> dict[str, Any] | None:
    """How many classes there are, and their names in the order of the outputs, as far as that is known."""
    if isinstance(given, int):
        return {"number": given, "names": None}
    if given is not None:
        return {"number": len(given), "names": list(given)}
    if data is None or data.num_classes is None:
        return None
    return {"number": data.num_classes, "names": None if data.class_names is None else list(data.class_names)}


def heading(format: Format, network: nn.Module, source: str | None) -> dict[str, Any]:
    """What the file is, and what made it."""
    made = {"python": platform.python_version(), "sentei": version(), "numpy": metadata.version("numpy")}
    return {
        "format": KIND, "version": VERSION, "kind": format.name,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "network": type(network).__name__, "source": source, "versions": {**made, **format.versions()},
    }  # fmt: skip

