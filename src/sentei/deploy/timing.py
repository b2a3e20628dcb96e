"""How long forward passes take, fairly: all contenders in turn in every round, in an order that is shuffled anew."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Generic, TypeVar

import numpy as np

Name = TypeVar("Name", bound=Hashable)
Clock = Callable[[], float]
ALONE = 0.95
"""Share of the process's CPU time that the calling thread must have used to be the one that computes."""


def clock_for(once: Callable[[], object], threads: int, passes: int = 3) -> Clock:
    """CPU time of this thread where it computes alone, which a busy machine does not disturb; wall time elsewhere."""
    if threads != 1:
        return time.perf_counter
    once()
    process, thread = time.process_time(), time.thread_time()
    for _ in range(passes):
        once()
    alone = time.thread_time() - thread >= ALONE * (time.process_time() - process)
    return time.thread_time if alone else time.perf_counter


def clock_name(clock: Clock) -> str:
    """"thread" or "wall"."""
    return "thread" if clock is time.thread_time else "wall"


class Timer(Generic[Name]):
    """Times of several passes, gathered in rounds: `seconds[name]` is one number for each round.

    >>> timer = Timer({"dense": dense, "small": small}, time.thread_time)  # doctest: +SKIP
    >>> timer.round()  # doctest: +SKIP
    >>> timer.fast("small")  # seconds a pass  # doctest: +SKIP
    """

    def __init__(
        self, passes: Mapping[Name, Callable[[], object]], clock: Clock, shortest: float = 2e-3, seed: int = 0
    ) -> None:
        """`shortest`: a time is that of as many calls as last so many seconds together."""
        self._passes, self._clock, self._random = dict(passes), clock, random.Random(seed)
        self.seconds: dict[Name, list[float]] = {name: [] for name in passes}
        self._calls = {name: self._repeats(once, shortest) for name, once in self._passes.items()}

    def _repeats(self, once: Callable[[], object], shortest: float) -> int:
        once()
        started = self._clock()
        once()
        return max(1, round(shortest / max(self._clock() - started, 1e-7)))

    def round(self) -> None:
        order = list(self._passes)
        self._random.shuffle(order)
        for name in order:
            once, calls = self._passes[name], self._calls[name]
            started = self._clock()
            for _ in range(calls):
                once()
            self.seconds[name].append((self._clock() - started) / calls)

    def fast(self, name: Name) -> float:
        """Median of the fast half, in seconds a pass."""
        return fast_half(self.seconds[name])


def fast_half(seconds: Sequence[float]) -> float:
    """The median of the faster half of some times: what disturbs only ever slows down.

    >>> fast_half([3.0, 1.0, 9.0, 2.0])
    1.5
    """
    ordered = np.sort(np.asarray(seconds, np.float64))
    return float(np.median(ordered[: max(1, (len(ordered) + 1) // 2)]))
