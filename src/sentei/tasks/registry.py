"""Tasks by name, from a user's file, or as they are."""

from __future__ import annotations

import inspect
from difflib import get_close_matches
from typing import Any

from sentei.data import Data
from sentei.data.dataset import kind_of
from sentei.errors import ConfigError
from sentei.models.user_file import load_value
from sentei.tasks.classification import Classification
from sentei.tasks.detection import Detection
from sentei.tasks.segmentation import Segmentation
from sentei.tasks.task import Task

TASKS: dict[str, Task] = {
    "classification": Classification(),
    "segmentation": Segmentation(),
    "detection": Detection(),
}


MADE_FOR = {"segmentation": "segmentation", "coco": "detection"}
"""Tasks by the kind of a data reference; the others are for classification."""


def task_of(given: str | Task | None = None, data: Data | str | None = None) -> Task:
    """A task by its name, from ``path/to/file.py:CLASS``, or as it was given; None is what the data are for.

    >>> task_of("segmentation").metric, task_of(None, "digits").metric, task_of(None, "coco:cells").metric
    ('miou', 'accuracy', 'map50')

    Args:
        given: a name of `TASKS`, a reference to a user's file, a task, or None.
        data: a data set, or the reference of one.

    What a file names may be a subclass of Task, which is made without arguments, a task, or a function that returns
    one. Data of your own are taken to be for classification.

    Raises ConfigError for an unknown name, with the nearest, and for what is no complete task, with what it lacks.
    """
    if isinstance(given, Task):
        if not isinstance(getattr(given, "metric", None), str):
            raise ConfigError(f"task {given.name} has no `metric`, the name of the figure that decides")
        return given
    name = _purpose(data) if given is None else given
    if not isinstance(name, str):
        return _made(name, f"task={name!r}")
    if ".py:" in name:
        return _made(load_value(name, ConfigError), name)
    if name in TASKS:
        return TASKS[name]
    near = get_close_matches(name.lower(), TASKS, 1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ConfigError(f"Unknown task {name!r}.{hint} Known: {', '.join(TASKS)}, path/to/file.py:CLASS.")


def _purpose(data: Data | str | None) -> str:
    """The name of the task that data are for."""
    if isinstance(data, Data):
        return str(data.description.get("task", "classification"))
    return "classification" if data is None else MADE_FOR.get(kind_of(data), "classification")


def _made(value: Any, told: str) -> Task:
    """A task of a class, a function or a task; `told` names where it came from."""
    if isinstance(value, type):
        _refuse_incomplete(value, told)
    if not isinstance(value, Task) and callable(value):
        try:
            value = value()
        except Exception as error:
            raise ConfigError(f"{told} failed without arguments: {type(error).__name__}: {error}") from error
    if not isinstance(value, Task):
        raise ConfigError(f"{told} is a {type(value).__name__}; expected a subclass of sentei.Task, or one made of it.")
    _refuse_incomplete(type(value), told)
    return value


def _refuse_incomplete(kind: type, told: str) -> None:
    needed = sorted(getattr(Task, "__abstractmethods__", ()))
    if not issubclass(kind, Task):
        absent = [name for name in ("metric", *needed) if not hasattr(kind, name)]
        lacks = f"; it lacks {', '.join(absent)}" if absent else ""
        raise ConfigError(
            f"{told}: class {kind.__name__} is not a sentei.Task{lacks}. Write class {kind.__name__}(Task)."
        )
    absent = [name for name in needed if name in getattr(kind, "__abstractmethods__", ())]
    if absent and inspect.isabstract(kind):
        raise ConfigError(f"{told}: class {kind.__name__} does not write {' and '.join(absent)}, which a task has to.")
    if not isinstance(getattr(kind, "metric", None), (str, property)):
        raise ConfigError(f"{told}: class {kind.__name__} has no `metric`, the name of the figure that decides.")
