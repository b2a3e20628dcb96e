"""Optional packages: there, or named in one line with what installs them."""

from __future__ import annotations

import importlib
from typing import Any

from sentei.errors import ExportError


def required(module: str, extra: str, what: str) -> Any:
    """An optional module; ExportError, with the command that installs it, where it is missing.

    >>> required("onnxruntime", "export", "format onnx")  # doctest: +SKIP
    <module 'onnxruntime' ...>
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        missing = (error.name or module).partition(".")[0]
        raise ExportError(f"{what} needs {missing}, which is not installed:  pip install 'sentei[{extra}]'") from error
