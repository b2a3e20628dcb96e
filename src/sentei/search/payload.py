"""An evaluator as bytes that another process can open, classes of the user's own files and scripts included."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle

from sentei.errors import SearchError
from sentei.search.evaluators import Evaluator


@dataclass(frozen=True)
class Payload:
    """A packed evaluator, with its model and data. It is made once for a search and goes to each worker once."""

    evaluator: bytes
    folders: tuple[str, ...]
    """Folders from which its code may import."""


def pack(evaluator: Evaluator) -> Payload:
    """The evaluator as bytes; SearchError if it cannot leave this process."""
    with _by_value(_user_modules()):
        folders = tuple(str(Path(m.__file__).parent) for m in _user_modules() if m.__file__)
        try:
            return Payload(cloudpickle.dumps(evaluator), folders)
        except Exception as error:
            raise SearchError(
                "the model, what its file defines or the function that evaluates it cannot be sent to another process: "
                f"{error}. Search in this process (executor 'here'), or keep such objects out of them"
            ) from error


def unpack(evaluator: Any, folders: tuple[str, ...]) -> Evaluator:
    """The evaluator of a payload, whose bytes may lie in any buffer."""
    sys.path.extend(f for f in folders if f not in sys.path)
    found: Evaluator = cloudpickle.loads(evaluator)
    return found


def _user_modules() -> list[ModuleType]:
    """Modules that were loaded from a file under a name which another process cannot import."""
    return [m for name, m in sys.modules.items() if name.startswith("sentei_user_")]


@contextmanager
def _by_value(modules: list[ModuleType]) -> Iterator[None]:
    for module in modules:
        cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in modules:
            cloudpickle.unregister_pickle_by_value(module)
