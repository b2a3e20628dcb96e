"""How many threads to use: what the process may have, and no more."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch


def available_cpus() -> int:
    """CPUs this process may use: its affinity mask, further limited by the container's quota."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            cpus = min(cpus, max(1, int(quota) // int(period)))
    except (OSError, ValueError):
        pass
    return cpus


def set_threads(threads: int | None = None) -> int:
    """Set torch's threads and return their number.

    An explicit number wins, then OMP_NUM_THREADS; otherwise torch's own choice is cut to `available_cpus`,
    which it does not look at in a container.
    """
    if threads is None and "OMP_NUM_THREADS" in os.environ:
        return torch.get_num_threads()
    chosen = threads if threads is not None else min(torch.get_num_threads(), available_cpus())
    torch.set_num_threads(max(1, chosen))
    return torch.get_num_threads()


@contextmanager
def with_threads(threads: int) -> Iterator[None]:
    """So many of torch's threads inside, as many as before after it: the last bits of every result depend on them."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def computed_on(device: torch.device) -> dict[str, Any]:
    """What decides the last bits of every result: the device, and on a CPU the number of threads.

    Several processes are not told apart by their threads: a run may go on with another number of processes.
    """
    alone = device.type == "cpu" and int(os.environ.get("WORLD_SIZE", "1")) == 1
    return {"device": device.type} | ({"threads": torch.get_num_threads()} if alone else {})


def data_workers(requested: int | None = None) -> int:
    """Worker processes for image decoding; each runs one thread, and together no more than there are CPUs.

    Where torchrun starts several processes on a machine, each takes its share of them.
    """
    beside = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return min(8, max(1, available_cpus() // beside)) if requested is None else max(0, requested)
