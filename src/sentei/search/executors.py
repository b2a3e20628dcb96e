"""Where structures are evaluated: in this process, in worker processes, or on a Ray cluster.

The result of a search does not depend on that, nor on the number of workers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from types import TracebackType

from sentei.errors import ConfigError
from sentei.search.evaluators import Evaluator
from sentei.search.jobs import Executor, Job, Outcome, Where, attempt
from sentei.search.processes import Processes
from sentei.search.ray_cluster import RayCluster, require_ray


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
        return Lazy(lambda: Processes(evaluator, workers), workers)
    if where == "ray":
        require_ray()
        return Lazy(lambda: RayCluster(evaluator, workers), workers)
    raise ConfigError(f"executor is {where!r}; expected 'here', 'process' or 'ray'")
