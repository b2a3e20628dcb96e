"""`sentei bench` as a user runs it, and what it leaves behind."""

import json
from pathlib import Path

import pytest

from sentei.atomic import write_atomic
from sentei.cli import main
from sentei.runfiles import BENCH
from sentei.sealed import sealed_json
from sentei.speed.benchfile import read_bench
from tests.cli.conftest import QUICK

SHORT = ("--seconds", 0.3)


@pytest.fixture(scope="session")
def halved(trained, tmp_path_factory) -> Path:
    """A finished run of `sentei prune`, to be left as it is."""
    folder = tmp_path_factory.mktemp("halved") / "half"
    assert main([str(a) for a in ("prune", trained, "--method", "l1", "--macs", 0.5, "--run", folder, *QUICK)]) == 0
    return folder


@pytest.fixture
def half(halved, tmp_path) -> Path:
    """A copy of a pruned run."""
    folder = tmp_path / "half"
    folder.mkdir()
    for file in halved.iterdir():
        write_atomic(folder / file.name, file.read_bytes())
    return folder


RUNTIMES = ["eager", "onnxruntime", *(pytest.param(name, marks=pytest.mark.slow) for name in ("openvino", "compile"))]


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_pruned_run_is_compared_with_its_dense_network(sentei, half, runtime):
    done = sentei("bench", half, "--runtime", runtime, *SHORT)
    assert done.code == 0, done.err
    for text in ("Speed-up", "speed-up x MACs kept", "ms a pass", "memory", "dense of", "median of the fast half"):
        assert text in done.out, text
    entry = read_bench(half / BENCH)[0]
    summary = json.loads((half / "summary.json").read_text())
    dense, small = entry["networks"]
    assert (dense["role"], small["role"], small["name"]) == ("dense", "small", str(half))
    assert (dense["macs"], small["macs"]) == (summary["base"]["macs"], summary["pruned"]["macs"])
    assert (dense["params"], small["params"]) == (summary["base"]["params"], summary["pruned"]["params"])
    assert dense["memory_bytes"] > small["memory_bytes"] > 4 * small["params"]
    assert dense["ms_low"] <= dense["ms_high"]
    assert entry["speedup_low"] <= entry["speedup_high"]
    assert entry["macs_kept"] == pytest.approx(small["macs"] / dense["macs"])
    assert entry["efficiency"] == pytest.approx(entry["speedup"] * entry["macs_kept"])
    assert (entry["runtime"], entry["threads"], entry["batch"], entry["device"]) == (runtime, 1, 1, "cpu")
    assert entry["machine"]["cpu"]
    if runtime == "compile":
        assert entry["layers"] == []
        assert "does not tell" in done.out
    else:
        assert [layer["name"] for layer in entry["layers"]] == ["conv1", "conv2", "conv3", "conv4", "linear"]
        assert runtime in entry["versions"] or runtime == "eager"


def test_figures_are_added_and_go_with_the_run(sentei, half, trained):
    base = half.parent / "base"
    base.mkdir()
    for file in trained.iterdir():
        write_atomic(base / file.name, file.read_bytes())
    done = sentei("bench", base, half, "--runtime", "eager", "--batch", 4, "--threads", 2, "--json", *SHORT)
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert [len(entry["networks"]) for entry in told["entries"]] == [1, 2]
    assert told["entries"][1]["networks"][0]["name"] == str(base)
    assert told["entries"][1]["inputs"][0]["list"][0]["tensor"] == [4, 1, 8, 8]
    assert told["entries"][1]["clock"] == "wall"
    assert sentei("bench", half, "--runtime", "eager", *SHORT).code == 0
    assert len(read_bench(base / BENCH)) == 1
    assert [entry["batch"] for entry in read_bench(half / BENCH)] == [4, 1]
    assert sentei("evaluate", half).code == 0  # the run is still one
    assert sentei("prune", base, "--method", "l1", "--run", half, "--overwrite", "--macs", 0.6, *QUICK).code == 0
    assert not (half / BENCH).exists()
    assert not list(half.glob(".*"))


def test_models_go_to_a_file_of_ones_own(sentei):
    done = sentei("bench", "digitsnet", "--runtime", "eager", "--input", "2,1,8,8", "--out", "all.json", *SHORT)
    assert done.code == 0, done.err
    assert "Added to all.json" in done.out
    assert "Speed-up" not in done.out
    done = sentei("bench", "resnet20", "resnet32", "--runtime", "eager", "--out", "all.json", *SHORT)
    assert done.code == 0, done.err
    alone, two = read_bench("all.json")
    assert (alone["batch"], alone["speedup"], alone["networks"][0]["role"]) == (2, None, "dense")
    assert [network["name"] for network in two["networks"]] == ["resnet20", "resnet32"]
    assert two["macs_kept"] > 1.5
    assert two["networks"][1]["role"] == "other"
    assert sentei("bench", "digitsnet", "--runtime", "eager", *SHORT).code == 0
    assert [f.name for f in Path().iterdir()] == ["all.json"]


def test_only_the_traced_part_of_a_detector_is_measured(sentei, tmp_path):
    (tmp_path / "det.py").write_text(
        "import torch\n"
        "from torch import nn\n"
        "from sentei import Task\n"
        "class Boxes(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.body = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 1))\n"
        "    def forward(self, x):\n"
        "        return [b for b in self.body(x).flatten(2)[0].T if b.sum() > 0]\n"
        "def make():\n"
        "    return Boxes()\n"
        "make.input_shape = (3, 10, 10)\n"
        "class Find(Task):\n"
        "    name, metric = 'find', 'score'\n"
        "    def inputs(self, batch): return batch\n"
        "    def loss(self, model, batch): return model.body(batch).sum()\n"
        "    def measure(self, model, batches): return {'score': 0.0}\n"
        "    @staticmethod\n"
        "    def forward(model, x): return model.body(x)\n"
        "    part = property(lambda self: type(self).forward)\n"
    )
    options = ("--task", "det.py:Find", "--runtime", "onnxruntime", "--out", "x.json", *SHORT)
    done = sentei("bench", "det.py:make", *options)
    assert done.code == 0, done.err
    assert "Only the part that is traced is measured" in done.out
    assert read_bench("x.json")[0]["networks"][0]["macs"] == 64 * (16 * 27 + 4 * 16)


def test_what_is_refused_and_nothing_is_left(sentei, half, trained, tmp_path):
    def refused(*arguments):
        done = sentei("bench", *arguments, *SHORT)
        assert done.code == 2, done.out
        assert not (half / BENCH).exists() or arguments[-1] == half
        assert not (half / ".lock").exists()
        return " ".join(done.err.split())

    assert "named twice" in refused(half, half)
    assert "there is no run directory" in refused(tmp_path / "haf")
    assert "expected 1 or more" in refused(half, "--batch", 0)
    assert "at least 1 thread" in refused(half, "--threads", 0)
    assert "give --input N,C,H,W for both" in refused("resnet20", half)
    assert "--device nowhere cannot be used" in refused(half, "--device", "nowhere")
    (half / "summary.json").rename(half / "away")
    assert "is not finished" in refused(half)
    (half / "away").rename(half / "summary.json")
    sealed = sealed_json({"format": "sentei bench", "version": 1, "entries": []})
    (half / BENCH).write_bytes(sealed.replace(b"1", b"2", 1))
    assert "checksum does not match" in refused("--runtime", "eager", half)


def test_code_that_a_run_names_needs_trust(sentei, tmp_path):
    (tmp_path / "mine.py").write_text(
        "from sentei.models import build_model\ndef net():\n    return build_model('digitsnet')\n"
    )
    assert sentei("train", "mine.py:net", "--data", "digits", "--run", "own", *QUICK).code == 0
    assert "--trust" in sentei("bench", "own", "--runtime", "eager", *SHORT).err
    done = sentei("bench", "own", "--trust", "--runtime", "eager", *SHORT)
    assert done.code == 0, done.err
    assert read_bench(Path("own") / BENCH)[0]["networks"][0]["params"] == 38_122


def test_without_onnx_runtime_pytorch_is_measured_and_named(sentei, half, monkeypatch):
    from sentei.speed import runtimes

    monkeypatch.setattr(runtimes.importlib.util, "find_spec", lambda name: None)
    done = sentei("bench", half, *SHORT)
    assert done.code == 0, done.err
    assert "ONNX Runtime is not installed (pip install 'sentei[export]')" in done.out
    assert read_bench(half / BENCH)[0]["runtime"] == "eager"
