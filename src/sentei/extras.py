"""Optional packages: there, or named in one line with what installs them."""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any

from sentei.errors import ExportError, SenteiError


def required(module: str, extra: str, what: str, wrong: type[SenteiError] = ExportError) -> Any:
    """An optional module; an error, with the command that installs it, where it is missing.

    >>> required("onnxruntime", "export", "format onnx")  # doctest: +SKIP
    <module 'onnxruntime' ...>
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        missing = (error.name or module).partition(".")[0]
        raise wrong(f"{what} needs {missing}, which is not installed:  pip install 'sentei[{extra}]'") from error


@cache
def openvino_core() -> Any:
    """OpenVINO's core, one for all networks of this process.

    Each core lends the thread a signal stack and, when it is gone, gives back the stack that it found. Of two that end
    in the order in which they began, the second gives back that of the first, which is no more: the next signal that
    Python handles, such as that of a DataLoader's worker that ends, would kill the process (OpenVINO 2026.4).
    """
    return required("openvino", "openvino", "OpenVINO").Core()
