"""Strategies that any other has to beat with equal evaluations: random search and evolution."""

from __future__ import annotations

import numpy as np

from sentei.search.space import Levels, Space
from sentei.search.strategy import Batch, Draft, Proposal, Steps, Strategy

BATCH = 16
"""Structures of a batch of random ones."""


class RandomSearch(Strategy):
    """Independent random structures on the budget, after those that it is to begin with, in batches of 16."""

    def steps(self) -> Steps:
        cycle = 0
        while True:
            cycle += 1
            drawn = (self.fresh(self.opening) for _ in range(self.room(BATCH)))
            found = [s for s in drawn if s is not None]
            if not found:
                return
            yield Batch("random", cycle, found)

    def draft(self) -> Draft:
        return "random", 1 + self.proposed // BATCH, self.fresh(self.opening), -1


class Evolution(Strategy):
    """Mutation and crossover of the best so far, as in MetaPruning (Liu et al. 2019, arXiv 1903.10258).

    Each generation is bred from the `parents` best structures seen: half by redrawing each gene of one parent with
    probability `mutation`, half by taking each gene from one of two parents. One by one, the parents are the best of
    what has been answered so far.
    """

    def __init__(
        self,
        space: Space,
        *,
        population: int = 20,
        parents: int = 5,
        mutation: float = 0.1,
        seed: int = 0,
        evaluations: int | None = None,
        repeats: bool = False,
    ) -> None:
        super().__init__(space, seed=seed, evaluations=evaluations, repeats=repeats)
        self.population, self.parents, self.mutation = population, parents, mutation
        self.elite: list[tuple[float, Levels]] = []

    def steps(self) -> Steps:
        first = (self.fresh(self.opening) for _ in range(self.room(self.population)))
        brood, generation = [s for s in first if s is not None], 0
        while brood:
            phase = "evolution" if generation else "first"
            fitness = yield Batch(phase, generation, brood)
            told = [*self.elite, *zip(fitness.tolist(), brood, strict=True)]
            self.elite = sorted(told, key=lambda pair: -pair[0])[: self.parents]
            generation += 1
            room = self.room(self.population)
            bred = (self.fresh(self._mutated if i % 2 == 0 else self._crossed) for i in range(room))
            brood = [s for s in bred if s is not None]

    def draft(self) -> Draft:
        generation = self.proposed // self.population
        if not generation or not self.elite:
            return "first", generation, self.fresh(self.opening), -1
        return "evolution", generation, self.fresh(self._crossed if self.proposed % 2 else self._mutated), -1

    def learned(self, proposal: Proposal, fitness: float) -> None:
        self.elite = sorted([*self.elite, (fitness, proposal.levels)], key=lambda pair: -pair[0])[: self.parents]

    def _parent(self) -> np.ndarray:
        return np.array(self.elite[self.rng.integers(len(self.elite))][1], np.float64)

    def _mutated(self) -> Levels:
        parent = self._parent()
        drawn = self.rng.integers(self.space.sizes)
        changed = self.rng.random(len(parent)) < self.mutation
        changed[self.rng.integers(len(parent))] = True
        return self.space.nearest(np.where(changed, drawn, parent))

    def _crossed(self) -> Levels:
        return self.space.nearest(np.where(self.rng.random(len(self.space)) < 0.5, self._parent(), self._parent()))
