"""Workers on a Ray cluster: one actor each, which holds model and data."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

from sentei.errors import ConfigError, SearchError
from sentei.search.evaluators import Evaluator
from sentei.search.executors import RETRIES, Job, Outcome, attempt
from sentei.search.payload import pack, unpack
from sentei.train.threads import available_cpus, set_threads


def require_ray() -> None:
    if importlib.util.find_spec("ray") is None:
        raise ConfigError("this needs Ray, which is not installed:  pip install 'sentei[ray]'")


class Held:
    """What an actor holds."""

    def __init__(self, payload: bytes, threads: int) -> None:
        set_threads(threads)
        self.evaluator = unpack(payload)

    def evaluate(self, job: Job) -> Outcome:
        return attempt(self.evaluator, job)


class RayCluster:
    """Actors with processors / workers each, and with a fraction of a GPU where the cluster has any.

    Joins the cluster at RAY_ADDRESS, failing that one already joined by this process, or starts a local one. Every
    machine of the cluster needs sentei and, for models from a file, what that file imports. An actor that dies is
    replaced and its job given to another.
    """

    def __init__(self, evaluator: Evaluator, workers: int) -> None:
        import ray

        self.ray, self.workers = ray, workers
        self.started = not ray.is_initialized()
        if self.started:
            address = os.environ.get("RAY_ADDRESS")
            local: dict[str, Any] = {} if address else {"include_dashboard": False, "num_cpus": available_cpus()}
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **local)
        resources = ray.cluster_resources()
        self.options = {"num_cpus": _share(resources.get("CPU", 1), workers)}
        if resources.get("GPU"):
            self.options["num_gpus"] = _share(resources["GPU"], workers)
        self.threads = max(1, int(self.options["num_cpus"]))
        self.payload = ray.put(pack(evaluator))
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
            done, _ = self.ray.wait(list(running))
            for reference in done:
                actor, job = running.pop(reference)
                try:
                    yield self.ray.get(reference)
                except self.ray.exceptions.RayActorError as error:
                    yield from self._died(actor, job, error, waiting, tries)

    def _idle(self, busy: list[Any]) -> Any:
        for actor in self.crew:
            if actor not in busy:
                return actor
        self.crew.append(self.ray.remote(Held).options(**self.options).remote(self.payload, self.threads))
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

    def close(self) -> None:
        for actor in self.crew:
            self.ray.kill(actor)
        self.crew.clear()
        if self.started:
            self.ray.shutdown()


def _share(total: float, workers: int) -> float:
    """Whole units where there are enough for all, a fraction otherwise."""
    return float(total // workers) if total >= workers else total / workers
