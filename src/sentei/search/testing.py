"""Tests that every search strategy must pass, to subclass under pytest.

class TestMine(StrategyConformance):
    def strategy(self, space, **options):
        return MyStrategy(space, **options)

`SteadyConformance` is for those that also work one by one (`Strategy.draft`).
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
from sentei.search.strategy import FAILED, Batch, Proposal, Strategy


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


Told = tuple[Proposal, int]
"""A proposal, and how many had been proposed when its answer came."""


def play_steady(
    strategy: Strategy, fitness: Callable[[Levels], float], answers: int, pending: int, chance: int | None = None
) -> list[Told]:
    """Keep so many structures out and answer so often, in an order that a seed decides, or first come first served.

    Returns what was answered, in that order.
    """
    rng = None if chance is None else np.random.default_rng(chance)
    out: list[Proposal] = []
    told: list[Told] = []
    while len(told) < answers:
        while len(out) < pending and (proposal := strategy.propose()):
            out.append(proposal)
        if not out:
            break
        answered = out.pop(0 if rng is None else int(rng.integers(len(out))))
        told.append((answered, strategy.proposed))
        strategy.learn(answered, fitness(answered.levels))
    return told


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


class SteadyConformance(StrategyConformance):
    """The same one by one, with structures out and answers in any order."""

    PENDING = 7

    def steady(self, space: Space, answers: int = 120, chance: int | None = 1, **options: Any) -> list[Told]:
        return play_steady(self.strategy(space, **options), self.fitness(space), answers, self.PENDING, chance)

    def test_steady_structures_are_on_the_budget_and_none_comes_twice(self) -> None:
        space, graph = small_space(budget=True), small_graph()
        proposed = [p.levels for p, _ in self.steady(space)]
        macs = graph.costs(np.stack([space.widths(s) for s in proposed])).macs / graph.cost().macs
        assert macs.max() <= 0.5
        assert macs.min() > 0.48
        assert len(set(proposed)) == len(proposed) == 120

    def test_steady_keeps_as_many_out_as_asked_for(self) -> None:
        told = self.steady(small_space(budget=True))
        assert [proposed - i for i, (_, proposed) in enumerate(told)] == [self.PENDING] * len(told)
        assert all(p.number < proposed for p, proposed in told)

    def test_steady_exhausts_a_small_space(self) -> None:
        graph = trace(nn.Sequential(nn.Conv2d(3, 10, 1), nn.Conv2d(10, 4, 1)), torch.zeros(1, 3, 4, 4))
        strategy = self.strategy(tenths(graph, ["0"], 0.7))
        played = play_steady(strategy, lambda levels: float(levels[0]), 200, 3, chance=0)
        assert strategy.propose() is None
        assert sorted(p.levels for p, _ in played) == [(i,) for i in range(7)]
        assert strategy.best == (6,)

    def test_steady_follows_from_the_seed_and_the_order_of_answers(self) -> None:
        space = small_space(budget=True)
        assert self.steady(space, seed=1) == self.steady(space, seed=1)
        assert self.steady(space, seed=1) != self.steady(space, seed=2)

    def test_steady_replay_of_the_answers_leads_to_the_same_state_with_any_number_out(self) -> None:
        space = small_space(budget=True)
        fitness = self.fitness(space)
        first, second = self.strategy(space, seed=3), self.strategy(space, seed=3)
        told = play_steady(first, fitness, 50, self.PENDING, chance=5)
        out: dict[int, Proposal] = {}
        for answered, proposed in told:
            while second.proposed < proposed:
                proposal = second.propose()
                assert proposal is not None
                out[proposal.number] = proposal
            assert out.pop(answered.number) == answered
            second.learn(answered, fitness(answered.levels))
        assert first.propose() == second.propose()
        assert (first.best, first.best_fitness) == (second.best, second.best_fitness)
        assert first.rng.bit_generator.state == second.rng.bit_generator.state

    def test_steady_evaluations_are_a_hard_limit(self) -> None:
        assert len(self.steady(small_space(budget=True), evaluations=37)) == 37

    def test_steady_failures_are_survived_and_never_the_best(self) -> None:
        space = small_space(budget=True)
        fitness, strategy = self.fitness(space), self.strategy(space)
        told = play_steady(strategy, lambda s: FAILED if sum(s) % 2 else fitness(s), 100, self.PENDING, chance=2)
        assert len(told) == 100
        assert strategy.best is not None
        assert sum(strategy.best) % 2 == 0

    def test_steady_best_is_the_best_of_what_was_told(self) -> None:
        space = small_space(budget=True)
        fitness, strategy = self.fitness(space), self.strategy(space)
        told = play_steady(strategy, fitness, 100, self.PENDING, chance=3)
        assert strategy.best_fitness == max(fitness(p.levels) for p, _ in told) == fitness(strategy.best or ())
