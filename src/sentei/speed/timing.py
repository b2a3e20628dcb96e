"""How long forward passes take, fairly: all contenders in turn in every round, in an order that is shuffled anew."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

Name = TypeVar("Name", bound=Hashable)
Clock = Callable[[], float]
ALONE = 0.95
"""Share of the process's CPU time that the calling thread must have used to be the one that computes."""
SURE = 0.02
"""Width of an interval, relative to its value, at which measuring ends."""
FEWEST, FIRST, GROWTH = 5, 16, 1.25
"""Rounds that there are in any case, rounds before the first look at an interval, and growth until the next look."""
RESAMPLES = 1000


def clock_for(once: Callable[[], object], threads: int, passes: int = 3, device: str = "cpu") -> Clock:
    """CPU time of this thread where it computes alone, which a busy machine does not disturb; wall time elsewhere."""
    if threads != 1 or device != "cpu":
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

    @property
    def rounds(self) -> int:
        """How many there were."""
        return min(map(len, self.seconds.values()), default=0)

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

    def interval(self, name: Name) -> Interval:
        """Seconds a pass."""
        return interval(self.seconds[name])

    def speedup(self, name: Name, over: Name) -> Interval:
        """How many times faster one is than the other."""
        return interval(self.seconds[over], self.seconds[name])


def fast_half(seconds: Sequence[float] | np.ndarray) -> float:
    """The median of the faster half of some times: what disturbs only ever slows down.

    >>> fast_half([3.0, 1.0, 9.0, 2.0])
    1.5
    """
    return float(_fast_half(np.asarray(seconds, np.float64)))


def _fast_half(times: np.ndarray) -> np.ndarray:
    """Along the last axis."""
    half = max(1, (times.shape[-1] + 1) // 2)
    found: np.ndarray = np.median(np.sort(times, -1)[..., :half], -1)
    return found


@dataclass(frozen=True)
class Interval:
    """A measured value and the 95 % interval around it."""

    value: float
    low: float
    high: float

    @property
    def width(self) -> float:
        """Relative to the value."""
        return (self.high - self.low) / self.value if self.value > 0 else float("inf")

    def times(self, factor: float) -> Interval:
        return Interval(self.value * factor, self.low * factor, self.high * factor)


def interval(over: Sequence[float], under: Sequence[float] | None = None, seed: int = 0) -> Interval:
    """Fast half of some times, or of their ratio to those that were taken in the same rounds, with its interval.

    >>> interval([2.0, 2.0, 2.0], [1.0, 1.0, 1.0])
    Interval(value=2.0, low=2.0, high=2.0)

    By the bootstrap: rounds are drawn anew, all times of a round together.
    """
    times = np.asarray([over] if under is None else [over, under], np.float64)
    drawn = np.random.default_rng(seed).integers(times.shape[1], size=(RESAMPLES, times.shape[1]))
    fast, again = _fast_half(times), _fast_half(times[:, drawn])
    value, values = (fast[0], again[0]) if under is None else (fast[0] / fast[1], again[0] / again[1])
    low, high = np.quantile(values, (0.025, 0.975))
    return Interval(float(value), float(low), float(high))


def measure(
    timer: Timer[Name],
    intervals: Callable[[Timer[Name]], Sequence[Interval]],
    seconds: float,
    now: Clock = time.perf_counter,
    told: Callable[[Timer[Name], float], None] = lambda timer, width: None,
) -> bool:
    """Rounds until all these intervals are narrow, or so many seconds of wall time are up; whether they got narrow.

    `told` is called after each look with the widest one.
    """
    ends, look = now() + seconds, float(FIRST)
    while True:
        timer.round()
        late = now() >= ends and timer.rounds >= FEWEST
        if timer.rounds >= look or late:
            look = max(look * GROWTH, timer.rounds + 1)
            width = max((found.width for found in intervals(timer)), default=0.0)
            told(timer, width)
            if width < SURE or late:
                return width < SURE
