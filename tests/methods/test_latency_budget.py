"""Budgets of milliseconds: what is measured after the cut decides, with every kind of method."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import sentei
from sentei import Budget, Constraints, LatencyTable
from sentei.data import Data
from sentei.errors import ConfigError
from sentei.graph.latency import axes, size
from sentei.methods import PruneResult
from sentei.methods.common import latency
from sentei.methods.common.latency import NEAR
from sentei.speed.latency import Timing
from sentei.train import Recipe

ONE = Constraints(round_to=1, max_ratio=0.9)
QUICK = Recipe(epochs=1, batch_size=64, lr=0.02, limit=320)
OPTIONS: dict[str, dict[str, Any]] = {
    "l1": {},
    "uniform": {},
    "abc": {"evaluations": 6, "calibration_images": 128, "validation_images": 64},
    "stagewise": {"supernet_epochs": 1, "evaluations": 12, "table_images": 64, "candidates": 2,
                  "calibration_images": 128, "validation_images": 64},
    "ista": {"sparse_epochs": 1},
}  # fmt: skip


def table_of(graph: sentei.ChannelGraph) -> LatencyTable:
    """Layers that take a nanosecond a MAC."""
    times = []
    for c, macs in zip(graph.trace_record.contractions, graph.costs_of.parts("macs", graph.widths()), strict=True):
        each, full = 1e-6 * float(macs), [size(c.factors[i]) for i in axes(c)]
        times.append((0.0, each / full[0], 0.0, 0.0) if len(full) == 1 else (0.0, 0.0, 0.0, each / full[0] / full[1]))
    full_ms = 1e-6 * graph.cost().macs
    layers = tuple((c.where, c.operation) for c in graph.trace_record.contractions)
    return LatencyTable(
        "eager", 1, "thread", 1, layers, tuple(times), 1.0, 0.0, 0.0, ((full_ms, full_ms),), str(graph.inputs), {}, {}
    )


@pytest.fixture
def table(data: Data, three: nn.Module, tmp_path: Path) -> Path:
    example = next(iter(data.train.batches(1, limit=1)))[0]
    table_of(sentei.trace(three, example)).save(tmp_path / "table.json")
    return tmp_path / "table.json"


def slower(by: float) -> Callable[..., dict[str, Any]]:
    """A machine on which cut networks take longer than the table says."""

    def timed(pruning: Any, small: nn.Module) -> dict[str, Any]:
        dense, now = pruning.graph.cost().macs, pruning.trace(small).cost().macs
        return {"dense_ms": 1e-6 * dense, "small_ms": by * 1e-6 * now, "share": by * now / dense}

    return timed


def prune(model: nn.Module, data: Data, method: str, table: Path, **more: Any) -> PruneResult:
    return sentei.prune(
        model, data, method=method, recipe=QUICK, constraints=ONE, images=128, timing=Timing("eager", 1, str(table)),
        **{"budget": Budget(latency=0.5), **OPTIONS[method], **more},
    )  # fmt: skip


@pytest.mark.parametrize("method", list(OPTIONS))
def test_a_network_that_is_slower_than_predicted_is_cut_again(
    method: str, data: Data, three: nn.Module, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency, "_timed", slower(1.12))
    result = prune(three, data, method, table)
    found = result.summary["latency"]
    assert found["tries"][0]["used"] > 1 + NEAR or method == "stagewise"  # its steps are coarse
    assert found["share"] <= 0.5 * (1 + NEAR)
    assert found["share"] > 0.4
    assert found["share"] == pytest.approx(1.12 * result.graph.cost(result.plan).macs / result.graph.cost().macs)
    assert found["predicted_ms"] == pytest.approx(1e-6 * result.summary["pruned"]["macs"])
    assert result.summary["check"]["max_error"] < 1e-4


def test_one_that_is_as_fast_as_predicted_is_cut_once(
    data: Data, three: nn.Module, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency, "_timed", slower(1.0))
    found = prune(three, data, "l1", table).summary["latency"]
    assert len(found["tries"]) == 1
    assert 0.48 < found["share"] <= 0.5


def test_between_a_network_that_is_too_slow_and_one_that_is_too_fast_lies_the_next(
    data: Data, three: nn.Module, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def timed(pruning: Any, small: nn.Module) -> dict[str, Any]:
        share = 1.9 * pruning.trace(small).cost().macs / (dense := pruning.graph.cost().macs) - 0.4
        return {"dense_ms": 1e-6 * dense, "small_ms": 1e-6 * dense * share, "share": share}

    monkeypatch.setattr(latency, "_timed", timed)
    found = prune(three, data, "l1", table).summary["latency"]
    used = [t["used"] for t in found["tries"]]
    assert used[0] > 1 + NEAR
    assert used[1] < 1 - NEAR
    assert abs(used[2] - 1) <= NEAR
    assert found["share"] == 0.5 * used[2]


def test_the_nearest_is_kept_where_none_is_within_reach(
    data: Data, three: nn.Module, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency, "_timed", slower(30.0))
    found = prune(three, data, "l1", table).summary["latency"]
    assert found["share"] == min(t["share"] for t in found["tries"]) > 0.5


def test_a_killed_run_goes_on_with_the_times_that_it_measured(
    data: Data, three: nn.Module, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency, "_timed", slower(1.12))
    whole = prune(three, data, "l1", table, run_dir=tmp_path / "whole")

    def dies(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(sys.modules["sentei.methods.prune"], "save", dies)
        with pytest.raises(KeyboardInterrupt):
            prune(three, data, "l1", table, run_dir=tmp_path / "killed")
    monkeypatch.setattr(latency, "_timed", slower(0.5))  # another time of day
    again = prune(three, data, "l1", table, run_dir=tmp_path / "killed")
    assert again.plan == whole.plan
    assert again.summary["latency"] == whole.summary["latency"]


def test_milliseconds_and_memory_together(
    data: Data, three: nn.Module, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency, "_timed", slower(1.0))
    full = 1e-6 * table_macs(three, data)
    result = prune(three, data, "l1", table, budget=Budget(latency_ms=0.5 * full, memory=0.6))
    cost, whole = result.graph.cost(result.plan), result.graph.cost()
    assert cost.memory <= 0.6 * whole.memory
    assert (cost.latency_ms or 0) <= 0.5 * full


def table_macs(model: nn.Module, data: Data) -> int:
    return sentei.trace(model, next(iter(data.train.batches(1, limit=1)))[0]).cost().macs


def test_a_table_of_another_runtime_is_refused(data: Data, three: nn.Module, table: Path) -> None:
    with pytest.raises(ConfigError, match="measured in eager with 1 threads; asked for is eager with 2"):
        sentei.prune(three, data, method="l1", budget=Budget(latency=0.5), timing=Timing("eager", 2, str(table)))


def test_stage_tables_cannot_add_up_a_peak(data: Data, three: nn.Module) -> None:
    with pytest.raises(ConfigError, match="memory is a peak"):
        sentei.prune(three, data, method="stagewise", budget=Budget(memory=0.5), **OPTIONS["stagewise"])


@pytest.mark.slow
def test_measured_for_real(data: Data, three: nn.Module, tmp_path: Path) -> None:
    result = sentei.prune(
        three, data, method="l1", budget=Budget(latency=1.0), timing=Timing("eager"), recipe=QUICK, constraints=ONE,
        images=64, run_dir=tmp_path / "run",
    )  # fmt: skip
    found = result.summary["latency"]
    assert found["dense_ms"] > 0 < found["small_ms"]
    assert 1 <= len(found["tries"]) <= 4
    assert not list((tmp_path / "run").glob("*.ckpt"))
