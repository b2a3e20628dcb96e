"""What a plan may not do, whatever the budget and the scores say, and the widths that this leaves."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import numpy as np

from sentei.errors import ConfigError, PlanError
from sentei.graph import ChannelGraph, Group


@dataclass(frozen=True, kw_only=True)
class Constraints:
    """Hard limits on the width of each group.

    >>> Constraints(round_to=16, max_ratio={"layer1.*": 0.3, "*": 0.8}, keep=("conv1",))  # doctest: +ELLIPSIS
    Constraints(round_to=16, ...)

    Patterns are those of fnmatch, on group names. Raises ConfigError for a value out of range, and PlanError
    when a pattern matches no group of the model.
    """

    round_to: int = 8
    """Channel counts become multiples of this. It holds for groups of at least 4 times as many channels;
    narrower ones shrink unit by unit, because there a multiple is too coarse to meet a budget. Where every
    use of a unit takes m channels (a channel shuffle, say), the units become multiples of round_to /
    gcd(round_to, m). 1 rounds nothing."""

    min_width: int = 1
    """Units that every group keeps at least (all of them where it has fewer)."""

    max_ratio: float | Mapping[str, float] = 1.0
    """Largest share of its units that a group may lose, for all groups or by name pattern. Where several
    patterns match, the smallest share holds; a group that none matches has no cap."""

    keep: tuple[str, ...] = ()
    """Name patterns of groups that are kept whole."""

    def __post_init__(self) -> None:
        for name in ("round_to", "min_width"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"{name}={value!r}: expected an integer of at least 1")
        for pattern, ratio in self.ratios.items():
            if not isinstance(ratio, int | float) or not 0 <= ratio <= 1:
                raise ConfigError(f"max_ratio of {pattern!r} is {ratio!r}: expected a share between 0 and 1")
        if isinstance(self.keep, str):
            raise ConfigError(f"keep={self.keep!r}: expected a tuple of name patterns, for instance ({self.keep!r},)")

    @property
    def ratios(self) -> Mapping[str, float]:
        """max_ratio by name pattern."""
        return self.max_ratio if isinstance(self.max_ratio, Mapping) else {"*": self.max_ratio}

    def ladder(self, graph: ChannelGraph) -> Ladder:
        """The widths that each group of `graph` may take under these constraints."""
        names = [g.name for g in graph.groups]
        for pattern in (*self.keep, *(p for p in self.ratios if p != "*")):
            if not any(fnmatchcase(name, pattern) for name in names):
                near = difflib.get_close_matches(pattern, names, n=1, cutoff=0)
                raise PlanError(f"no group is named {pattern!r}" + (f"; the nearest is {near[0]!r}" if near else ""))
        full = np.array([g.width for g in graph.groups], np.int64)
        step = np.array([self._step(g) for g in graph.groups], np.int64)
        floor = np.array([self._floor(g) for g in graph.groups], np.int64)
        return Ladder(full, step, np.minimum(-(-floor // step) * step, full))

    def _step(self, group: Group) -> int:
        channels = math.gcd(*(s.indices.shape[1] for s in group.members)) or 1
        step = self.round_to // math.gcd(self.round_to, channels)
        return step if group.width >= 4 * step else 1

    def _floor(self, group: Group) -> int:
        if group.frozen or any(fnmatchcase(group.name, pattern) for pattern in self.keep):
            return group.width
        cap = min((r for pattern, r in self.ratios.items() if fnmatchcase(group.name, pattern)), default=1.0)
        # The small slack keeps 100 * (1 - 0.9) at 10.
        return max(self.min_width, 1, math.ceil(group.width * (1 - cap) - 1e-9))


@dataclass(frozen=True, eq=False)
class Ladder:
    """The widths that each group may take: `full`, and the multiples of `step` from `floor` up. All int64
    [n_groups].

    A *rung* is one removal, from one allowed width to the next smaller one. Rungs are numbered group by
    group, from the full width down.
    """

    full: np.ndarray
    step: np.ndarray
    floor: np.ndarray
    group: np.ndarray = field(init=False)
    """Group of each rung, [n_rungs]."""
    before: np.ndarray = field(init=False)
    """Width of that group before the removal, [n_rungs]."""
    after: np.ndarray = field(init=False)
    """Width of that group after it, [n_rungs]."""

    def __post_init__(self) -> None:
        top = (self.full - 1) // self.step
        count = np.where(self.floor < self.full, top - self.floor // self.step + 1, 0)
        group = np.repeat(np.arange(len(count)), count)
        place = np.arange(len(group)) - np.repeat(np.cumsum(count) - count, count)
        after = (top[group] - place) * self.step[group]
        before = np.where(place == 0, self.full[group], after + self.step[group])
        for name, value in (("group", group), ("before", before), ("after", after)):
            object.__setattr__(self, name, value)

    def without(self, rungs: np.ndarray) -> np.ndarray:
        """Widths after these removals, int64 [n_groups]."""
        removed = np.bincount(self.group[rungs], (self.before - self.after)[rungs], len(self.full))
        return self.full - removed.astype(np.int64)

    def up(self, widths: np.ndarray) -> np.ndarray:
        """The next larger width of each group, or the same at the top."""
        return np.minimum((widths // self.step + 1) * self.step, self.full)

    def down(self, widths: np.ndarray) -> np.ndarray:
        """The next smaller width of each group, or the same at the bottom."""
        return np.maximum((widths - 1) // self.step * self.step, self.floor)
