"""Evaluations as jobs: what a worker is given, what comes of it, and how many workers there are."""

from __future__ import annotations

import math
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self, get_args

import numpy as np

from sentei.errors import ConfigError, SearchError, SenteiError
from sentei.search.evaluators import Evaluator
from sentei.threads import available_cpus

Where = Literal["here", "process", "ray"]
RETRIES = 2
"""How often a structure is tried again after its worker died."""


@dataclass(frozen=True)
class Job:
    """One evaluation: its number in the search, the widths, and the share of the full effort."""

    number: int
    widths: tuple[int, ...]
    share: float = 1.0


@dataclass(frozen=True)
class Outcome:
    """What came of a job: a result, or the reason why there is none."""

    job: Job
    result: dict[str, float] | None
    error: str | None
    seconds: float
    lasting: bool = True
    """Whether another attempt would fail alike; not so where memory ran out or a worker died."""


class Executor(ABC):
    """Runs jobs on an evaluator it was made with; a context manager that ends its workers."""

    workers: int

    @abstractmethod
    def submit(self, job: Job) -> None:
        """Have a job done as soon as a worker is free, first come first served."""

    @abstractmethod
    def take(self) -> Outcome:
        """Wait for the next outcome of the jobs that were submitted, whichever is ready first."""

    @abstractmethod
    def close(self) -> None:
        """End the workers."""

    def run(self, jobs: Sequence[Job]) -> Iterator[Outcome]:
        """One outcome for each job as it is ready, in any order."""
        for job in jobs:
            self.submit(job)
        for _ in jobs:
            yield self.take()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True)
class Crew:
    """Where structures are evaluated, by how many workers, and what each of them gets.

    >>> Crew("ray", 64, gpus=0.25)  # four workers share a GPU, wherever the cluster has any
    Crew(where='ray', workers=64, cpus=None, gpus=0.25)

    ConfigError for a number that makes no sense there.
    """

    where: Where = "here"
    workers: int = 1
    cpus: float | None = None
    """Processors of each worker on a Ray cluster; its share of those that the cluster has at the start unless given."""
    gpus: float | None = None
    """GPUs of each worker on a Ray cluster, a fraction or a whole number; its share of them unless given."""

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ConfigError(f"workers is {self.workers}; expected 1 or more")
        if self.where not in get_args(Where):
            raise ConfigError(f"executor is {self.where!r}; expected 'here', 'process' or 'ray'")
        if self.where == "here" and self.workers != 1:
            raise ConfigError(f"one process has one worker, not {self.workers}; choose 'process' or 'ray' for more")
        for name, value, least in (("worker_cpus", self.cpus, "more than 0"), ("worker_gpus", self.gpus, "0 or more")):
            if value is not None and self.where != "ray":
                raise ConfigError(f"{name} is {value} with executor={self.where!r}; it belongs to executor='ray'")
            if value is not None and (not math.isfinite(value) or value < 0 or (name == "worker_cpus" and value == 0)):
                raise ConfigError(f"{name} is {value}; expected {least}")
        if self.gpus is not None and self.gpus > 1 and self.gpus != int(self.gpus):
            raise ConfigError(f"worker_gpus is {self.gpus}; expected a fraction up to 1, or a whole number")


def attempt(evaluator: Evaluator, job: Job) -> Outcome:
    """Evaluate one job; an exception becomes its outcome."""
    started = time.perf_counter()
    result, error, lasting = None, None, True
    try:
        result = _checked(evaluator(np.array(job.widths, np.int64), job.share))
    except SenteiError as problem:
        error = str(problem)
    except Exception as problem:
        error, lasting = f"{type(problem).__name__}: {problem}", False
    return Outcome(job, result, error, round(time.perf_counter() - started, 3), lasting)


def _checked(result: Mapping[str, float]) -> dict[str, float]:
    """What an evaluator returned, as plain numbers; SearchError if there is no fitness to compare."""
    if not isinstance(result, Mapping) or "fitness" not in result:
        raise SearchError(f"the evaluator returned {result!r}; expected a dictionary with 'fitness'")
    plain = {name: float(value) for name, value in result.items()}
    if not math.isfinite(plain["fitness"]):
        raise SearchError(f"the fitness is {plain['fitness']}; expected a finite number")
    return plain


def count_workers(where: Where, processes: int | None) -> int:
    """Workers for an executor: as many as asked for, else one for each processor; one in this process.

    ConfigError for a number that makes no sense there.
    """
    if processes is not None and processes < 1:
        raise ConfigError(f"processes is {processes}; expected 1 or more")
    if processes is not None and where == "here":
        raise ConfigError(
            f"processes is {processes}, but structures are measured in this process; choose worker processes "
            "(executor='process', --executor process) or a cluster ('ray')"
        )
    return 1 if where == "here" else processes or available_cpus()


def worker_threads(where: Where, workers: int) -> int | None:
    """Threads of each worker process on this machine, OMP_NUM_THREADS at most; None where there are none.

    A worker on a Ray cluster has as many as its share of the cluster's processors.
    """
    if where != "process":
        return None
    bound = int(os.environ.get("OMP_NUM_THREADS") or available_cpus())
    return max(1, min(available_cpus() // workers, bound))
