"""What is believed of a model: the record of its forward pass, and what trials have taught beyond it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor, nn

from sentei.graph.bundles import steps_of
from sentei.graph.cost import irregular_vectors
from sentei.graph.graph import ChannelGraph
from sentei.graph.groups import Group, form_groups
from sentei.graph.inputs import Inputs
from sentei.graph.part import Forward
from sentei.graph.record import Site, Trace

Pair = tuple[np.ndarray, np.ndarray]
"""Labels of two groups that must keep the same share."""


@dataclass
class Belief:
    """The record of a forward pass under the `choices` of the axes along which splits shrink, and what else holds.

    `sites` are plain values of modules that follow a width, `pairs` groups that must keep the same share, `frozen`
    labels that must stay, with the reason. `forward` runs the part of the model that is traced.
    """

    named: Mapping[str, Tensor]
    inputs: Inputs
    record: Trace
    choices: dict[int, int] = field(default_factory=dict)
    sites: list[Site] = field(default_factory=list)
    pairs: list[Pair] = field(default_factory=list)
    frozen: list[tuple[np.ndarray, str]] = field(default_factory=list)
    forward: Forward | None = None

    def graph(self, sites: Sequence[Site] = (), pairs: Sequence[Pair] = ()) -> ChannelGraph:
        """The graph, with more sites and pairs than are believed. Groups that cannot keep their share are frozen."""
        record = self.record
        shapes = {n: tuple(t.shape) for n, t in self.named.items() if isinstance(t, nn.Parameter)}
        fronts = [front.numpy() for cuts in record.cuts.values() for front in cuts.fronts]
        vectors = [*irregular_vectors(record), *(v[v >= 0] for v in fronts)]
        frozen, pairs = list(self.frozen), [*self.pairs, *pairs]
        while True:
            grouping = form_groups(record, frozen, vectors)
            of = grouping.group_of[grouping.unit_of]
            bundles, rigid = _bundles(grouping.groups, of, pairs)
            if not rigid:
                every = [*self.sites, *sites]
                return ChannelGraph(record, grouping, shapes, self.inputs, every, bundles, self.forward)
            frozen += [(np.flatnonzero(of == g), why) for g, why in rigid.items()]


def labels_of(graph: ChannelGraph, group: int) -> np.ndarray:
    """All labels of a group, by its place in the graph."""
    return np.flatnonzero(groups_of_labels(graph) == group)


def groups_of_labels(graph: ChannelGraph) -> np.ndarray:
    """The group of each label, -1 where there is none."""
    return np.asarray(graph.grouping.group_of[graph.grouping.unit_of])


def _bundles(
    groups: Sequence[Group], of: np.ndarray, pairs: Sequence[Pair]
) -> tuple[list[tuple[int, ...]], dict[int, str]]:
    """Groups that keep the same share, as sorted tuples; and those that must be frozen for it, with the reason."""
    sets: list[set[int]] = []
    for pair in pairs:
        found = {int(i) for v in pair for i in np.unique(of[v]) if i >= 0}
        joined = found.union(*(s for s in sets if s & found))
        sets = [s for s in sets if not s & found] + [joined]
    rigid: dict[int, str] = {}
    for s in sets:
        stiff = [groups[i] for i in sorted(s) if groups[i].frozen]
        free = [i for i in s if not groups[i].frozen]
        if stiff and free:
            why = f"must keep the same share as {stiff[0].name}, which {_short(stiff[0].why or '')}"
            rigid |= dict.fromkeys(free, why)
        elif not stiff and steps_of(groups[i].width for i in s) < 2:
            rigid |= dict.fromkeys(free, "must keep the same share as a group whose width has no factor in common")
    return [tuple(sorted(s)) for s in sets if len(s) > 1], rigid


def _short(why: str) -> str:
    return why if len(why) < 120 else why[:117] + "..."
