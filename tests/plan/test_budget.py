import math
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sentei.errors import ConfigError
from sentei.plan import Budget
from tests.plan.fakes import chain


def test_fractions_are_of_the_full_model_and_the_rest_is_absolute():
    graph = chain(16, 32)
    full = graph.cost()
    assert Budget(macs=0.5, params=1000).resolve(graph) == {"macs": full.macs // 2, "params": 1000}
    assert Budget(activation_bytes=0.25).resolve(graph) == {"activation_bytes": full.activation_bytes // 4}
    assert Budget(macs=1.0).resolve(graph) == {"macs": full.macs}
    assert Budget(macs=20.7).resolve(graph) == {"macs": 20}


@given(st.integers(1, 1000), st.integers(1, 1000))
def test_fractions_are_taken_as_written_in_decimal(thousandths, width):
    graph = chain(width, kernel=1, pixels=1)
    assert Budget(params=thousandths / 1000).resolve(graph) == {"params": 13 * width * thousandths // 1000}


def test_milliseconds_need_measured_times():
    for budget in (Budget(latency=0.5), Budget(macs=0.5, latency_ms=3)):
        with pytest.raises(ConfigError, match="no measured times: graph.with_latency"):
            budget.resolve(SimpleNamespace(timed=False))


def test_shares_and_milliseconds_of_time():
    graph = SimpleNamespace(timed=True, cost=lambda: SimpleNamespace(macs=100, latency_ms=8.0))
    assert Budget(latency=0.5).resolve(graph) == {"latency_ms": 4.0}
    assert Budget(latency_ms=0.3).resolve(graph) == {"latency_ms": 0.3}  # milliseconds, however few
    assert Budget(macs=0.5, latency=0.5, latency_ms=3).resolve(graph) == {"macs": 50, "latency_ms": 3}
    assert Budget(macs=0.5, latency=0.5).in_milliseconds(3.5) == Budget(macs=0.5, latency_ms=3.5)
    with pytest.raises(ConfigError, match=r"latency=5 is a share.*latency_ms=5"):
        Budget(latency=5)


def test_something_must_be_set():
    with pytest.raises(ConfigError, match=r"Budget\(macs=0.5\)"):
        Budget()


@pytest.mark.parametrize("value", [0, 0.0, -0.5, -3])
def test_limits_must_be_positive(value):
    with pytest.raises(ConfigError, match="macs=.* larger than 0"):
        Budget(macs=value)


@pytest.mark.parametrize("value", [math.nan, math.inf, True, "0.5"])
def test_limits_must_be_numbers(value):
    with pytest.raises(ConfigError, match="params=.*expected a number"):
        Budget(params=value)


def test_the_integer_one_is_ambiguous():
    with pytest.raises(ConfigError, match="ambiguous.*1.0"):
        Budget(macs=1)


def test_a_number_between_one_and_two_is_a_mistake():
    with pytest.raises(ConfigError, match="at most 1.0"):
        Budget(macs=1.5)


def test_repr_shows_what_is_set():
    assert repr(Budget(macs=0.5, params=200)) == "Budget(macs=0.5, params=200)"
    assert Budget(macs=0.5) == Budget(macs=0.5)
