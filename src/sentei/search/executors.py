"""Where structures are evaluated: in this process, in worker processes, or on a Ray cluster.

The result of a search does not depend on that, nor on the number of workers.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Protocol

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


class Executor(Protocol):
    """Runs jobs on an evaluator it was made with; a context manager that ends its workers."""

    workers: int

    def run(self, jobs: Sequence[Job]) -> Iterator[Outcome]:
        """One outcome for each job as it is ready, in any order."""
        ...

    def close(self) -> None: ...


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


class InProcess:
    """One job after the other, in this process."""

    workers = 1

    def __init__(self, evaluator: Evaluator) -> None:
        self.evaluator = evaluator

    def run(self, jobs: Sequence[Job]) -> Iterator[Outcome]:
        for job in jobs:
            yield attempt(self.evaluator, job)

    def close(self) -> None:
        pass


class Lazy:
    """An executor that is started by the first job, so that a search whose answers are all known starts none."""

    def __init__(self, start: Callable[[], Executor], workers: int) -> None:
        self.start, self.workers = start, workers
        self.executor: Executor | None = None

    def run(self, jobs: Sequence[Job]) -> Iterator[Outcome]:
        if jobs and self.executor is None:
            self.executor = self.start()
        return iter(()) if self.executor is None else self.executor.run(jobs)

    def close(self) -> None:
        if self.executor is not None:
            self.executor.close()

    def __enter__(self) -> Lazy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def count_workers(where: Where, processes: int | None) -> int:
    """Workers for an executor: as many as asked for, else one for each processor; one in this process.

    ConfigError for a number that makes no sense there.
    """
    if processes is not None and (processes < 1 or where == "here"):
        raise ConfigError(
            f"processes is {processes} with executor={where!r}; expected 1 or more, with executor='process' or 'ray'"
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


def open_executor(where: Where, evaluator: Evaluator, workers: int = 1) -> Lazy:
    """An executor with so many workers, to be used in a `with` statement.

    >>> with open_executor("process", evaluator, workers=2) as executor:
    ...     outcomes = list(executor.run([Job(0, (16, 24, 10))]))

    ConfigError for an unknown place, a number of workers that makes no sense there, or a package that is missing.
    """
    if workers < 1:
        raise ConfigError(f"workers is {workers}; expected 1 or more")
    if where == "here":
        if workers != 1:
            raise ConfigError(f"one process has one worker, not {workers}; choose 'process' or 'ray' for more")
        return Lazy(lambda: InProcess(evaluator), 1)
    if where == "process":
        from sentei.search.processes import Processes

        return Lazy(lambda: Processes(evaluator, workers), workers)
    if where == "ray":
        from sentei.search.ray_cluster import RayCluster, require_ray

        require_ray()
        return Lazy(lambda: RayCluster(evaluator, workers), workers)
    raise ConfigError(f"executor is {where!r}; expected 'here', 'process' or 'ray'")
