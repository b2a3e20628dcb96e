"""What a plan may not do, whatever the budget and the scores say, and the widths that this leaves."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any, Self

import numpy as np

from sentei.errors import ConfigError, PlanError
from sentei.graph import ChannelGraph, Group
from sentei.graph.bundles import followers, in_proportion, leader, steps_of

STEP, WIDE_STEP, WIDE = 8, 16, 128
"""Steps of widths unless told otherwise: 16 in networks with a group of 128 channels or more."""
FAST = 4
"""Kernels work on several channels at once. Widths that are no multiple of this waste a part of each vector."""


@dataclass(frozen=True, kw_only=True)
class Constraints:
    """Hard limits on the width of each group.

    >>> Constraints(round_to=16, max_ratio={"layer1.*": 0.3, "*": 0.8}, keep=("conv1",))  # doctest: +ELLIPSIS
    Constraints(round_to=16, ...)

    Patterns are those of fnmatch, on names of layers: a pattern matches a group if it matches a module, or a container
    of modules, that produces or reads the group's units, or the group's own name. Raises ConfigError for a value out of
    range, and PlanError when a pattern matches nothing in the model.
    """

    round_to: int | None = None
    """Channel counts become multiples of this in groups of at least 4 times as many channels. Narrower groups shrink
    in steps of the largest power of two below it that is at most a quarter of their channels, because there a multiple
    of `round_to` is too coarse to meet a budget. Where every use of a unit takes m channels (a channel shuffle, say),
    the units become multiples of step / gcd(step, m). 1 rounds nothing.

    None does what hardware is fast at: in networks with a group of 128 channels or more, multiples of 16 wherever twice
    that many are there, and no fewer than 16 channels in any group that has them; elsewhere multiples of 8."""

    min_width: int = 1
    """Units that every group keeps at least (all of them where it has fewer)."""

    max_ratio: float | Mapping[str, float] = 1.0
    """Largest share of its units that a group may lose, for all groups or by name pattern. Where several
    patterns match, the smallest share holds; a group that none matches has no cap."""

    keep: tuple[str, ...] = ()
    """Name patterns of layers that stay whole, with every group that they produce or read; one pattern may be given
    without its tuple."""

    only: frozenset[str] | None = field(default=None, repr=False)
    """The groups that may shrink, by their exact names; None for all."""

    def __post_init__(self) -> None:
        for name in ("round_to", "min_width"):
            value = getattr(self, name)
            if name == "round_to" and value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"{name}={value!r}: expected an integer of at least 1")
        for pattern, ratio in self.ratios.items():
            if not isinstance(ratio, int | float) or not 0 <= ratio <= 1:
                raise ConfigError(f"max_ratio of {pattern!r} is {ratio!r}: expected a share between 0 and 1")
        keep = (self.keep,) if isinstance(self.keep, str) else tuple(self.keep)
        if not all(isinstance(pattern, str) for pattern in keep):
            raise ConfigError(f"keep={self.keep!r}: expected name patterns, for instance ('layer1.*',)")
        object.__setattr__(self, "keep", keep)

    @property
    def settings(self) -> dict[str, Any]:
        """All of it as plain values, for the config of a run."""
        ratio = dict(self.max_ratio) if isinstance(self.max_ratio, Mapping) else self.max_ratio
        plain = {"round_to": self.round_to, "min_width": self.min_width, "max_ratio": ratio, "keep": list(self.keep)}
        return plain if self.only is None else {**plain, "only": sorted(self.only)}

    @property
    def ratios(self) -> Mapping[str, float]:
        """max_ratio by name pattern."""
        return self.max_ratio if isinstance(self.max_ratio, Mapping) else {"*": self.max_ratio}

    def restricted(self, names: Iterable[str]) -> Self:
        """The same limits, with every group whole that is not named."""
        return replace(self, only=frozenset(names) if self.only is None else self.only.intersection(names))

    def ladder(self, graph: ChannelGraph) -> Ladder:
        """The widths that each group of `graph` may take under these constraints."""
        layers = Layers(graph)
        kept = layers.matching(*self.keep) | np.array([self._fixed(g) for g in graph.groups], bool)
        loss = np.ones(len(graph.groups))
        for pattern, ratio in self.ratios.items():
            loss = np.where(layers.matching(pattern), np.minimum(loss, ratio), loss)
        full = np.array([g.width for g in graph.groups], np.int64)
        rule = self._rounding(graph)
        step = np.array([rule.step(g) for g in graph.groups], np.int64)
        # The small slack keeps 100 * (1 - 0.9) at 10.
        floor = np.maximum(np.ceil(full * (1 - loss) - 1e-9).astype(np.int64), self.min_width)
        floor = np.maximum(floor, [rule.least(g) for g in graph.groups])
        floor = np.where(kept, full, floor)
        return Ladder(full, step, np.minimum(-(-floor // step) * step, full), graph.bundles)

    def widths_before(self, graph: ChannelGraph) -> np.ndarray:
        """Widths of the dense network's groups, int64 [n_groups]: here those of the graph itself."""
        return np.array([g.width for g in graph.groups], np.int64)

    def _fixed(self, group: Group) -> bool:
        return group.frozen or (self.only is not None and group.name not in self.only)

    def _rounding(self, graph: ChannelGraph) -> Rounding:
        if self.round_to is not None:
            return Rounding(self.round_to)
        widest = max((g.width * channels_of(g) for g in graph.groups), default=0)
        return Rounding(WIDE_STEP, room=2, fewest=WIDE_STEP) if widest >= WIDE else Rounding(STEP)


@dataclass(frozen=True)
class Rounding:
    """Steps of `round_to` channels where a group has `room` times as many, else of smaller powers of two; and the
    fewest channels that a group keeps."""

    round_to: int
    room: int = 4
    fewest: int = 1

    def step(self, group: Group) -> int:
        """Units that a group loses at once."""
        channels = channels_of(group)
        lower = (2**i for i in reversed(range((self.round_to - 1).bit_length())))
        steps = (step // math.gcd(step, channels) for step in (self.round_to, *lower))
        return next((step for step in steps if group.width >= self.room * step), 1)

    def least(self, group: Group) -> int:
        """Units that a group keeps."""
        return min(group.width, -(-self.fewest // channels_of(group)))


def channels_of(group: Group) -> int:
    """How many channels every use of one unit takes."""
    return math.gcd(*(s.indices.shape[1] for s in group.members)) or 1


class Layers:
    """Which modules produce or read the units of each group of a graph."""

    def __init__(self, graph: ChannelGraph) -> None:
        self.groups = [g.name for g in graph.groups]
        self.names = [_names(g) for g in graph.groups]

    def matching(self, *patterns: str) -> np.ndarray:
        """True for each group that some pattern matches, [n_groups]. PlanError if a pattern matches none."""
        out = np.zeros(len(self.groups), bool)
        for pattern in patterns:
            # The plain star, the default, asks nothing of the model and holds for one without groups.
            hit = [pattern == "*" or any(fnmatchcase(name, pattern) for name in names) for names in self.names]
            if pattern != "*" and not any(hit):
                raise PlanError(self._unknown(pattern))
            out |= np.array(hit, bool)
        return out

    def _unknown(self, pattern: str) -> str:
        near = self._nearest(pattern)
        if near is None:
            return f"no layer is named {pattern!r}"
        holders = [group for group, names in zip(self.groups, self.names, strict=True) if near in names]
        listed = " and ".join(map(repr, holders[:3])) + (f" and {len(holders) - 3} more" if len(holders) > 3 else "")
        what = "group" if len(holders) == 1 else "groups"
        return f"no layer with channels is named {pattern!r}; the nearest is {near!r}, held by {what} {listed}"

    def _nearest(self, pattern: str) -> str | None:
        """The most similar name inside the innermost container that the pattern names, or else that container."""
        everything = sorted(set().union(*self.names))
        above = next((name for name in reversed(_containers(pattern)) if name in everything), None)
        inside = [name for name in everything if above is None or name.startswith(f"{above}.")]
        similar = difflib.get_close_matches(pattern, inside, n=1, cutoff=0 if above is None else 0.9)
        return next(iter(similar), above)


def _names(group: Group) -> set[str]:
    modules = {module_of(s.param) for s in group.members}
    return {group.name, *(name for module in modules for name in _containers(module))}


def module_of(param: str) -> str:
    """The module that a parameter belongs to, without what a parametrization puts in between."""
    head = param.split(".parametrizations.")[0]
    return head.rpartition(".")[0] if head == param else head


def _containers(module: str) -> list[str]:
    """A module's name and those of the modules around it, from the outermost on."""
    parts = module.split(".")
    return [".".join(parts[: i + 1]) for i in range(len(parts))] if module else []


@dataclass(frozen=True, eq=False)
class Ladder:
    """The widths that each group may take: `full`, and the multiples of `step` from `floor` up. All int64
    [n_groups].

    A *rung* is one removal, from one allowed width to the next smaller one. Rungs are numbered group by
    group, from the full width down. Groups of a bundle (`ChannelGraph.bundles`) keep the same share: only the narrowest
    has rungs, in steps that leave all of them whole numbers (of their own steps, where that is not too coarse).
    """

    full: np.ndarray
    step: np.ndarray
    floor: np.ndarray
    bundles: tuple[tuple[int, ...], ...] = ()
    group: np.ndarray = field(init=False)
    """Group of each rung, [n_rungs]."""
    before: np.ndarray = field(init=False)
    """Width of that group before the removal, [n_rungs]."""
    after: np.ndarray = field(init=False)
    """Width of that group after it, [n_rungs]."""

    def __post_init__(self) -> None:
        step, floor = self.step.copy(), self.floor.copy()
        for bundle in self.bundles:
            first = leader(bundle, self.full)
            step[first] = self._common_step(bundle, first)
            share = max(self.floor[i] / self.full[i] for i in bundle)
            least = -(-int(np.ceil(share * self.full[first] - 1e-9)) // step[first]) * step[first]
            floor[first] = min(least, self.full[first])
        floor = in_proportion(floor, self.full, self.bundles)
        object.__setattr__(self, "step", step)
        object.__setattr__(self, "floor", floor)
        top = (self.full - 1) // self.step
        count = np.where(self.floor < self.full, top - self.floor // self.step + 1, 0)
        count[list(followers(self.bundles, self.full))] = 0
        group = np.repeat(np.arange(len(count)), count)
        place = np.arange(len(group)) - np.repeat(np.cumsum(count) - count, count)
        after = (top[group] - place) * self.step[group]
        before = np.where(place == 0, self.full[group], after + self.step[group])
        for name, value in (("group", group), ("before", before), ("after", after)):
            object.__setattr__(self, name, value)

    def _common_step(self, bundle: tuple[int, ...], first: int) -> int:
        least = int(self.full[first]) // steps_of(self.full[i] for i in bundle)
        steps = [n for n in range(least, int(self.full[first]) // 4 + 1, least) if self._fits(bundle, first, n)]
        return steps[0] if steps else least

    def _fits(self, bundle: tuple[int, ...], first: int, step: int) -> bool:
        return all(step * int(self.full[i]) // int(self.full[first]) % int(self.step[i]) == 0 for i in bundle)

    def following(self, widths: np.ndarray) -> np.ndarray:
        """The same widths [..., n_groups], with those of bundles as their narrowest group has it."""
        return in_proportion(widths, self.full, self.bundles) if self.bundles else widths

    def without(self, rungs: np.ndarray) -> np.ndarray:
        """Widths after these removals, int64 [n_groups]."""
        removed = np.bincount(self.group[rungs], (self.before - self.after)[rungs], len(self.full))
        return self.following(self.full - removed.astype(np.int64))

    def after_each(self, order: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Widths after the first of these removals, for each of some rising places, int64 [n_places, n_groups]."""
        n, removals = len(self.full), order[: places[-1]]
        part = np.searchsorted(places, np.arange(len(removals)), "right")
        lost = np.bincount(
            part * n + self.group[removals], (self.before - self.after)[removals], len(places) * n
        ).reshape(-1, n)  # fmt: skip
        return self.following(self.full - lost.cumsum(0).astype(np.int64))

    def up(self, widths: np.ndarray) -> np.ndarray:
        """The next larger width of each group, or the same at the top; one group at a time."""
        return np.minimum((widths // self.step + 1) * self.step, self.full)

    def down(self, widths: np.ndarray) -> np.ndarray:
        """The next smaller width of each group, or the same at the bottom; one group at a time."""
        return np.maximum((widths - 1) // self.step * self.step, self.floor)
