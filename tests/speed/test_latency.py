"""Latency tables on a machine whose times are known, and what a file of one must survive."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import sentei
from sentei import LatencyTable, trace
from sentei.errors import CheckpointError, ConfigError, ExportError
from sentei.graph.latency import axes, size
from sentei.plan.allocate import plan_from_widths
from sentei.speed import latency
from sentei.speed.latency import interpolated, points, vector_step
from sentei.speed.one_layer import Layer, layer_at
from sentei.threads import with_threads
from tests.random_networks import conv

CALL = 2e-6


class Net(nn.Module):
    """A residual block, a depthwise and a grouped convolution, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = conv(3, 64), conv(64, 64), conv(64, 64)
        self.depthwise, self.grouped = conv(64, 64, groups=64), conv(64, 64, groups=4)
        self.head = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).relu()
        x = x + self.b(self.a(x).relu())
        x = self.grouped(self.depthwise(x)).relu()
        return self.head(x.mean((2, 3)))


IMAGE = torch.zeros(1, 3, 8, 8)


def seconds_of(layer: Layer) -> float:
    """On this machine, whose kernels compute in steps of 8: so long for each multiplication and for each output."""
    outputs, inputs = (8 * -(-n // 8) for n in (layer.weight[-1], layer.weight[-2]))
    pixels, kernel = 1, 1
    if layer.kernel is not None:
        outputs, inputs = (8 * -(-n // 8) for n in layer.weight[:2])
        pixels, kernel = int(np.prod(layer.kernel.space)), int(np.prod(layer.kernel.size))
    return CALL + 1e-9 * pixels * kernel * outputs * inputs + 3e-9 * pixels * outputs


class Known:
    """A `Timer` that knows what every pass takes."""

    def __init__(self, passes: dict[Any, Callable[[], Any]], clock: Any) -> None:
        self.passes = passes
        self.rounds = 0

    def round(self) -> None:
        self.rounds += 1

    def fast(self, name: Any) -> float:
        assert self.rounds
        return seconds_of(name) if isinstance(name, Layer) else float(self.passes[name]())


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which whole networks take 0.8 of their layers, 2 ns a byte, and 50 us."""

    def whole(model: nn.Module, graph: sentei.ChannelGraph, runtime: str, threads: int) -> Callable[[], float]:
        own = trace(model, IMAGE)
        layers = [layer_at(c, [size(c.factors[i]) for i in axes(c)]) for c in own.trace_record.contractions]
        alone = sum(seconds_of(layer) - CALL for layer in layers if layer is not None)
        return lambda: 0.8 * alone + 2e-9 * own.cost().activation_bytes + 5e-5

    monkeypatch.setattr(latency, "Timer", Known)
    monkeypatch.setattr(latency, "clock_for", lambda once, threads: None)
    monkeypatch.setattr(latency, "vector_step", lambda runtime, threads: 8)
    monkeypatch.setattr(latency, "whole_pass", whole)
    monkeypatch.setattr(Layer, "prepare", lambda self, runtime, threads: lambda: None)


@pytest.mark.usefixtures("machine")
def test_every_plan_is_predicted_where_times_are_as_the_table_thinks() -> None:
    torch.manual_seed(0)
    net = Net()
    graph = trace(net, IMAGE)
    table = LatencyTable.measure(graph, net, runtime="eager")
    assert table.error < 1e-6
    timed = graph.with_latency(table)
    rng = np.random.default_rng(0)
    for _ in range(10):
        widths = np.where([g.frozen for g in graph.groups], graph.widths(), 8 * rng.integers(1, 9, len(graph.groups)))
        widths = np.minimum(widths, graph.widths())
        small = sentei.cut(net, graph, plan_from_widths(graph, widths))
        true = latency.whole_pass(small, graph, "eager", 1)()
        assert float(timed.costs(widths).latency_ms) == pytest.approx(1e3 * true, rel=0.01)


@given(st.lists(st.floats(0, 5), min_size=4, max_size=4), st.sampled_from([1, 2]))
def test_times_linear_in_each_axis_are_found(c: list[float], n_axes: int) -> None:
    used = [c[0] + 0.1, c[1], c[2] * (n_axes == 2), c[3] * (n_axes == 2)]
    at = [(a, b)[:n_axes] for a in (16, 32) for b in ((8, 64) if n_axes == 2 else (0,))]
    measured = [used[0] + used[1] * p[0] + (used[2] * p[1] + used[3] * p[0] * p[1] if n_axes == 2 else 0) for p in at]
    found = interpolated(at, measured)
    assert (found >= 0).all()
    for p, expected in zip(at, measured, strict=True):
        a, b = (*p, 0.0)[:2]
        assert found @ [1, a, b, a * b] == pytest.approx(expected, rel=1e-6)


@given(st.integers(1, 600), st.sampled_from([8, 16]))
def test_points_lie_on_steps_wherever_there_is_room(full: int, step: int) -> None:
    found = points(full, step)
    assert found == tuple(sorted(set(found)))
    assert found[0] >= 1
    assert found[-1] <= full
    if full >= 2 * step:
        assert len(found) == 2
        assert all(n % step == 0 for n in found)
        assert full - found[-1] < step


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "shufflenet_v2_x1_0", "regnet_y_400mf", "densenet121"])
def test_a_layer_alone_does_the_work_that_the_network_counts(name: str) -> None:
    net = getattr(torchvision.models, name)()
    graph = trace(net, torch.zeros(1, 3, 64, 64))
    macs = graph.costs_of.parts("macs", graph.widths())
    for c, expected in zip(graph.trace_record.contractions, macs, strict=True):
        layer = layer_at(c, [size(c.factors[i]) for i in axes(c)])
        assert layer is not None, c.where
        out = layer.prepare("eager", torch.get_num_threads())()
        inside = layer.weight[0] if layer.kernel is None else np.prod(layer.weight[1:])
        assert out.numel() * inside == expected, c.where


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_other_runtimes_compute_the_same_layers(runtime: str) -> None:
    pytest.importorskip(runtime)
    net = nn.Sequential(
        conv(3, 16, stride=2), nn.ConvTranspose2d(16, 8, 2, 2), conv(8, 8, groups=8), nn.Flatten(), nn.Linear(512, 10)
    )
    for c in trace(net, IMAGE).trace_record.contractions:
        layer = layer_at(c, [size(c.factors[i]) for i in axes(c)])
        assert layer is not None
        found = layer.prepare(runtime, 1)()
        there = next(iter(found.values() if runtime == "openvino" else found))
        np.testing.assert_allclose(there, layer.prepare("eager", 1)().numpy(), rtol=1e-4, atol=1e-5)


def test_the_step_of_kernels_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "clock_for", lambda once, threads: None)
    monkeypatch.setattr(Layer, "prepare", lambda self, runtime, threads: lambda: self.weight[0])
    for step in (8, 16):

        class Stepped(Known):
            def fast(self, name: Any) -> float:
                return float(-(-self.passes[name]() // step))  # noqa: B023

        monkeypatch.setattr(latency, "Timer", Stepped)
        assert vector_step("eager", 1) == step


@pytest.mark.usefixtures("machine")
def test_files(tmp_path: Path) -> None:
    net = Net()
    graph = trace(net, IMAGE)
    table = LatencyTable.measure(graph, net, runtime="eager")
    table.save(tmp_path / "t.json")
    again = LatencyTable.load(tmp_path / "t.json")
    assert again == table
    again.check_fits(graph)
    with pytest.raises(ConfigError, match="another network"):
        again.check_fits(trace(net, torch.zeros(1, 3, 16, 16)))
    text = (tmp_path / "t.json").read_text()
    for damaged in (text[:-40], text.replace('"step": 8', '"step": 9'), ""):
        (tmp_path / "d.json").write_text(damaged)
        with pytest.raises(CheckpointError, match="d.json"):
            LatencyTable.load(tmp_path / "d.json")
    with pytest.raises(CheckpointError, match="no latency table"):
        LatencyTable.from_plain(json.loads(text) | {"format": "other"})
    with pytest.raises(CheckpointError, match="cannot read"):
        LatencyTable.load(tmp_path / "none.json")


def test_measuring_leaves_the_threads_as_they_were() -> None:
    """The last bits of all training after it depend on them."""
    net = nn.Sequential(conv(3, 8), conv(8, 4))
    with with_threads(2):
        LatencyTable.measure(trace(net, IMAGE), net, runtime="eager", threads=1)
        assert torch.get_num_threads() == 2


def test_a_runtime_that_does_not_exist_is_refused() -> None:
    net = Net()
    with pytest.raises(ExportError, match="expected one of eager, compile, onnxruntime, openvino"):
        LatencyTable.measure(trace(net, IMAGE), net, runtime="tensorrt")
    with pytest.raises(ConfigError, match="threads is 0"):
        LatencyTable.measure(trace(net, IMAGE), net, threads=0)
