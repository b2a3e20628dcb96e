"""`bench` and its file: figures on a machine that only pretends, and on this one."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import sentei
from sentei.errors import CheckpointError, ConfigError, ExportError
from sentei.graph.inputs import Inputs
from sentei.models import build_model
from sentei.sealed import sealed_json
from sentei.speed import bench as benching
from sentei.speed.bench import batched, bench
from sentei.speed.benchfile import append_bench, entry_of, read_bench
from sentei.speed.profiles import Profile
from sentei.speed.runtimes import RUNTIMES, Placed, Runtime


class Watched(Profile):
    def __init__(self, layers, seconds):
        self.layers, self.each = layers, seconds

    def once(self):
        pass

    def seconds(self):
        return {name: np.full(3, self.each) for name in ["", *self.layers]}


class Pretended(Runtime):
    """A pass takes as many seconds as its network has parameters, on a clock of its own."""

    def __init__(self):
        self.time, self.placed = 0.0, []

    def place(self, model, example, *, threads=1, device="cpu"):
        seconds = float(sum(p.numel() for p in model.parameters()))
        self.placed.append((example, threads, device))

        def once():
            self.time += seconds

        return Placed(once, lambda layers: Watched(layers, seconds))

    def versions(self):
        return {"pretended": "1.0"}


@pytest.fixture
def pretended(monkeypatch):
    runtime = Pretended()
    monkeypatch.setitem(RUNTIMES, "pretended", runtime)

    def clock() -> float:
        return runtime.time

    monkeypatch.setattr(benching, "clock_for", lambda *_, **__: clock)
    return runtime


def pair() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    model = build_model("digitsnet").train()
    graph = sentei.trace(model, torch.zeros(1, 1, 8, 8))
    return {"dense": model, "small": sentei.cut(model, graph, sentei.uniform(graph, sentei.Budget(macs=0.5)))}


def params(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_figures(pretended):
    networks = pair()
    found = bench(networks, torch.zeros(3, 1, 8, 8), runtime="pretended", seconds=5.0)
    old, new = (params(n) for n in networks.values())
    dense, small = found.networks
    assert (dense.name, small.name) == ("dense", "small")
    assert dense.ms.value == pytest.approx(1e3 * old)
    compared = found.comparisons[0]
    macs = [sentei.trace(n, torch.zeros(1, 1, 8, 8)).cost().macs for n in networks.values()]
    assert (dense.macs, small.macs) == tuple(macs)  # of one sample
    assert compared.speedup.value == compared.speedup.low == pytest.approx(old / new)
    assert compared.macs_kept == pytest.approx(macs[1] / macs[0])
    assert compared.efficiency == pytest.approx(old / new * macs[1] / macs[0])
    assert [layer.name for layer in compared.layers] == ["conv1", "conv2", "conv3", "conv4", "linear"]
    assert compared.layers[0].small_ms == pytest.approx(1e3 * new)
    assert compared.rest_ms == pytest.approx((1e3 * old, 1e3 * new))
    assert (found.batch, found.threads, found.device, found.runtime, found.sure) == (3, 1, "cpu", "pretended", True)
    assert found.versions == {"torch": torch.__version__, "pretended": "1.0"}
    assert found.machine["cpu"]


def test_inputs_are_random_numbers_of_the_batch_that_was_asked_for(pretended):
    bench(pair(), torch.zeros(1, 1, 8, 8), runtime="pretended", batch=5, threads=2)
    (dense, threads, device), (small, *_) = pretended.placed
    assert (threads, device) == (2, "cpu")
    assert dense[0].shape == (5, 1, 8, 8)
    assert 0.8 < dense[0].std() < 1.2
    assert torch.equal(dense[0], small[0])


def test_the_networks_and_torchs_threads_stay_as_they_are():
    networks, before = pair(), torch.get_num_threads()
    states = [{k: v.clone() for k, v in n.state_dict().items()} for n in networks.values()]
    modes = [[m.training for m in n.modules()] for n in networks.values()]
    found = bench(networks, torch.zeros(1, 1, 8, 8), runtime="eager", threads=2, seconds=0.2)
    assert found.clock == "wall"
    assert found.machine["threads"] == 2
    assert torch.get_num_threads() == before
    assert modes == [[m.training for m in n.modules()] for n in networks.values()]
    for state, network in zip(states, networks.values(), strict=True):
        assert all(torch.equal(state[k], v) for k, v in network.state_dict().items())


def test_a_network_alone_is_timed_and_not_compared(pretended):
    found = bench({"net": pair()["dense"]}, torch.zeros(1, 1, 8, 8), runtime="pretended")
    assert found.comparisons == ()
    assert entry_of(found, "net", "dense")["speedup"] is None


def test_a_part_of_a_network(pretended):
    def part(model, x):
        return model.conv1(x)

    networks = {"a": build_model("digitsnet"), "b": build_model("digitsnet")}
    found = bench(networks, torch.zeros(1, 1, 8, 8), runtime="pretended", forward=part)
    assert found.networks[0].macs == 32 * 9 * 64
    assert [layer.name for layer in found.comparisons[0].layers] == ["conv1"]


def test_batches():
    two = {"x": torch.zeros(4, 3), "n": {"y": torch.zeros(4)}, "k": 7}
    changed, size = batched(Inputs.of(two), 2)
    assert (size, changed.kwargs["x"].shape, changed.kwargs["n"]["y"].shape) == (2, (2, 3), (2,))
    assert changed.kwargs["k"] == 7
    assert batched(Inputs.of(torch.zeros(6, 2)), None)[1] == 6
    assert batched(Inputs.of((torch.zeros(6, 2), torch.zeros(5))), None)[1] == 1
    for batch, example in ((0, torch.zeros(1)), (2, (torch.zeros(6), torch.zeros(5)))):
        with pytest.raises(ConfigError, match="first dimensions are all the same"):
            batched(Inputs.of(example), batch)


@pytest.mark.parametrize(("change", "error", "text"), [
    ({"networks": {}}, ConfigError, "networks by name"), ({"threads": 0}, ConfigError, "at least 1 thread"),
    ({"seconds": 0}, ConfigError, "more than 0 seconds"), ({"device": "tpu"}, ConfigError, "expected cpu, cuda"),
    ({"runtime": "tensorrt"}, ExportError, "there is no runtime"),
    ({"example": torch.zeros(1, 2, 8, 8)}, ExportError, "dense does not run on"),
])  # fmt: skip
def test_refusals(change, error, text):
    given = {"networks": pair(), "example": torch.zeros(1, 1, 8, 8), "runtime": "eager", **change}
    with pytest.raises(error, match=text):
        bench(given.pop("networks"), given.pop("example"), **given)


# -- the file


def test_entries_are_appended_and_read_back(pretended, tmp_path):
    found = bench(pair(), torch.zeros(1, 1, 8, 8), runtime="pretended")
    entry, file = entry_of(found, "small", "small"), tmp_path / "bench.json"
    append_bench(file, [entry])
    append_bench(file, [entry, entry_of(found, "dense", "dense")])
    stored = json.loads(file.read_text())
    assert (stored["format"], stored["version"]) == ("sentei bench", 1)
    entries = read_bench(file)
    assert entries[0] == entries[1] == json.loads(json.dumps(entry))
    assert [n["role"] for n in entries[0]["networks"]] == ["dense", "small"]
    assert [n["role"] for n in entries[2]["networks"]] == ["dense"]
    assert entries[0]["speedup"] * entries[0]["macs_kept"] == pytest.approx(entries[0]["efficiency"])
    layer = entries[0]["layers"][1]
    assert (layer["name"], layer["dense_width"], layer["dense_inputs"]) == ("conv2", 32, 32)
    assert {f.name for f in tmp_path.iterdir()} == {"bench.json"}


def test_damaged_files_are_refused_and_kept(pretended, tmp_path):
    found = bench({"net": pair()["dense"]}, torch.zeros(1, 1, 8, 8), runtime="pretended")
    entry, file = entry_of(found, "net", "dense"), tmp_path / "bench.json"
    append_bench(file, [entry])
    damaged = file.read_bytes().replace(b'"rounds": ', b'"rounds": 1')
    file.write_bytes(damaged)
    for act in (lambda: read_bench(file), lambda: append_bench(file, [entry])):
        with pytest.raises(CheckpointError, match="checksum does not match"):
            act()
    assert file.read_bytes() == damaged
    for changed, text in (({"format": "other"}, "format is 'other'"), ({"version": 2}, "version is 2"),
                          ({"entries": [{**entry, "rounds": "many"}]}, "entries.0.rounds is 'many'")):  # fmt: skip
        file.write_bytes(sealed_json({"format": "sentei bench", "version": 1, "entries": [], **changed}))
        with pytest.raises(CheckpointError, match=text):
            read_bench(file)
    with pytest.raises(CheckpointError, match="cannot read"):
        read_bench(tmp_path / "none.json")


def test_a_measurement_that_was_not_sure_says_so(pretended, tmp_path):
    found = replace(bench({"net": pair()["dense"]}, torch.zeros(1, 1, 8, 8), runtime="pretended"), sure=False)
    append_bench(tmp_path / "x.json", [entry_of(found, "net", "dense")])
    assert read_bench(tmp_path / "x.json")[0]["sure"] is False
