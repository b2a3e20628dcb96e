"""What a pruning method is: settings in, a cut network out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Self

from torch import nn

from sentei.data import Data
from sentei.methods.common.pruning import Pruning
from sentei.plan import Budget, Plan
from sentei.search.jobs import Crew, Where, count_workers, worker_threads
from sentei.train import Recipe


@dataclass(frozen=True)
class Found:
    """What a method hands over to be fine-tuned, saved and measured."""

    model: nn.Module
    """The cut network."""
    plan: Plan
    """The plan of the dense model's graph that leads to its shapes."""
    cuts: list[dict[str, Any]]
    """One record for each cut, as `Pruning.cut` returns them."""
    report: dict[str, Any] = field(default_factory=dict)
    """What the summary says beyond that: plain values."""
    again: Callable[[Budget, str], Found] | None = None
    """The same under another budget, without searching or training anew; the text names what is stored of it."""


CHANGES_NOTHING = {"changes": "nothing"}
"""Metadata of a field that the result does not depend on: a run may be resumed with another value."""
WHETHER = {"changes": "whether"}
"""Metadata of a field of which a run only has to know whether it was given."""


class Method(ABC):
    """Base of the methods: frozen dataclasses of everything that decides how one runs; all fields are plain values.

    The fields are keywords of `sentei.prune` and options of `sentei prune --method NAME`; the text below each is its
    help. `__post_init__` refuses what is out of range with a ConfigError.
    """

    @property
    @abstractmethod
    def about(self) -> str:
        """What it does, in one line."""

    @property
    def budgeted(self) -> bool:
        """Whether a budget decides the size of the result; otherwise the method's own settings do."""
        return True

    @property
    def reads(self) -> tuple[str, ...]:
        """Folders of other runs that it uses; they are never overwritten."""
        return ()

    def resolved(self) -> Self:
        """With every setting that was left open decided."""
        return self

    def identity(self) -> dict[str, Any]:
        """What decides the result, as a run compares it when it is resumed: contents, not places."""
        return deciding(self)

    @property
    def worker_threads(self) -> int | None:
        """Threads of each worker process; None where there are none."""
        return None

    def trains_on(self, data: Data, recipe: Recipe) -> dict[str, int]:
        """Training images before the final fine-tuning, at most, by the setting that decides how many.

        Methods that train on the way say so here; only then can a total be shared out (`total_images`).
        """
        return {}

    def judges_on(self, held: int) -> int:
        """Samples that go through structures to judge them, without training, at most; over all structures.

        `held` are the validation samples that there are.
        """
        return 0

    @abstractmethod
    def find(self, pruning: Pruning) -> Found:
        """Choose what goes, from training and validation images only, and cut it."""


@dataclass(frozen=True, kw_only=True)
class Workers:
    """Where structures are measured; the settings of what measures some, and of several methods at once.

    >>> Workers(executor="ray", processes=64, worker_gpus=0.25).of(("executor", "processes"))
    {'executor': 'ray', 'processes': 64}
    """

    executor: Where = field(default="here", metadata=CHANGES_NOTHING)
    """Where structures are measured: here, in worker processes of this machine, or on a Ray cluster."""
    processes: int | None = field(default=None, metadata=CHANGES_NOTHING)
    """Workers of the executors process and ray; one for each processor of this machine unless given."""
    worker_cpus: float | None = field(default=None, metadata=CHANGES_NOTHING)
    """Processors of each worker on a Ray cluster; its share of those that the cluster has at the start unless given."""
    worker_gpus: float | None = field(default=None, metadata=CHANGES_NOTHING)
    """GPUs of each worker on a Ray cluster, 0.25 for four workers on each GPU; its share of them unless given."""

    def __post_init__(self) -> None:
        _ = self.crew

    @property
    def workers(self) -> int:
        return count_workers(self.executor, self.processes)

    @property
    def crew(self) -> Crew:
        return Crew(self.executor, self.workers, self.worker_cpus, self.worker_gpus)

    def of(self, known: Iterable[str]) -> dict[str, Any]:
        """What was asked for, of the options that a method knows."""
        asked = {f.name: value for f in fields(self) if (value := getattr(self, f.name)) != f.default}
        return {name: value for name, value in asked.items() if name in set(known)}


@dataclass(frozen=True, kw_only=True)
class InWorkers(Workers, Method):
    """Base of the methods that measure structures."""

    @property
    def worker_threads(self) -> int | None:
        return worker_threads(self.executor, self.workers)


def settings_of(method: Any) -> dict[str, Any]:
    """The fields of a method (or of any such dataclass) as what JSON and YAML can hold."""
    values = {f.name: getattr(method, f.name) for f in fields(method)}
    return {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}


def deciding(method: Any) -> dict[str, Any]:
    """Those of its settings that decide the result."""
    free = {f.name for f in fields(method) if f.metadata == CHANGES_NOTHING}
    found = {name: value for name, value in settings_of(method).items() if name not in free}
    return found | {f.name: True for f in fields(method) if f.metadata == WHETHER and found[f.name] is not None}


def like(method: Method, settings: Mapping[str, Any]) -> Method:
    """A method of the same kind with settings that `settings_of` wrote."""
    values = {name: tuple(v) if isinstance(v, list) else v for name, v in settings.items()}
    return type(method)(**values)
