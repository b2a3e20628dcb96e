"""Formats that networks leave in."""

from __future__ import annotations

from sentei.deploy.formats.executorch import ExecuTorch
from sentei.deploy.formats.format import Format
from sentei.deploy.formats.onnx import Onnx
from sentei.deploy.formats.openvino import OpenVino
from sentei.deploy.formats.pt2 import Pt2
from sentei.errors import ExportError

FORMATS: dict[str, Format] = {f.name: f for f in (Onnx(), Pt2(), OpenVino(), ExecuTorch())}


def format_of(name: str) -> Format:
    """The format of that name, with all that it needs installed; ExportError if there is none or something is missing.

    >>> format_of("onnx").suffix  # doctest: +SKIP
    '.onnx'
    """
    if name not in FORMATS:
        raise ExportError(f"there is no format {name!r}; expected one of {', '.join(FORMATS)}")
    FORMATS[name].require()
    return FORMATS[name]
