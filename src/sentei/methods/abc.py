"""ABCPruner: an artificial bee colony searches the width of every layer.

Lin, Ji, Zhang, Zhang, Wu, Tian: "Channel Pruning via Automatic Structure Search", IJCAI 2020 (arXiv 2001.08565). Which
filters a layer keeps matters little, how many it keeps matters much: so only widths are searched, weights are
inherited, and a structure's fitness is the accuracy that it reaches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, get_args

from sentei.errors import ConfigError
from sentei.graph import ChannelGraph
from sentei.methods.common.genes import searched_groups
from sentei.methods.common.searching import WidthSearch, whole_numbers
from sentei.plan import Budget, Constraints
from sentei.search import Colony, Evolution, RandomSearch, Space, Strategy, tenths
from sentei.search.colony import Onlookers


@dataclass(frozen=True, kw_only=True)
class Abc(WidthSearch):
    """The bee colony.

    >>> sentei.prune(model, data, method=Abc(evaluations=100), budget=sentei.Budget(macs=0.5))
    >>> sentei.prune(model, data, method=Abc(paper=True, alpha=0.7))

    By default every structure is rescaled onto the budget, so that all compare at equal cost. `paper=True` is the
    paper's own search: the grid {0.1 c, ..., alpha c} with alpha as the only control of size, groups inside branches,
    random filters, fitness after short training, n = 3, T = 2, M = 2. Other settings may still be given.
    """

    paper: bool = False
    """Search as the paper does; alpha instead of a budget decides the size."""
    alpha: float | None = None
    """Largest share of its width that a group may keep, 0.1 to 1.0; 0.7 in the paper for ResNet-56. Only with paper."""
    sources: int | None = None
    """Structures that are improved side by side; 8, and 3 in the paper."""
    cycles: int | None = None
    """Rounds of employed, onlooker and scout bees; as many as the evaluations allow, and 2 in the paper."""
    abandon_after: int | None = None
    """A scout replaces a structure after more moves without improvement than this; 10, and 2 in the paper."""
    onlookers: Onlookers | None = None
    """How onlookers choose: by rank, or by fitness as in the paper, which hardly selects once fitnesses are alike."""
    moved: float | None = None
    """Share of the genes that a move changes; 0.5, and all in the paper."""
    guide: float | None = None
    """Pull of a move towards the best structure so far; 1.5, and none in the paper."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.moved is not None and not 0 < self.moved <= 1:
            raise ConfigError(f"moved is {self.moved}; expected a share above 0 and up to 1")
        if self.guide is not None and not 0 <= self.guide <= 4:
            raise ConfigError(f"guide is {self.guide}; expected 0 to 4")
        if self.alpha is not None and not self.paper:
            raise ConfigError("alpha belongs to the paper's search: give paper=True, or a budget instead of alpha")
        whole_numbers(self, "sources", "cycles", "abandon_after")
        if self.onlookers not in (None, *get_args(Onlookers)):
            raise ConfigError(f"onlookers is {self.onlookers!r}; expected 'fitness' or 'rank'")
        alpha = 0.7 if self.alpha is None else self.alpha
        if not any(abs(alpha * 10 - tenth) < 1e-9 for tenth in range(1, 11)):
            raise ConfigError(f"alpha is {alpha}; expected 0.1, 0.2, ... or 1.0, the largest share a group may keep")

    @property
    def about(self) -> str:
        return "an artificial bee colony searches the widths (ABCPruner)"

    @property
    def budgeted(self) -> bool:
        return not self.paper

    def defaults(self) -> dict[str, Any]:
        if not self.paper:
            bees = {"sources": 8, "abandon_after": 10, "onlookers": "rank", "moved": 0.5, "guide": 1.5}
            return {**super().defaults(), **bees}
        return {
            "genes": "inner", "fitness": "train", "inherit": "random", "sources": 3, "cycles": 2, "abandon_after": 2,
            "onlookers": "fitness", "moved": 1.0, "guide": 0.0, "alpha": 0.7,
        }  # fmt: skip

    def space(self, graph: ChannelGraph, budget: Budget, constraints: Constraints) -> Space:
        if not self.paper:
            return super().space(graph, budget, constraints)
        return tenths(graph, searched_groups(graph, self.genes or "inner"), self.alpha or 0.7, constraints)

    def strategy(self, space: Space, seed: int) -> Strategy:
        names = ("sources", "cycles", "abandon_after", "onlookers", "moved", "guide")
        given = {name: value for name in names if (value := getattr(self, name)) is not None}
        return Colony(space, seed=seed, evaluations=self.evaluations, **given)

    def expected(self) -> int:
        return self._bounded(phases=2)

    def most(self) -> int:
        return self._bounded(phases=3)

    def _bounded(self, phases: int) -> int:
        """Evaluations where so many phases of each cycle move every source: employed bees, onlookers, scouts."""
        n = self.sources or 8
        return self.evaluations if self.cycles is None else min(self.evaluations, n + phases * n * self.cycles)


@dataclass(frozen=True, kw_only=True)
class EvolutionSearch(WidthSearch):
    """Evolution by mutation and crossover, to compare the colony with."""

    population: int = 20
    """Structures in a generation."""
    parents: int = 5
    """The best of all generations, from which the next one is bred."""
    mutation: float = 0.1
    """Probability that a gene is redrawn."""

    def __post_init__(self) -> None:
        super().__post_init__()
        whole_numbers(self, "population", "parents")
        if self.population < 2 or not self.parents >= 1 or not 0 < self.mutation <= 1:
            raise ConfigError(
                f"population is {self.population} (2 or more), parents {self.parents} (1 or more), mutation "
                f"{self.mutation} (above 0, at most 1)"
            )

    @property
    def about(self) -> str:
        return "evolution searches the widths"

    def strategy(self, space: Space, seed: int) -> Strategy:
        return Evolution(
            space, population=self.population, parents=self.parents, mutation=self.mutation, seed=seed,
            evaluations=self.evaluations,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class RandomWidths(WidthSearch):
    """The best of random structures, which any search has to beat."""

    @property
    def about(self) -> str:
        return "the best of random widths"

    def strategy(self, space: Space, seed: int) -> Strategy:
        return RandomSearch(space, seed=seed, evaluations=self.evaluations)
