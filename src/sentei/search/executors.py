"""Where structures are evaluated: in this process, in worker processes, or on a Ray cluster.

The result of a search does not depend on that, nor on the number of workers; that of a steady-state search depends on
the order of answers alone, which its journal keeps.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence

from sentei.search.evaluators import Evaluator
from sentei.search.jobs import Crew, Executor, Job, Outcome, Where, attempt
from sentei.search.processes import Processes
from sentei.search.ray_cluster import RayCluster, require_ray


class InProcess(Executor):
    """One job after the other, in this process."""

    workers = 1

    def __init__(self, evaluator: Evaluator) -> None:
        self.evaluator = evaluator
        self.waiting: deque[Job] = deque()

    def submit(self, job: Job) -> None:
        self.waiting.append(job)

    def take(self) -> Outcome:
        return attempt(self.evaluator, self.waiting.popleft())

    def close(self) -> None:
        self.waiting.clear()


class Lazy(Executor):
    """An executor that is started by the first job, so that a search whose answers are all known starts none."""

    def __init__(self, start: Callable[[], Executor], workers: int) -> None:
        self.start, self.workers = start, workers
        self.executor: Executor | None = None

    def submit(self, job: Job) -> None:
        self._started().submit(job)

    def take(self) -> Outcome:
        return self._started().take()

    def run(self, jobs: Sequence[Job]) -> Iterator[Outcome]:
        return self._started().run(jobs) if jobs else iter(())

    def close(self) -> None:
        if self.executor is not None:
            self.executor.close()

    def _started(self) -> Executor:
        if self.executor is None:
            self.executor = self.start()
        return self.executor


def open_executor(where: Where | Crew, evaluator: Evaluator, workers: int = 1) -> Lazy:
    """An executor with so many workers, to be used in a `with` statement.

    >>> with open_executor("process", evaluator, workers=2) as executor:
    ...     outcomes = list(executor.run([Job(0, (16, 24, 10))]))

    A `Crew` says where, how many and what each gets. ConfigError for an unknown place, a number of workers that makes
    no sense there, or a package that is missing.
    """
    crew = where if isinstance(where, Crew) else Crew(where, workers)
    if crew.where == "here":
        return Lazy(lambda: InProcess(evaluator), 1)
    if crew.where == "process":
        return Lazy(lambda: Processes(evaluator, crew.workers), crew.workers)
    require_ray()
    return Lazy(lambda: RayCluster(evaluator, crew), crew.workers)
