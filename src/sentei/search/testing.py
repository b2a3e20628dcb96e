"""Tests that every search strategy must pass, to subclass under pytest.

class TestMine(StrategyConformance):
    def strategy(self, space, **options):
        return MyStrategy(space, **options)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import nn

from sentei.graph import ChannelGraph, trace
from sentei.plan import Budget, Constraints
from sentei.search.space import Levels, Space, budgeted, tenths
from sentei.search.strategy import FAILED, Batch, Strategy


@dataclass(frozen=True)
class Synthetic:
    """A fitness with a known optimum: 1 at the best widths, less the further away, relative to each gene's range."""

    space: Space
    best: Levels

    def __call__(self, levels: Levels) -> float:
        reach = np.array([max(len(c) - 1, 1) for c in self.space.choices])
        return float(1 - np.abs((np.array(levels) - np.array(self.best)) / reach).mean())


@cache
def small_graph() -> ChannelGraph:
    """A plain network with six groups to search."""
    layers = [nn.Conv2d(a, b, 3, padding=1) for a, b in zip((3, 20, 20, 20, 20, 20), (20,) * 6, strict=True)]
    model = nn.Sequential(*layers, nn.Conv2d(20, 4, 1))
    return trace(model, torch.zeros(1, 3, 8, 8))


def small_space(budget: bool) -> Space:
    """Its structures on the grid of tenths, or within half of its MACs."""
    graph = small_graph()
    names = [g.name for g in graph.groups if not g.frozen]
    if not budget:
        return tenths(graph, names, 0.8)
    return budgeted(graph, names, Budget(macs=0.5), Constraints(round_to=1, max_ratio=0.9))


def play(strategy: Strategy, fitness: Callable[[Levels], float], batches: int) -> list[Batch]:
    """Ask and tell so often; returns what was proposed."""
    seen = []
    for _ in range(batches):
        batch = strategy.ask()
        if batch is None:
            break
        seen.append(batch)
        strategy.tell([fitness(levels) for levels in batch.structures])
    return seen


class StrategyConformance:
    """Grid and budget, nothing twice, seeds, replay, limits, failures, and a best that is the best."""

    def strategy(self, space: Space, **options: Any) -> Strategy:
        raise NotImplementedError

    def fitness(self, space: Space) -> Synthetic:
        return Synthetic(space, space.random(np.random.default_rng(99)))

    def proposals(self, space: Space, batches: int = 12, **options: Any) -> list[Levels]:
        played = play(self.strategy(space, **options), self.fitness(space), batches)
        return [levels for batch in played for levels in batch.structures]

    def test_structures_are_on_the_grid(self) -> None:
        space = small_space(budget=False)
        proposed = np.array(self.proposals(space))
        assert (proposed >= 0).all()
        assert (proposed < [len(c) for c in space.choices]).all()

    def test_structures_are_on_the_budget(self) -> None:
        space = small_space(budget=True)
        graph = small_graph()
        macs = graph.costs(np.stack([space.widths(s) for s in self.proposals(space, 6)])).macs / graph.cost().macs
        assert macs.max() <= 0.5
        assert macs.min() > 0.48

    def test_nothing_is_proposed_twice_unless_asked(self) -> None:
        proposed = self.proposals(small_space(budget=False))
        assert len(set(proposed)) == len(proposed) > 30

    def test_a_small_space_is_exhausted_and_then_the_end_is_told(self) -> None:
        graph = trace(nn.Sequential(nn.Conv2d(3, 10, 1), nn.Conv2d(10, 4, 1)), torch.zeros(1, 3, 4, 4))
        space = tenths(graph, ["0"], 0.7)
        strategy = self.strategy(space)
        played = play(strategy, lambda levels: float(levels[0]), 200)
        assert strategy.ask() is None
        assert sorted(levels for batch in played for levels in batch.structures) == [(i,) for i in range(7)]
        assert strategy.best == (6,)

    def test_same_seed_same_proposals_and_another_seed_others(self) -> None:
        space = small_space(budget=True)
        first, again, other = (self.proposals(space, 4, seed=seed) for seed in (1, 1, 2))
        assert first == again
        assert first != other

    def test_replay_leads_to_the_same_state(self) -> None:
        space = small_space(budget=True)
        fitness = self.fitness(space)
        first, second = self.strategy(space, seed=3), self.strategy(space, seed=3)
        told = {levels: fitness(levels) for batch in play(first, fitness, 7) for levels in batch.structures}
        play(second, told.__getitem__, 7)
        assert first.ask() == second.ask()
        assert (first.best, first.best_fitness) == (second.best, second.best_fitness)
        assert first.rng.bit_generator.state == second.rng.bit_generator.state

    def test_evaluations_are_a_hard_limit(self) -> None:
        assert len(self.proposals(small_space(budget=True), batches=100, evaluations=37)) == 37

    def test_failures_are_survived_and_never_the_best(self) -> None:
        space = small_space(budget=True)
        fitness = self.fitness(space)
        strategy = self.strategy(space)
        play(strategy, lambda levels: FAILED if sum(levels) % 2 else fitness(levels), 10)
        assert strategy.best is not None
        assert sum(strategy.best) % 2 == 0

    def test_the_best_is_the_best_of_what_was_told(self) -> None:
        space = small_space(budget=True)
        strategy, fitness = self.strategy(space), self.fitness(space)
        proposed = [levels for batch in play(strategy, fitness, 8) for levels in batch.structures]
        assert strategy.best_fitness == max(map(fitness, proposed)) == fitness(strategy.best or ())
