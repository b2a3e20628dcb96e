"""Widths that are said, not searched: so many units or channels of this layer, such a share of that one."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from fractions import Fraction
from math import floor
from numbers import Integral, Real

import numpy as np
import torch

from sentei.errors import PlanError
from sentei.graph import ChannelGraph
from sentei.graph.bundles import steps_of
from sentei.plan.allocate import Scores, note_on_widths, plan_from_widths
from sentei.plan.constraints import module_of
from sentei.plan.plan import Plan


def widths(graph: ChannelGraph, wanted: Mapping[str, int | float], scores: Scores | None = None) -> Plan:
    """The plan that gives layers these widths, and leaves all others whole.

    >>> plan = sentei.widths(graph, {"layer1.0.conv1": 32, "layer2.0.conv1": 0.5})
    >>> plan = sentei.widths(graph, {"layer1.0.conv1": 32}, scores=sentei.plan.CRITERIA["l1"](model, graph))

    Keys are names of groups, or of layers or parameters: those speak of the group that the layer's outputs belong to,
    so either end of a residual sum sets the width of both. Values are counts, integers from 1, or shares, floats up to
    1.0, which are rounded to the nearest count. The count at a group's name is of its units. At any other name it is of
    the layer's output channels, of which a unit may take several (in a grouped convolution, say); where it takes k, the
    count must be a multiple of k. Groups whose widths are tied (`graph.bundles`) get the share that one of them gets.

    The units with the highest `scores` ({group name: float [width]}) stay, or the first ones where none are given.

    Raises PlanError, naming what would do, for a name that is not in the model or whose outputs lie in several groups,
    a width that the group cannot have, less than the whole of a frozen group, and names that ask for two widths of one.
    """
    names = _Names(graph)
    out = np.array([g.width for g in graph.groups], np.int64)
    asked: dict[int, tuple[str, int]] = {}
    for key, value in wanted.items():
        group, channels = names.resolved(key)
        bundle = np.asarray(graph.bundle_of(group))
        full = np.array([graph.groups[i].width for i in bundle], np.int64)
        steps = _steps(graph, key, value, group, channels, steps_of(full))
        other, before = asked.setdefault(int(bundle.min()), (key, steps))
        if before != steps:
            raise PlanError(_contradiction(graph, key, other, bundle))
        out[bundle] = full // steps_of(full) * steps
    return plan_from_widths(graph, out, scores, note=note_on_widths(graph, out))


def _steps(graph: ChannelGraph, key: str, value: int | float, group: int, channels: int, total: int) -> int:
    """How many of the `total` steps in which the group can shrink stay."""
    own = graph.groups[group]
    whole, step = own.width * channels, own.width * channels // total
    if isinstance(value, bool) or not isinstance(value, Real):
        raise PlanError(f"width of {key!r} is {value!r}: expected a count, such as 32, or a share, such as 0.5")
    if isinstance(value, Integral):
        if not 1 <= value <= whole:
            raise PlanError(f"{_described(graph, key, group, channels)} and cannot keep {value}")
        if value % step and not own.frozen:
            near = sorted({max(value // step, 1) * step, (value // step + 1) * step})
            why = _why_steps(graph, group, channels)
            raise PlanError(f"width {value} of {key!r}: {why}; take {' or '.join(map(str, near))}")
    elif not 0 < value <= 1:
        raise PlanError(f"width of {key!r} is {value!r}: a share is above 0 and at most 1.0, a count an integer")
    if own.frozen and value != (whole if isinstance(value, Integral) else 1):
        raise PlanError(f"{_described(graph, key, group, channels)} and cannot be cut: {own.why}")
    if isinstance(value, Integral):
        return int(value) // step
    # Through the decimal text, so that 0.35 of 10 is 3.5.
    return max(floor(Fraction(repr(float(value))) * total + Fraction(1, 2)), 1)


def _described(graph: ChannelGraph, key: str, group: int, channels: int) -> str:
    own = graph.groups[group]
    if key == own.name:
        return f"group {key!r} has {own.width} units"
    return f"layer {key!r} has {own.width * channels} channels in group {own.name!r}"


def _why_steps(graph: ChannelGraph, group: int, channels: int) -> str:
    own, bundle = graph.groups[group], graph.bundle_of(group)
    others = [graph.groups[i] for i in bundle if i != group]
    tied = ", ".join(f"{g.name!r} ({g.width})" for g in others)
    several = f"each unit of group {own.name!r} takes {channels} channels of the layer" if channels > 1 else ""
    share = f"group {own.name!r} ({own.width}) keeps the same share as {tied}" if others else ""
    return " and ".join(filter(None, (several, share)))


def _contradiction(graph: ChannelGraph, key: str, other: str, bundle: np.ndarray) -> str:
    groups = [graph.groups[i].name for i in bundle]
    what = f"are of one group, {groups[0]!r}," if len(groups) == 1 else f"are of groups that keep one share, {groups},"
    return f"{other!r} and {key!r} {what} and ask for different widths: name one of them"


class _Names:
    """What a name in a model stands for."""

    def __init__(self, graph: ChannelGraph) -> None:
        self.graph = graph
        self.groups = {g.name: i for i, g in enumerate(graph.groups)}
        self.params = {*graph.params, *(m.param for g in graph.groups for m in g.members)}
        self.producers = {c.where for c in graph.trace_record.contractions}
        self.layers = {module_of(p) for p in self.params} | self.producers

    def resolved(self, key: str) -> tuple[int, int]:
        """The group that a name stands for, and how many channels the count at it takes a unit for."""
        if key in self.groups:
            return self.groups[key], 1
        layer = module_of(key) if key in self.params else key
        if layer not in self.layers:
            raise PlanError(self._unknown(key))
        found = self._produced(layer) if layer in self.producers else self._held(layer)
        if len(found) != 1:
            raise PlanError(self._unclear(key, found))
        return next(iter(found.items()))

    def _produced(self, layer: str) -> dict[int, int]:
        """The groups of what comes out of a layer's products, each with the channels that a unit takes there."""
        grouping, found = self.graph.grouping, dict[int, int]()
        for product in self.graph.trace_record.contractions:
            for vector in product.out_factors if product.where == layer else ():
                if isinstance(vector, torch.Tensor):
                    labels = vector.numpy()
                    groups = grouping.group_of[grouping.unit_of[labels[labels >= 0]]]
                    for group, count in zip(*np.unique(groups[groups >= 0], return_counts=True), strict=True):
                        found.setdefault(int(group), max(int(count) // self.graph.groups[group].width, 1))
        return found

    def _held(self, layer: str) -> dict[int, int]:
        """The groups that the first dimension of a layer's parameters belongs to, or any where that belongs to none."""
        members = [(i, m) for i, g in enumerate(self.graph.groups) for m in g.members if module_of(m.param) == layer]
        first = [(i, m) for i, m in members if m.dim == 0] or members
        return {i: m.indices.shape[1] for i, m in reversed(first)}

    def _unclear(self, key: str, found: Mapping[int, int]) -> str:
        if not found:
            return f"the outputs of {key!r} belong to no group: nothing there can be cut"
        listed = ", ".join(f"{self.graph.groups[i].name!r} ({self.graph.groups[i].width})" for i in sorted(found))
        return f"the channels of {key!r} lie in several groups, {listed}: name the group instead"

    def _unknown(self, key: str) -> str:
        inside = sorted(name for name in self.layers if name.startswith(f"{key}."))
        if inside:
            some = ", ".join(inside[:3]) + (f" or {len(inside) - 3} more" if len(inside) > 3 else "")
            return f"{key!r} is no layer but holds several: name one of them, {some}"
        near = difflib.get_close_matches(str(key), sorted({*self.groups, *self.layers, *self.params} - {""}), 3, 0.4)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        return f"there is no group, layer or parameter named {key!r}{hint}"
