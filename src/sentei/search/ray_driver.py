"""`python -m sentei.search.ray_driver FD PARENT`: hands the jobs that come through a pipe to actors on a Ray cluster.

A process of its own, because Ray ends its driver when the cluster breaks down.
"""

from __future__ import annotations

import logging
import os
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import ray

from sentei.errors import SearchError
from sentei.search.children import be_a_child
from sentei.search.jobs import RETRIES, Job, Outcome, attempt
from sentei.search.payload import unpack
from sentei.search.ray_cluster import DONE
from sentei.threads import available_cpus, set_threads


class Held:
    """What an actor holds."""

    def __init__(self, payload: bytes, threads: int) -> None:
        set_threads(threads)
        self.evaluator = unpack(payload)

    def evaluate(self, job: Job) -> Outcome:
        return attempt(self.evaluator, job)


class Actors:
    """As many actors as asked for; one that dies is replaced and its job given to another."""

    def __init__(self, payload: bytes, workers: int) -> None:
        address = os.environ.get("RAY_ADDRESS")
        local: dict[str, Any] = {} if address else {"include_dashboard": False, "num_cpus": available_cpus()}
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **local)
        self.workers = workers
        resources = ray.cluster_resources()
        self.options = {"num_cpus": _share(resources.get("CPU", 1), workers)}
        if resources.get("GPU"):
            self.options["num_gpus"] = _share(resources["GPU"], workers)
        self.threads = max(1, int(self.options["num_cpus"]))
        self.payload = ray.put(payload)
        self.crew: list[Any] = []

    def run(self, jobs: Sequence[Job]) -> Iterator[Outcome]:
        waiting, tries = deque(jobs), dict.fromkeys(jobs, 0)
        running: dict[Any, tuple[Any, Job]] = {}
        while waiting or running:
            busy = [actor for actor, _ in running.values()]
            while waiting and len(running) < self.workers:
                actor = self._idle(busy)
                busy.append(actor)
                job = waiting.popleft()
                running[actor.evaluate.remote(job)] = (actor, job)
            done, _ = ray.wait(list(running))
            for reference in done:
                actor, job = running.pop(reference)
                try:
                    yield ray.get(reference)
                except ray.exceptions.RayActorError as error:
                    yield from self._died(actor, job, error, waiting, tries)

    def _idle(self, busy: list[Any]) -> Any:
        for actor in self.crew:
            if actor not in busy:
                return actor
        self.crew.append(ray.remote(Held).options(**self.options).remote(self.payload, self.threads))
        return self.crew[-1]

    def _died(
        self, actor: Any, job: Job, error: Exception, waiting: deque[Job], tries: dict[Job, int]
    ) -> Iterator[Outcome]:
        self.crew.remove(actor)
        if "creation task" in str(error):
            raise SearchError(f"a Ray actor could not start: {error}")
        tries[job] += 1
        if tries[job] <= RETRIES:
            waiting.appendleft(job)
        else:
            yield Outcome(job, None, f"its Ray actor died {tries[job]} times", 0.0, lasting=False)


def _share(total: float, workers: int) -> float:
    """Whole units where there are enough for all, a fraction otherwise."""
    return float(total // workers) if total >= workers else total / workers


def main(descriptor: int, parent: int) -> None:
    pipe = be_a_child(descriptor, parent)
    try:
        actors = Actors(*pipe.recv())
        while True:
            for outcome in actors.run(pipe.recv()):
                pipe.send(outcome)
            pipe.send(DONE)
    except (EOFError, BrokenPipeError, ConnectionResetError):  # the parent has hung up
        pass
    except Exception as error:
        pipe.send(error if isinstance(error, SearchError) else SearchError(f"Ray: {type(error).__name__}: {error}"))
    ray.shutdown()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
