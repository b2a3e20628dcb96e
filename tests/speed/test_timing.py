"""Fair timing, on clocks and passes that only pretend."""

import time
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sentei.speed import timing
from sentei.speed.timing import FEWEST, FIRST, Interval, Timer, clock_for, fast_half, interval, measure


class Machine:
    """A clock, and passes that move it on and note that they ran."""

    def __init__(self) -> None:
        self.time, self.ran = 0.0, []

    def now(self) -> float:
        return self.time

    def a_pass(self, name, seconds):
        def once():
            self.ran.append(name)
            self.time += seconds() if callable(seconds) else seconds

        return once


def timer_of(machine: Machine, **seconds) -> Timer:
    return Timer({name: machine.a_pass(name, s) for name, s in seconds.items()}, machine.now)


def test_every_round_has_every_contender_once_in_an_order_that_changes():
    machine = Machine()
    timer = timer_of(machine, a=1.0, b=2.0, c=3.0)
    machine.ran.clear()
    orders = []
    for _ in range(40):
        timer.round()
        orders.append(tuple(machine.ran[-3:]))
        assert sorted(orders[-1]) == ["a", "b", "c"]
    assert len(machine.ran) == 120
    assert len(set(orders)) == 6
    assert timer.rounds == 40
    assert timer.seconds["b"] == pytest.approx([2.0] * 40)
    assert timer.speedup("a", "c").value == pytest.approx(3)


def test_the_order_follows_from_the_seed():
    def orders(seed):
        machine = Machine()
        timer = Timer({n: machine.a_pass(n, 1.0) for n in "abc"}, machine.now, seed=seed)
        for _ in range(5):
            timer.round()
        return machine.ran

    assert orders(1) == orders(1) != orders(2)


def test_short_passes_are_timed_together():
    machine = Machine()
    timer = timer_of(machine, short=1e-4, long=0.5)
    machine.ran.clear()
    timer.round()
    assert machine.ran.count("short") == 20
    assert machine.ran.count("long") == 1
    assert timer.seconds["short"] == [pytest.approx(1e-4)]


@pytest.mark.parametrize(("threads", "device", "aside", "expected"), [
    (1, "cpu", 0.0, "thread_time"), (1, "cpu", 0.01, "thread_time"), (1, "cpu", 1.0, "perf_counter"),
    (2, "cpu", 0.0, "perf_counter"), (1, "cuda", 0.0, "perf_counter"),
])  # fmt: skip
def test_the_clock(monkeypatch, threads, device, aside, expected):
    """`aside` is what other threads compute meanwhile."""
    spent = {"thread": 0.0, "process": 0.0}
    fake = SimpleNamespace(
        thread_time=lambda: spent["thread"], process_time=lambda: spent["process"], perf_counter=time.perf_counter
    )
    monkeypatch.setattr(timing, "time", fake)

    def once():
        spent["thread"] += 1.0
        spent["process"] += 1.0 + aside

    assert clock_for(once, threads, device=device) is getattr(fake, expected)


def test_disturbances_do_not_count():
    machine, noise = Machine(), np.random.default_rng(0)
    slow = lambda usual: lambda: usual + 9 * (noise.random() < 0.4)  # noqa: E731
    timer = timer_of(machine, dense=slow(2.0), small=slow(1.0))
    for _ in range(50):
        timer.round()
    assert timer.fast("dense") == pytest.approx(2.0)
    assert timer.speedup("small", "dense") == Interval(*[pytest.approx(2.0)] * 3)


def test_fast_half():
    assert fast_half([5.0]) == 5.0
    assert fast_half([1.0, 100.0]) == 1.0
    assert fast_half([3.0, 1.0, 2.0]) == 1.5


@settings(max_examples=20)
@given(st.lists(st.floats(0.5, 2.0), min_size=2, max_size=30), st.floats(0.1, 10.0))
def test_an_interval_is_in_order_and_has_units(times, factor):
    found = interval(times)
    assert min(times) <= found.low <= found.high <= max(times)
    assert found.low <= found.value * (1 + 1e-9)
    scaled = interval([factor * t for t in times])
    assert (scaled.value, scaled.low, scaled.high) == pytest.approx((found.times(factor).value, found.times(factor).low,
                                                                     found.times(factor).high))  # fmt: skip
    assert interval(times, times) == Interval(1.0, 1.0, 1.0)


def test_intervals_hold_the_truth_as_often_as_they_say():
    """Times as a busy machine gives them; the truth is what very many rounds would find."""
    draw = np.random.default_rng(1)

    def times(n):
        load = 1 + 0.1 * draw.random(n)
        own = [np.exp(0.05 * draw.standard_normal(n)) for _ in "ab"]
        a, b = (usual + draw.exponential(1.0, n) * (draw.random(n) < 0.2) for usual in own)
        return 1.7 * load * a, load * b

    truth = np.divide(*(fast_half(t) for t in times(200_000)))
    found = [interval(*times(40)) for _ in range(150)]
    assert np.mean([f.low <= truth <= f.high for f in found]) >= 0.9
    assert np.mean([f.width for f in found]) < 0.1


def test_measuring_ends_when_the_intervals_are_narrow():
    machine = Machine()
    timer = timer_of(machine, dense=2.0, small=1.0)
    assert measure(timer, lambda t: [t.speedup("small", "dense")], 1e9, machine.now)
    assert timer.rounds == FIRST


def test_measuring_goes_on_while_an_interval_is_wide():
    machine, looks = Machine(), []
    timer = timer_of(machine, dense=2.0, small=1.0)
    widths = iter([0.5, 0.1, 0.03, 0.019])

    def intervals(t):
        width = next(widths)
        return [Interval(1.0, 1.0, 1.0), Interval(1.0, 1 - width / 2, 1 + width / 2)]

    assert measure(timer, intervals, 1e9, machine.now, told=lambda t, width: looks.append((t.rounds, width)))
    assert [round(width, 6) for _, width in looks] == [0.5, 0.1, 0.03, 0.019]
    rounds = [n for n, _ in looks]
    assert rounds[0] == FIRST
    assert all(1.1 < b / a < 1.5 for a, b in zip(rounds, rounds[1:], strict=False))


def test_measuring_ends_when_time_is_up_and_says_that_it_is_not_sure():
    machine, noise = Machine(), np.random.default_rng(0)
    timer = timer_of(machine, dense=lambda: 1 + noise.random(), small=lambda: 1 + noise.random())
    assert not measure(timer, lambda t: [t.speedup("small", "dense")], 30.0, machine.now)
    assert 30 <= machine.time < 45


def test_there_are_a_few_rounds_in_any_case():
    machine = Machine()
    timer = timer_of(machine, dense=100.0, small=60.0)
    measure(timer, lambda t: [t.speedup("small", "dense")], 1.0, machine.now)
    assert timer.rounds == FEWEST
