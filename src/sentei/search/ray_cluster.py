"""Workers on a Ray cluster: one actor each, which holds model and data."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator, Sequence

from sentei.errors import ConfigError, SearchError
from sentei.search.children import Child
from sentei.search.evaluators import Evaluator
from sentei.search.jobs import Job, Outcome
from sentei.search.payload import pack
from sentei.threads import available_cpus

DONE = "done"
PATIENCE = 20.0
"""Seconds that a cluster of our own may take to shut down."""


def require_ray() -> None:
    if importlib.util.find_spec("ray") is None:
        raise ConfigError("this needs Ray, which is not installed:  pip install 'sentei[ray]'")


class RayCluster:
    """Actors with processors / workers each, and with a fraction of a GPU where the cluster has any.

    Joins the cluster at RAY_ADDRESS, failing that one already joined by this process, or starts a local one. Every
    machine of the cluster needs sentei and, for models from a file, what that file imports. An actor that dies is
    replaced and its job given to another; SearchError if the cluster itself is lost.
    """

    def __init__(self, evaluator: Evaluator, workers: int) -> None:
        self.workers, payload = workers, pack(evaluator)
        address = os.environ.get("RAY_ADDRESS") or _joined()
        place = {} if address is None else {"RAY_ADDRESS": address}
        self.driver = Child("sentei.search.ray_driver", available_cpus(), place)
        self.driver.pipe.send((payload, workers))

    def run(self, jobs: Sequence[Job]) -> Iterator[Outcome]:
        try:
            self.driver.pipe.send(list(jobs))
            while (message := self.driver.pipe.recv()) != DONE:
                if isinstance(message, SearchError):
                    raise message
                yield message
        except (EOFError, OSError) as error:
            raise SearchError(
                f"the Ray cluster was lost: its driver ended with code {self.driver.ended()}, as it does when a raylet "
                "or the head node dies. Every structure that was measured is kept: once the cluster is back, go on "
                "with sentei resume, or with the same call"
            ) from error

    def close(self) -> None:
        self.driver.stop(PATIENCE)


def _joined() -> str | None:
    """Address of the cluster that this process has joined."""
    ray = sys.modules.get("ray")
    return None if ray is None or not ray.is_initialized() else str(ray.get_runtime_context().gcs_address)
