"""`python -m sentei.search.ray_driver FD PARENT`: hands the jobs that come through a pipe to actors on a Ray cluster.

A process of its own, because Ray ends its driver when the cluster breaks down. Everything that happens, jobs that come,
actors that are ready, outcomes, is one queue, so that the cost of an outcome does not grow with the number of actors.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections import deque
from contextlib import suppress
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any

import numpy as np
import ray

from sentei.errors import SearchError
from sentei.search.children import be_a_child
from sentei.search.jobs import RETRIES, Crew, Job, Outcome, attempt
from sentei.search.payload import unpack
from sentei.threads import available_cpus, set_threads

READY = "ready"
LOSSES = 20
"""How often a job may be lost together with its host, which is not its fault, before it is given up."""
UNSTARTED = 20
"""So many actors in a row that died before they were ready tell that none will be."""


class Held:
    """What an actor holds."""

    def __init__(self, evaluator: np.ndarray, folders: tuple[str, ...], threads: int) -> None:
        set_threads(threads)
        self.evaluator = unpack(evaluator.data, folders)  # read where it lies in the host's object store

    def ready(self) -> str:
        return READY

    def evaluate(self, job: Job) -> Outcome:
        return attempt(self.evaluator, job)


class Actors:
    """As many actors as asked for. One that dies is replaced, and its job given to the next that is free.

    Only actors that said they are ready get jobs: one that waits for a host to come back holds nothing up.
    """

    def __init__(self, pipe: Connection, crew: Crew, evaluator: bytes, folders: tuple[str, ...]) -> None:
        address = os.environ.get("RAY_ADDRESS")
        local: dict[str, Any] = {} if address else {"include_dashboard": False, "num_cpus": available_cpus()}
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **local)
        self.pipe, self.workers, self.folders = pipe, crew.workers, folders
        self.options = options(crew, ray.cluster_resources())
        self.threads = max(1, int(self.options["num_cpus"]))
        self.payload = ray.put(np.frombuffer(evaluator, np.uint8))
        self.events: SimpleQueue[tuple[Any, ...]] = SimpleQueue()
        self.waiting: deque[Job] = deque()
        self.idle: list[Any] = []
        self.tries: dict[Job, int] = {}
        """How often an actor died of each job that has no outcome yet."""
        self.losses: dict[Job, int] = {}
        self.crew = 0
        """Actors, those included that are not ready yet."""
        self.unstarted = 0

    def serve(self) -> None:
        """Until the parent hangs up, which is an EOFError."""
        threading.Thread(target=self._listen, daemon=True).start()
        while True:
            kind, *told = self.events.get()
            if kind == "jobs":
                self.waiting.extend(told[0])
                self.tries |= dict.fromkeys(told[0], 0)
            elif kind == "gone":
                raise EOFError
            elif kind == "ready":
                self._is_ready(*told)
            else:
                self._is_done(*told)
            self._hire()
            while self.waiting and self.idle:
                self._start(self.idle.pop(), self.waiting.popleft())

    def _listen(self) -> None:
        with suppress(EOFError, OSError):
            while True:
                self.events.put(("jobs", self.pipe.recv()))
        self.events.put(("gone",))

    def _hire(self) -> None:
        """As many actors as there is work for."""
        while self.crew < min(self.workers, len(self.tries)):
            self.crew += 1
            held: Any = ray.remote(Held)
            actor = held.options(**self.options).remote(self.payload, self.folders, self.threads)
            self._watch("ready", actor.ready.remote(), actor)

    def _start(self, actor: Any, job: Job) -> None:
        self._watch("done", actor.evaluate.remote(job), actor, job)

    def _watch(self, kind: str, reference: Any, *about: Any) -> None:
        future = reference.future()
        future.add_done_callback(lambda done: self.events.put((kind, done, *about)))

    def _is_ready(self, done: Any, actor: Any) -> None:
        error = done.exception()
        if error is None:
            self.idle.append(actor)
            self.unstarted = 0
            return
        if "creation task" in str(error) or not isinstance(error, ray.exceptions.RayActorError):
            raise SearchError(f"a Ray actor could not start: {error}")
        self.unstarted += 1
        if self.unstarted > UNSTARTED:
            raise SearchError(f"{self.unstarted} Ray actors in a row died before they could start: {error}")
        self._dismiss(actor)

    def _is_done(self, done: Any, actor: Any, job: Job) -> None:
        error = done.exception()
        if error is None:
            self._answer(done.result())
            self.idle.append(actor)
        elif isinstance(error, ray.exceptions.RayActorError):
            self._dismiss(actor)
            self._again(job, error)
        else:
            raise error

    def _again(self, job: Job, error: Exception) -> None:
        """Put a job back to the front, or give it up after some attempts."""
        if with_its_host(error):
            self.losses[job] = self.losses.get(job, 0) + 1
        else:
            self.tries[job] += 1
        if self.tries[job] <= RETRIES and self.losses.get(job, 0) <= LOSSES:
            self.waiting.appendleft(job)
            return
        died = self.tries[job] + self.losses.get(job, 0)
        self._answer(Outcome(job, None, f"its Ray actor died {died} times", 0.0, lasting=False))

    def _answer(self, outcome: Outcome) -> None:
        self.tries.pop(outcome.job, None)
        self.losses.pop(outcome.job, None)
        self.pipe.send(outcome)

    def _dismiss(self, actor: Any) -> None:
        """Also one that only cannot be reached: were it still there, it would keep its resources."""
        self.crew -= 1
        with suppress(Exception):
            ray.kill(actor)


def options(crew: Crew, cluster: dict[str, float]) -> dict[str, float]:
    """What Ray is to reserve for each actor; of what is not said, an equal share of what the cluster has."""
    found = {"num_cpus": _share(cluster.get("CPU", 1), crew.workers) if crew.cpus is None else crew.cpus}
    if crew.gpus is not None:
        found["num_gpus"] = crew.gpus
    elif cluster.get("GPU"):
        found["num_gpus"] = _share(cluster["GPU"], crew.workers)
    return found


def with_its_host(error: Exception) -> bool:
    """Whether an actor was lost because its host went away or cannot be reached, whatever it computed.

    Ray says so in its text alone; where the process died, its advice may speak of nodes all the same.
    """
    told = str(error).lower()
    unreachable = isinstance(error, ray.exceptions.ActorUnavailableError)
    return unreachable or ("node" in told and "worker process has died" not in told)


def _share(total: float, workers: int) -> float:
    """Whole units where there are enough for all, a fraction otherwise."""
    return float(total // workers) if total >= workers else total / workers


def main(descriptor: int, parent: int) -> None:
    pipe = be_a_child(descriptor, parent)
    try:
        crew, folders = pipe.recv()
        Actors(pipe, crew, pipe.recv_bytes(), folders).serve()
    except (EOFError, BrokenPipeError, ConnectionResetError):  # the parent has hung up
        pass
    except Exception as error:
        pipe.send(error if isinstance(error, SearchError) else SearchError(f"Ray: {type(error).__name__}: {error}"))
    ray.shutdown()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
