"""Functions in a user's own file, named as ``path/to/file.py:function``."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sentei.errors import ModelError, SenteiError


def code_of(ref: str | None) -> str | None:
    """Checksum of the file that a reference FILE.py:FUNCTION names; None for other references.

    >>> code_of("resnet56") is None
    True
    """
    if ref is None or ".py:" not in ref:
        return None
    path = Path(ref.rpartition(":")[0]).expanduser()
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.is_file() else None


def code_of_class(kind: type) -> str | None:
    """Checksum of the code that a class comes from: of a user's file as a whole, elsewhere of the class alone.

    None for classes of sentei itself, and where there is no source to read.
    """
    if kind.__module__.startswith("sentei."):
        return None
    try:
        own = inspect.getsourcefile(kind) if kind.__module__.startswith("sentei_user_") else None
        text = inspect.getsource(kind) if own is None else Path(own).read_text()
    except (OSError, TypeError):
        return None
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def load_function(ref: str, error: type[SenteiError] = ModelError) -> Callable[..., Any]:
    """Import the file and return the function, or raise ``error`` saying what is wrong with the reference.

    >>> load_function("my_net.py:make")()  # doctest: +SKIP
    """
    function = load_value(ref, error, callable)
    assert callable(function)
    return function


def load_value(
    ref: str, error: type[SenteiError] = ModelError, wanted: Callable[[Any], bool] = lambda value: value is not None
) -> Any:
    """As `load_function`, for anything that a file may hold under a name."""
    file, _, name = ref.rpartition(":")
    path = Path(file).expanduser()
    if not file.endswith(".py") or not name.isidentifier():
        raise error(f"{ref!r} is not of the form path/to/file.py:function.")
    if not path.is_file():
        raise error(f"{ref!r}: there is no file {path} (looked from {Path.cwd()}).")
    # One module per file, importable by name, so that data workers and torch.compile find its classes.
    module_name = f"sentei_user_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    sys.path.insert(0, str(path.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except Exception as problem:
        raise error(f"{path} failed to import: {type(problem).__name__}: {problem}") from problem
    finally:
        sys.path.remove(str(path.resolve().parent))
    value = getattr(module, name, None)
    if not wanted(value):
        public = [n for n, v in vars(module).items() if callable(v) and getattr(v, "__module__", "") == module_name]
        raise error(f"{path} has no function {name!r}. It defines: {', '.join(public) or 'none'}.")
    return value
