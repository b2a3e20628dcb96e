"""Which layers are said to be slow."""

import numpy as np
import pytest

from sentei.speed.layers import FEW, MANY, LayerTimes, layer_times, profiled, slow_layers
from sentei.speed.profiles import Profile
from sentei.speed.survey import Layer


def a_layer(name, dense_ms, small_ms, dense=(64, 64), small=(32, 64), kept=0.5) -> LayerTimes:
    return LayerTimes(name, dense_ms, small_ms, Layer(1000, *dense), Layer(int(1000 * kept), *small))


def test_layers_that_lose_the_most_come_first():
    times = {"fair": (2.0, 1.0), "bad": (2.0, 3.0), "worse": (4.0, 5.0), "better": (2.0, 0.5), "slightly": (2.0, 1.05),
             "tiny": (0.001, 0.002)}  # fmt: skip
    layers = [a_layer(name, *ms) for name, ms in times.items()]
    assert [layer.name for layer in slow_layers(layers)] == ["worse", "bad"]
    assert slow_layers(layers, 1)[0].lost_ms == pytest.approx(3.0)
    assert slow_layers([]) == []


@pytest.mark.parametrize(("dense", "small", "note"), [
    ((64, 64), (63, 20), "reads 63, writes 20: not in steps of 8"),
    ((64, 64), (32, 20), "writes 20: not in steps of 8"),
    ((64, 64), (32, 40), ""), ((3, 64), (3, 40), ""), ((64, 10), (32, 10), ""), ((None, None), (None, None), ""),
])  # fmt: skip
def test_odd_widths_are_named_where_the_cut_made_them(dense, small, note):
    assert a_layer("x", 1.0, 1.0, dense, small).note == note


def test_times_of_layers_are_the_fastest_of_both_networks_in_order():
    old = {"b": Layer(100, 8, 8), "a": Layer(10, 8, 8), "gone": Layer(1, 1, 1), "unseen": Layer(1, 1, 1)}
    new = {"a": Layer(5, 4, 8), "b": Layer(50, 8, 4), "unseen": Layer(1, 1, 1)}
    spent = {name: np.array([5e-3, 2e-3, 9e-3]) for name in ("", "a", "b", "gone")} | {"unseen": np.zeros(3)}
    fast = {name: times / 2 for name, times in spent.items()}
    found = layer_times((old, spent), (new, fast))
    figures = [(layer.name, layer.dense_ms, layer.small_ms, layer.share_macs) for layer in found]
    assert figures == [("b", 2.0, 1.0, 0.5), ("a", 2.0, 1.0, 0.5)]


class Watched(Profile):
    def __init__(self, name, ran):
        self.name, self.ran = name, ran

    def once(self):
        self.ran.append(self.name)

    def seconds(self):
        return {"": np.array([self.ran.count(self.name)])}


@pytest.mark.parametrize(("step", "passes"), [(0.0, MANY), (1e9, FEW)])
def test_profiles_take_turns_until_time_is_up(step, passes):
    ran, clock = [], iter(step * i for i in range(1000))
    found = profiled({n: Watched(n, ran) for n in "ab"}, 1.0, lambda: next(clock))
    assert {name: seconds[""].item() for name, seconds in found.items()} == {"a": passes, "b": passes}
    assert all({*ran[i : i + 2]} == {"a", "b"} for i in range(0, len(ran), 2))
