"""Workers on a Ray cluster: one actor each, which holds model and data."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from sentei.errors import ConfigError, SearchError
from sentei.search.children import Child
from sentei.search.evaluators import Evaluator
from sentei.search.jobs import Crew, Executor, Job, Outcome
from sentei.search.payload import pack
from sentei.threads import available_cpus

PATIENCE = 20.0
"""Seconds that a cluster of our own may take to shut down."""


def require_ray() -> None:
    if importlib.util.find_spec("ray") is None:
        raise ConfigError("this needs Ray, which is not installed:  pip install 'sentei[ray]'")


class RayCluster(Executor):
    """Actors on the hosts of a cluster, each with the processors and the fraction of a GPU that its `Crew` says.

    Joins the cluster at RAY_ADDRESS, failing that one already joined by this process, or starts a local one. Every
    machine of the cluster needs sentei and, for models from a file, what that file imports. Model and data go to each
    host once, through its object store. An actor that dies, alone or with its host, is replaced as soon as there is
    room, and its job given to another; SearchError if the cluster itself is lost.
    """

    def __init__(self, evaluator: Evaluator, crew: Crew) -> None:
        self.workers, payload = crew.workers, pack(evaluator)
        address = os.environ.get("RAY_ADDRESS") or _joined()
        place = {} if address is None else {"RAY_ADDRESS": address}
        self.driver = Child("sentei.search.ray_driver", available_cpus(), place)
        self.driver.pipe.send((crew, payload.folders))
        self.driver.pipe.send_bytes(payload.evaluator)

    def submit(self, job: Job) -> None:
        self._send([job])

    def run(self, jobs: Sequence[Job]) -> Iterator[Outcome]:
        self._send(list(jobs))
        for _ in jobs:
            yield self.take()

    def take(self) -> Outcome:
        try:
            message: Outcome | SearchError = self.driver.pipe.recv()
        except (EOFError, OSError) as error:
            raise self._lost() from error
        if isinstance(message, SearchError):
            raise message
        return message

    def close(self) -> None:
        self.driver.stop(PATIENCE)

    def _send(self, message: Any) -> None:
        try:
            self.driver.pipe.send(message)
        except OSError as error:
            if self.driver.pipe.closed or not self.driver.pipe.poll():  # nobody said why
                raise self._lost() from error

    def _lost(self) -> SearchError:
        return SearchError(
            f"the Ray cluster was lost: its driver ended with code {self.driver.ended()}, as it does when a raylet "
            "or the head node dies. Every structure that was measured is kept: once the cluster is back, go on "
            "with sentei resume, or with the same call"
        )


def _joined() -> str | None:
    """Address of the cluster that this process has joined."""
    ray = sys.modules.get("ray")
    return None if ray is None or not ray.is_initialized() else str(ray.get_runtime_context().gcs_address)
