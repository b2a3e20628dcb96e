"""The constraints of a dense network, as they hold for what earlier cuts have left of it."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from sentei.graph import ChannelGraph
from sentei.plan.constraints import Constraints, Ladder


@dataclass(frozen=True, kw_only=True)
class Remaining(Constraints):
    """Steps and floors of the dense network's groups, for a network that has lost some of its units.

    Without this, caps would compound from cut to cut, and a group of 32 that was cut to 24 would be too narrow for
    multiples of 8 the next time.
    """

    dense: ChannelGraph

    @classmethod
    def of(cls, constraints: Constraints, dense: ChannelGraph) -> Remaining:
        given = {f.name: getattr(constraints, f.name) for f in fields(Constraints)}
        return cls(**given, dense=dense)

    def ladder(self, graph: ChannelGraph) -> Ladder:
        """Widths that the groups of the smaller network may take, by the rules of the dense one."""
        first, old = super().ladder(self.dense), self._places(graph)
        full = np.array([group.width for group in graph.groups], np.int64)
        fixed = np.array([group.frozen for group in graph.groups], bool)
        return Ladder(full, first.step[old], np.where(fixed, full, np.minimum(first.floor[old], full)), graph.bundles)

    def widths_before(self, graph: ChannelGraph) -> np.ndarray:
        return super().widths_before(self.dense)[self._places(graph)]

    def _places(self, graph: ChannelGraph) -> np.ndarray:
        """Where the groups of the smaller network are among those of the dense one."""
        where = {group.name: i for i, group in enumerate(self.dense.groups)}
        return np.array([where[group.name] for group in graph.groups], np.int64)
