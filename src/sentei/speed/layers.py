"""Which layers of a smaller network take a larger share of their old time than of their old multiply-accumulates."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sentei.speed.profiles import Profile
from sentei.speed.survey import Layer
from sentei.speed.timing import Clock

MANY, FEW = 50, 10
"""Most and fewest passes that are profiled."""
FAST = 8
"""Kernels compute so many channels at once."""
SLOW, NOTICED = 1.1, 0.005
"""A layer is slow at this many times its share, if what that costs is at least this part of the network's time."""


@dataclass(frozen=True)
class LayerTimes:
    """A layer in both networks. Times are those of the profiler, in ms: the fastest of all passes, because they are
    wall times, and so short that some are undisturbed."""

    name: str
    dense_ms: float
    small_ms: float
    dense: Layer
    small: Layer

    @property
    def share_macs(self) -> float:
        """The share of its multiply-accumulates that the layer kept."""
        return self.small.macs / self.dense.macs

    @property
    def lost_ms(self) -> float:
        """How much longer it takes than its share of its old time."""
        return self.small_ms - self.share_macs * self.dense_ms

    @property
    def note(self) -> str:
        """Widths that kernels do not like, where the dense network had better ones."""
        sides = (("reads", self.dense.inputs, self.small.inputs), ("writes", self.dense.outputs, self.small.outputs))
        odd = [f"{verb} {after}" for verb, before, after in sides if _made_odd(before, after)]
        return f"{', '.join(odd)}: not in steps of {FAST}" if odd else ""


def _made_odd(before: int | None, after: int | None) -> bool:
    return before is not None and after is not None and after % FAST != 0 and after != before


def layer_times(
    dense: tuple[Mapping[str, Layer], Mapping[str, np.ndarray]],
    small: tuple[Mapping[str, Layer], Mapping[str, np.ndarray]],
) -> tuple[LayerTimes, ...]:
    """The layers that both networks have, in the order of the network, from what they are and how long they took."""
    (old, old_seconds), (new, new_seconds) = dense, small
    pairs = ((name, fastest(old_seconds, name), fastest(new_seconds, name)) for name in old if name in new)
    return tuple(LayerTimes(name, a, b, old[name], new[name]) for name, a, b in pairs if a > 0 and b > 0)


def fastest(seconds: Mapping[str, np.ndarray], name: str) -> float:
    """In ms; 0 for a layer that the profiler did not see."""
    return 1e3 * float(seconds[name].min()) if name in seconds else 0.0


def slow_layers(layers: Sequence[LayerTimes], most: int = 5) -> list[LayerTimes]:
    """Those that lose the most, the worst first."""
    whole = sum(layer.small_ms for layer in layers)
    slow = [
        layer for layer in layers
        if layer.small_ms > SLOW * layer.share_macs * layer.dense_ms and layer.lost_ms > NOTICED * whole
    ]  # fmt: skip
    return sorted(slow, key=lambda layer: -layer.lost_ms)[:most]


def profiled(
    profiles: Mapping[str, Profile], seconds: float, now: Clock = time.perf_counter
) -> dict[str, dict[str, np.ndarray]]:
    """Seconds of each layer of each network, from passes in rounds whose order is shuffled."""
    shuffled, order, ends = random.Random(0), list(profiles), now() + seconds
    for i in range(MANY):
        shuffled.shuffle(order)
        for name in order:
            profiles[name].once()
        if i + 1 >= FEW and now() >= ends:
            break
    return {name: profile.seconds() for name, profile in profiles.items()}
