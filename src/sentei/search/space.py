"""The structures a search may propose: one gene for each searched group, one level for each width it may take."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from sentei.errors import ConfigError
from sentei.graph import ChannelGraph
from sentei.graph.bundles import followers, in_proportion
from sentei.plan import Budget, Constraints, rescaler

Levels = tuple[int, ...]
"""A structure: the level of each gene, counted from 0."""


@dataclass(frozen=True, eq=False)
class Space:
    """Genes, their widths, and how a structure is brought onto the budget.

    >>> space = budgeted(graph, ["layer1.0.conv1"], Budget(macs=0.5), Constraints())
    >>> space.widths(space.random(np.random.default_rng(0)))  # int64 [n_groups], in the order of graph.groups
    """

    names: tuple[str, ...]
    """Group of each gene."""
    choices: tuple[np.ndarray, ...]
    """Widths that each gene may take, rising."""
    genes: np.ndarray
    """Place of each gene among the groups of the graph."""
    full: np.ndarray
    """Widths of all groups of the dense network."""
    onto_budget: Callable[[np.ndarray], np.ndarray] | None = None
    """Brings widths of all groups onto the budget; None where only the choices limit the size."""
    bundles: tuple[tuple[int, ...], ...] = ()
    """Groups that keep the same share: one of each bundle has a gene, the others follow it."""

    def __len__(self) -> int:
        return len(self.choices)

    @property
    def size(self) -> float:
        """How many structures the choices allow, before the budget."""
        return math.prod(float(len(c)) for c in self.choices)

    @cached_property
    def sizes(self) -> np.ndarray:
        """Number of choices of each gene, int64 [n_genes]."""
        return np.array([len(c) for c in self.choices], np.int64)

    @cached_property
    def _table(self) -> np.ndarray:
        """The choices of each gene in a row, filled up with what is wider than any."""
        table = np.full((len(self), int(self.sizes.max(initial=1)) + 1), np.iinfo(np.int64).max)
        for row, choices in zip(table, self.choices, strict=True):
            row[: len(choices)] = choices
        return table

    @cached_property
    def _rows(self) -> np.ndarray:
        return np.arange(len(self))

    def widths(self, levels: Sequence[int]) -> np.ndarray:
        """Widths of all groups, int64 [n_groups]."""
        given = np.asarray(levels, np.int64)
        if given.shape != self.sizes.shape or (given < 0).any() or (given >= self.sizes).any():
            raise IndexError(f"{tuple(levels)} are no levels; expected numbers below {self.sizes.tolist()}")
        out = self.full.copy()
        out[self.genes] = self._table[self._rows, given]
        return in_proportion(out, self.full, self.bundles)

    def levels(self, widths: np.ndarray) -> Levels:
        """The structure with these widths; ConfigError if they are not on the grid."""
        searched = np.asarray(widths)[self.genes]
        found = (self._table < searched[:, None]).sum(1)
        for gene in np.flatnonzero(self._table[self._rows, found] != searched):
            raise ConfigError(
                f"width {searched[gene]} of group {self.names[gene]} is not among its choices "
                f"{self.choices[gene].tolist()}"
            )
        return tuple(found.tolist())

    def nearest(self, position: np.ndarray) -> Levels:
        """The structure nearest to a point between the levels, float [n_genes]; halves round up.

        With a budget, widths are first interpolated between levels and then rescaled together.
        """
        inside = np.clip(position, 0, self.sizes - 1)
        if self.onto_budget is None:
            return tuple(np.floor(inside + 0.5).astype(int).tolist())
        target = self.full.astype(np.float64)
        below = np.maximum(np.minimum(np.floor(inside), self.sizes - 2), 0).astype(np.int64)
        lower, upper = self._table[self._rows, below], self._table[self._rows, below + 1]
        target[self.genes] = (upper - lower).astype(np.float64) * (inside - below) + lower
        return self.levels(self.onto_budget(target))

    def near(self, widths: np.ndarray) -> Levels:
        """The structure on the budget whose proportions are those of some widths of all groups, as far as may be."""
        assert self.onto_budget is not None
        return self.levels(self.onto_budget(np.asarray(widths, np.float64)))

    def random(self, rng: np.random.Generator) -> Levels:
        """Each gene drawn evenly over its full range, then brought onto the budget."""
        return self.nearest(rng.integers(self.sizes).astype(np.float64))


def budgeted(graph: ChannelGraph, names: Sequence[str], budget: Budget, constraints: Constraints) -> Space:
    """All structures within `constraints` that use the budget, as far as its steps allow.

    Groups that are not named stay whole. Raises BudgetError if even the smallest structure is above the budget, and
    ConfigError if the constraints leave nothing to search.
    """
    _check_names(graph, names)
    constraints = constraints.restricted(names)
    onto = rescaler(graph, budget, constraints)
    ladder = constraints.ladder(graph)
    choices = []
    for i in (graph.index(name) for name in names):
        rungs = ladder.group == i
        choices.append(np.sort(np.append(ladder.after[rungs], ladder.full[i])))
    return _space(graph, names, choices, onto)


def tenths(
    graph: ChannelGraph, names: Sequence[str], alpha: float, constraints: Constraints | None = None
) -> Space:
    """The grid of the ABCPruner paper: {0.1 c, 0.2 c, ..., alpha c} of each group's width c (arXiv 2001.08565, eq. 3).

    As in the official code, widths are rounded down, to at least 1. Of the constraints, `keep`, `min_width` and
    `max_ratio` hold (a share of 0.1 c counts as a loss of nine tenths, however it is rounded); a group that they leave
    no share stays whole. `round_to` has no meaning on this grid.
    """
    _check_names(graph, names)
    top = round(alpha * 10)
    if not 1 <= top <= 10 or abs(alpha * 10 - top) > 1e-9:
        raise ConfigError(f"alpha is {alpha}; expected one of 0.1, 0.2, ..., 1.0, the largest share a group may keep")
    constraints = replace(constraints or Constraints(), round_to=1)
    floors = replace(constraints, min_width=1).ladder(graph).floor
    shares, choices = np.arange(1, top + 1), []
    for i in map(graph.index, names):
        full = graph.groups[i].width
        widths = np.maximum(full * shares // 10, 1)
        allowed = (np.ceil(full * shares / 10 - 1e-9) >= floors[i]) & (widths >= min(constraints.min_width, full))
        choices.append(np.unique(widths[allowed]))
    left = [i for i, c in enumerate(choices) if len(c)]
    if not left:
        raise ConfigError("the constraints leave no group to search: all of them stay whole")
    return _space(graph, [names[i] for i in left], [choices[i] for i in left], None)


def _check_names(graph: ChannelGraph, names: Sequence[str]) -> None:
    for name in names:
        group = graph.group(name)
        if group.frozen:
            raise ConfigError(f"group {name} cannot be searched: {group.why}")
    if len(set(names)) < len(names):
        raise ConfigError(f"some groups are named twice among {list(names)}")


def _space(
    graph: ChannelGraph,
    names: Sequence[str],
    choices: Sequence[np.ndarray],
    onto: Callable[[np.ndarray], np.ndarray] | None,
) -> Space:
    following = followers(graph.bundles, graph.widths())
    choices = [c[-1:] if graph.index(n) in following else c for n, c in zip(names, choices, strict=True)]
    free = [i for i, c in enumerate(choices) if len(c) > 1]
    if onto is not None and not free:
        raise ConfigError("the constraints leave no group to search: every one has a single width that it may take")
    used = free if onto is not None else [i for i, n in enumerate(names) if graph.index(n) not in following]
    genes = np.array([graph.index(names[i]) for i in used], np.int64)
    picked = tuple(choices[i].astype(np.int64) for i in used)
    return Space(tuple(names[i] for i in used), picked, genes, graph.widths(), onto, graph.bundles)
