"""The bees by hand, and every strategy by the conformance tests."""

import numpy as np
import pytest

from sentei.errors import ConfigError
from sentei.search import Batch, Colony, Evolution, RandomSearch, Space, Strategy
from sentei.search.colony import rank_probability, visit_probability
from sentei.search.testing import SteadyConformance, Synthetic, play, play_steady, small_space


class TestColony(SteadyConformance):
    def strategy(self, space, **options):
        return Colony(space, **options)


class TestPaperColony(SteadyConformance):
    def strategy(self, space, **options):
        return Colony(space, onlookers="fitness", abandon_after=1, sources=4, moved=1, guide=0, **options)


class TestEvolution(SteadyConformance):
    def strategy(self, space, **options):
        return Evolution(space, **options)


class TestRandomSearch(SteadyConformance):
    def strategy(self, space, **options):
        return RandomSearch(space, **options)


@pytest.mark.parametrize("kind", [Colony, Evolution, RandomSearch])
def test_a_search_begins_with_the_structures_that_it_is_given(kind):
    space = small_space(budget=True)
    given = list(dict.fromkeys(space.random(np.random.default_rng(seed)) for seed in range(3)))
    batchwise, steady = kind(space), kind(space)
    for strategy in (batchwise, steady):
        strategy.begin_with([*given, given[0]])
    assert batchwise.ask().structures[: len(given)] == given
    proposed = [steady.propose().levels for _ in range(8)]
    assert proposed[: len(given)] == given
    assert len(set(proposed)) == 8


class Script:
    """Random numbers that were written down beforehand."""

    def __init__(self, **values):
        self.values = {name: list(v) for name, v in values.items()}

    def __getattr__(self, name):
        return lambda *args, **kwargs: self.values[name].pop(0)


def grid(*sizes):
    return Space(tuple(f"g{i}" for i in range(len(sizes))), tuple(np.arange(1, n + 1) for n in sizes),
                 np.arange(len(sizes)), np.array(sizes))  # fmt: skip


def colony(space, sources, fitness, **options):
    bees = Colony(space, sources=len(sources), **{"moved": 1, "guide": 0, **options})
    bees.sources, bees.fitness = [tuple(s) for s in sources], np.array(fitness, float)
    bees.trials = np.zeros(len(sources), np.int64)
    return bees


def test_employed_bee_moves_every_gene_along_the_difference_and_rounds_to_the_nearest():
    bees = colony(grid(10, 10, 10), [(4, 6, 9), (2, 9, 9)], [0.5, 0.6])
    bees.rng = Script(choice=[1], uniform=[np.array([0.8, -0.5, 0.3])])
    # 4 + 0.8 * (4 - 2) = 5.6 -> 6;  6 - 0.5 * (6 - 9) = 7.5 -> 8;  9 + 0.3 * 0 = 9
    assert bees._move(0) == (6, 8, 9)


def test_moves_end_at_the_borders_of_the_grid():
    bees = colony(grid(10, 10), [(8, 1), (1, 5)], [0.5, 0.6])
    bees.rng = Script(choice=[1], uniform=[np.array([0.9, 0.9])])
    # 8 + 0.9 * 7 = 14.3 -> 9;  1 + 0.9 * (1 - 5) = -2.6 -> 0
    assert bees._move(0) == (9, 0)


def test_rounding_is_to_the_nearest_and_not_towards_zero():
    bees = colony(grid(10), [(5,), (4,)], [0.5, 0.6])
    bees.rng = Script(choice=[1, 1, 1], uniform=[np.array([-0.4]), np.array([-0.6]), np.array([0.6])])
    bees._step_aside = lambda x: "stays"
    assert [bees._move(0) for _ in range(3)] == ["stays", (4,), (6,)]


def test_a_bee_that_would_stay_changes_one_gene():
    bees = colony(grid(10, 10), [(3, 3), (3, 3)], [0.5, 0.5], seed=0)
    for _ in range(50):
        moved = bees._move(0)
        assert sum(a != b for a, b in zip(moved, (3, 3), strict=True)) == 1


def test_every_gene_moves_the_last_one_too():
    bees = colony(grid(10, 10, 10), [(2, 5, 3), (8, 1, 9), (5, 9, 0)], [0.5, 0.5, 0.5], seed=1)
    moved = np.array([bees._move(0) for _ in range(200)]) != [2, 5, 3]
    assert (moved.mean(0) > 0.4).all()


def test_a_guided_bee_is_pulled_towards_the_best_and_some_genes_rest():
    bees = colony(grid(10, 10, 10), [(4, 6, 1), (2, 9, 5)], [0.5, 0.6], guide=1.5, moved=0.5)
    bees.best = (8, 2, 9)
    drawn = [np.array([0.5, 0.5, 0.5]), np.array([0.5, 1.0, 0.5])]
    bees.rng = Script(choice=[1], uniform=drawn, random=[np.array([0.4, 0.4, 0.9])], integers=[0])
    # 4 + 0.5 * (4 - 2) + 0.5 * (8 - 4) = 7;  6 + 0.5 * (6 - 9) + 1 * (2 - 6) = 0.5 -> 1;  the third rests
    assert bees._move(0) == (7, 1, 1)


def test_greedy_choice_and_counters():
    bees = colony(grid(10), [(5,), (4,)], [0.5, 0.6])
    bees.settle(0, (6,), 0.4)
    bees.settle(0, (7,), 0.5)
    assert (bees.sources[0], bees.fitness[0], bees.trials.tolist()) == ((5,), 0.5, [2, 0])
    bees.settle(0, (8,), 0.51)
    assert (bees.sources[0], bees.fitness[0], bees.trials.tolist()) == ((8,), 0.51, [0, 0])


def test_onlookers_of_the_paper_visit_with_their_probability():
    assert visit_probability(np.array([0.45, 0.9, 0.0])).tolist() == pytest.approx([0.55, 1.0, 0.1])
    assert visit_probability(np.array([-np.inf, 0.5])).tolist() == [0.1, 1.0]
    bees = colony(grid(10), [(1,), (2,), (3,)], [0.45, 0.9, 0.0], onlookers="fitness")
    bees.rng = Script(random=[np.array([0.54, 0.99, 0.11])])
    assert bees.visits() == [0, 1]


def test_onlookers_by_rank_prefer_the_best_however_close_the_fitness():
    assert rank_probability(np.array([0.901, 0.903, 0.902])).tolist() == pytest.approx([0, 2 / 3, 1 / 3])
    assert rank_probability(np.array([0.5, 0.5])).tolist() == [0.5, 0.5]
    assert rank_probability(np.array([-np.inf, 0.5, 0.5])).tolist() == pytest.approx([0, 0.5, 0.5])
    assert rank_probability(np.array([0.3])).tolist() == [1.0]


def test_every_exhausted_source_is_scouted_over_the_full_range():
    space = grid(10, 10)
    bees = colony(space, [(1, 1), (2, 2), (3, 3)], [0.1, 0.2, 0.3], abandon_after=2, seed=4)
    bees.trials[:] = [3, 2, 9]
    steps = bees._scouts(1)
    batch = next(steps)
    assert batch.phase == "scout"
    assert len(batch.structures) == 2
    with pytest.raises(StopIteration):
        steps.send(np.array([0.05, 0.9]))
    assert bees.sources == [batch.structures[0], (2, 2), batch.structures[1]]
    assert bees.fitness.tolist() == [0.05, 0.2, 0.9]
    assert bees.trials.tolist() == [0, 2, 0]
    drawn = np.array([space.random(bees.rng) for _ in range(400)])
    assert set(drawn[:, 0]) == set(range(10))


def test_the_number_of_evaluations_of_the_paper():
    """n + T (2n + scouts) at most."""
    space = small_space(budget=False)
    played = play(Colony(space, sources=3, cycles=2, abandon_after=2, onlookers="fitness"), lambda s: 0.5, 99)
    bees = ["employed", "onlooker"]
    assert [b.phase for b in played if b.phase != "scout"] == ["sources", *bees, *bees]
    assert 3 + 2 * 3 <= sum(len(b.structures) for b in played) <= 3 + 2 * (2 * 3 + 3)


@pytest.mark.parametrize(("budget", "evaluations"), [(False, 300), (True, 120)])
def test_the_colony_finds_the_optimum_more_often_than_random_search(budget, evaluations):
    """Ten seeded runs on a synthetic fitness with a known optimum: how close does each come?"""
    space = small_space(budget)
    wins, reached = 0, {"bees": 0, "random": 0}
    for seed in range(10):
        fitness = Synthetic(space, space.random(np.random.default_rng(1000 + seed)))
        bees = Colony(space, seed=seed, evaluations=evaluations)
        chance = RandomSearch(space, seed=seed, evaluations=evaluations)
        for strategy in (bees, chance):
            play(strategy, fitness, 1000)
            assert strategy.proposed == evaluations
        wins += bees.best_fitness > chance.best_fitness
        reached["bees"] += bees.best_fitness > 0.95
        reached["random"] += chance.best_fitness > 0.95
    assert wins >= 9, (wins, reached)
    assert reached["bees"] > reached["random"] + 5, reached


def test_tell_refuses_the_wrong_number_of_values():
    bees = Colony(grid(10, 10), sources=3)
    with pytest.raises(ValueError, match="no batch"):
        bees.tell([1.0])
    bees.ask()
    with pytest.raises(ValueError, match="expected 3 values"):
        bees.tell([1.0])


def test_not_a_number_counts_as_failed():
    bees = Colony(grid(10, 10), sources=3)
    bees.ask()
    bees.tell([float("nan"), 0.2, float("nan")])
    assert bees.best_fitness == 0.2


def test_steady_evolution_breeds_from_the_best_answered_so_far():
    space = grid(10, 10, 10, 10)
    fitness = Synthetic(space, (9, 0, 9, 0))
    evolution = Evolution(space, population=6, parents=2, seed=1)
    told = [p for p, _ in play_steady(evolution, fitness, 60, 4)]
    assert [p.phase for p in told] == ["first"] * 6 + ["evolution"] * 54
    best_two = sorted((fitness(p.levels) for p in told), reverse=True)[:2]
    assert [value for value, _ in evolution.elite] == best_two


def test_steady_bees_fly_in_the_order_of_their_phases_and_settle_where_they_started():
    bees = Colony(grid(10, 10, 10), sources=3, cycles=2, abandon_after=50, seed=4)
    told = [p for p, _ in play_steady(bees, lambda s: float(sum(s)), 100, 1)]
    assert [p.phase for p in told] == ["sources"] * 3 + (["employed"] * 3 + ["onlooker"] * 3) * 2
    assert [p.source for p in told if p.phase == "employed"] == [0, 1, 2] * 2
    assert [p.cycle for p in told] == [0] * 3 + [1] * 6 + [2] * 6
    placed = {p.levels for p in told}
    assert set(bees.sources) <= placed
    assert bees.fitness.tolist() == [float(sum(s)) for s in bees.sources]
    assert max(bees.fitness) == max(float(sum(p.levels)) for p in told)


def test_steady_sources_are_the_best_of_all_that_were_out_at_first():
    bees = Colony(grid(10, 10, 10), sources=3, seed=4)
    first = [bees.propose() for _ in range(20)]
    assert {p.phase for p in first} == {"sources"}
    for p in reversed(first):
        bees.learn(p, float(sum(p.levels)))
    assert sorted(bees.fitness) == sorted(float(sum(p.levels)) for p in first)[-3:]


def test_a_steady_source_is_left_once_by_one_scout():
    bees = Colony(grid(10, 10, 10, 10), sources=2, abandon_after=3, seed=4)
    told = [p for p, _ in play_steady(bees, lambda s: -float(len(s)), 60, 5, chance=0)]
    scouts = [p for p in told if p.phase == "scout"]
    assert len(scouts) > 4
    assert {p.source for p in scouts} == {0, 1}
    assert bees.trials.max() <= 3 + 5 + 1


def test_a_strategy_of_whole_batches_says_that_it_has_no_steady_state():
    class Whole(Strategy):
        def steps(self):
            yield Batch("all", 0, [(0, 0)])

    with pytest.raises(ConfigError, match="Whole proposes whole batches and has no steady state: leave out pending"):
        Whole(grid(3, 3)).propose()
