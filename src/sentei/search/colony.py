"""Artificial bee colony, the search of ABCPruner (Lin et al. 2020, arXiv 2001.08565, section 3.2).

A *source* is a structure with its fitness. Employed bees move each source once; onlooker bees move good sources again;
a source that no move has improved more than `abandon_after` times is left, and a scout finds a new one at random.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from functools import partial
from typing import Literal, get_args

import numpy as np

from sentei.errors import ConfigError
from sentei.search.space import Levels, Space
from sentei.search.strategy import Batch, Draft, Proposal, Steps, Strategy

Onlookers = Literal["fitness", "rank"]


class Colony(Strategy):
    """The bees. All moves of a phase start from the state at its beginning, so that they can be evaluated at once.

    One by one, a bee flies off as soon as one returns, from the sources as they are then: the employed bees of a cycle,
    then its onlookers; a scout as soon as a source is to be left. While the first sources are still out, more of them
    are tried, and the best stay.

    Args:
        sources: n, structures that are improved side by side.
        cycles: T, rounds of the three phases; None goes on until `evaluations` are used.
        abandon_after: M, moves without improvement that a source survives.
        onlookers: "fitness" visits source j with the paper's probability 0.9 fit_j / max fit + 0.1, which is close to 1
            for all once fitnesses are alike; "rank" draws n visits with probabilities that fall linearly from the best
            source (twice the mean) to the worst (none).
        moved: share of the genes that a move changes, on average, at least one; 1 in the paper.
        guide: pull towards the best structure so far, the C of gbest-guided bees (Zhu and Kwong 2010, "Gbest-guided
            artificial bee colony algorithm for numerical function optimization"); 0 in the paper.
    """

    def __init__(
        self,
        space: Space,
        *,
        sources: int = 8,
        cycles: int | None = None,
        abandon_after: int = 10,
        onlookers: Onlookers = "rank",
        moved: float = 0.5,
        guide: float = 1.5,
        seed: int = 0,
        evaluations: int | None = None,
        repeats: bool = False,
    ) -> None:
        super().__init__(space, seed=seed, evaluations=evaluations, repeats=repeats)
        if sources < 1 or onlookers not in get_args(Onlookers):
            raise ConfigError(
                f"sources is {sources}, onlookers {onlookers!r}; expected 1 or more, and 'fitness' or 'rank'"
            )
        self.n, self.cycles, self.abandon_after, self.onlookers = sources, cycles, abandon_after, onlookers
        self.moved, self.guide = moved, guide
        self.sources: list[Levels] = []
        self.fitness = np.zeros(0)
        self.trials = np.zeros(0, np.int64)
        self.cycle = 0
        self._employed: deque[int] = deque()
        self._onlookers: deque[int] | None = deque()
        self._scouted: set[int] = set()

    def steps(self) -> Steps:
        self.sources = [s for s in (self.fresh(self.opening) for _ in range(self.room(self.n))) if s is not None]
        self.fitness = yield Batch("sources", 0, self.sources)
        self.trials = np.zeros(len(self.sources), np.int64)
        cycle = 0
        while self.cycles is None or cycle < self.cycles:
            cycle, before = cycle + 1, self.proposed
            yield from self._moves("employed", cycle, range(len(self.sources)))
            yield from self._moves("onlooker", cycle, self.visits())
            yield from self._scouts(cycle)
            if self.proposed == before:
                return  # every structure was proposed already

    def _moves(self, phase: str, cycle: int, chosen: Iterable[int]) -> Steps:
        moved = [(j, self.fresh(partial(self._move, j))) for j in chosen]
        moves = [(j, levels) for j, levels in moved if levels is not None]
        if moves:
            fitness = yield Batch(phase, cycle, [levels for _, levels in moves])
            for (j, levels), value in zip(moves, fitness, strict=True):
                self.settle(j, levels, value)

    def _move(self, j: int) -> Levels:
        """v = x_j + r (x_j - x_g) + s (x_best - x_j) for the genes that move, to the nearest structure.

        g is another source; r in [-1, 1] and s in [0, guide] are drawn for each gene. Where that is x_j itself, one
        gene takes another level: a bee never stays where it is.
        """
        x = np.array(self.sources[j], np.float64)
        others = [g for g in range(len(self.sources)) if g != j]
        neighbour = x if not others else np.array(self.sources[self.rng.choice(others)], np.float64)
        step = self.rng.uniform(-1, 1, len(x)) * (x - neighbour)
        if self.guide and self.best is not None:
            step += self.rng.uniform(0, self.guide, len(x)) * (np.array(self.best) - x)
        if self.moved < 1:
            still = self.rng.random(len(x)) >= self.moved
            still[self.rng.integers(len(x))] = False
            step[still] = 0
        levels = self.space.nearest(x + step)
        return levels if levels != self.sources[j] else self._step_aside(x)

    def _step_aside(self, x: np.ndarray) -> Levels:
        free = np.flatnonzero([len(c) > 1 for c in self.space.choices])
        gene = int(self.rng.choice(free)) if len(free) else 0
        other = [level for level in range(len(self.space.choices[gene])) if level != x[gene]]
        if other:
            x[gene] = self.rng.choice(other)
        return self.space.nearest(x)

    def settle(self, j: int, levels: Levels, fitness: float) -> None:
        """Greedy choice: a better place replaces source j and its counter starts anew; otherwise the counter rises."""
        if fitness > self.fitness[j]:
            self._place(j, levels, fitness)
        else:
            self.trials[j] += 1

    def visits(self) -> list[int]:
        """The sources that onlookers visit."""
        if self.onlookers == "fitness":
            return np.flatnonzero(self.rng.random(len(self.fitness)) < visit_probability(self.fitness)).tolist()
        return self.rng.choice(len(self.fitness), len(self.fitness), p=rank_probability(self.fitness)).tolist()

    def _scouts(self, cycle: int) -> Steps:
        left = np.flatnonzero(self.trials > self.abandon_after).tolist()
        found = [(j, self.fresh(self._scout)) for j in left]
        scouts = [(j, levels) for j, levels in found if levels is not None]
        if scouts:
            fitness = yield Batch("scout", cycle, [levels for _, levels in scouts])
            for (j, levels), value in zip(scouts, fitness, strict=True):
                self._place(j, levels, value)

    def _scout(self) -> Levels:
        return self.space.random(self.rng)

    # -- one by one

    def draft(self) -> Draft | None:
        if len(self.sources) < self.n:
            return "sources", 0, self.fresh(self.opening), -1
        for j in np.flatnonzero(self.trials > self.abandon_after).tolist():
            if j not in self._scouted:
                self._scouted.add(j)
                return "scout", self.cycle, self.fresh(self._scout), j
        bee = self._next_bee()
        return None if bee is None else (bee[0], self.cycle, self.fresh(partial(self._move, bee[1])), bee[1])

    def _next_bee(self) -> tuple[str, int] | None:
        """The phase and the source of the next move; None after the last cycle."""
        while True:
            if self._employed:
                return "employed", self._employed.popleft()
            if self._onlookers is None:
                self._onlookers = deque(self.visits())
            if self._onlookers:
                return "onlooker", self._onlookers.popleft()
            if self.cycle == self.cycles:
                return None
            self.cycle, self._employed, self._onlookers = self.cycle + 1, deque(range(self.n)), None

    def learned(self, proposal: Proposal, fitness: float) -> None:
        j = proposal.source
        if proposal.phase in ("employed", "onlooker"):
            self.settle(j, proposal.levels, fitness)
        elif proposal.phase == "scout":
            self._scouted.discard(j)
            self._place(j, proposal.levels, fitness)
        elif len(self.sources) < self.n:
            self.sources.append(proposal.levels)
            self.fitness, self.trials = np.append(self.fitness, fitness), np.append(self.trials, 0)
        elif fitness > self.fitness.min():
            self._place(int(self.fitness.argmin()), proposal.levels, fitness)

    def _place(self, j: int, levels: Levels, fitness: float) -> None:
        self.sources[j], self.fitness[j], self.trials[j] = levels, fitness, 0


def visit_probability(fitness: np.ndarray) -> np.ndarray:
    """P_j = 0.9 fit_j / max_i fit_i + 0.1, for fitnesses that are not negative.

    >>> visit_probability(np.array([0.4, 0.8]))
    array([0.55, 1.  ])
    """
    positive = np.maximum(fitness, 0)
    return 0.9 * positive / max(positive.max(initial=0), 1e-12) + 0.1


def rank_probability(fitness: np.ndarray) -> np.ndarray:
    """Linear ranking: the best gets twice the mean, the worst nothing; equal fitnesses share.

    >>> rank_probability(np.array([0.1, 0.3, 0.2]))
    array([0.        , 0.66666667, 0.33333333])
    """
    below = (fitness[:, None] > fitness[None, :]).sum(1)
    alike = (fitness[:, None] == fitness[None, :]).sum(1)
    rank = below + (alike - 1) / 2
    return np.full(len(rank), 1 / len(rank)) if rank.sum() == 0 else rank / rank.sum()
