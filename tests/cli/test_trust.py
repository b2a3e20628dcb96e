"""Code that a run directory names runs only when its user says so."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from sentei.models.weights import read_state
from tests.cli.conftest import Killed
from tests.cli.test_places import MINE, TINY
from tests.data.test_shards import make_shards

MARKED = "import pathlib\npathlib.Path(__file__).with_name('ran').touch()\n" + MINE


@pytest.fixture
def foreign(sentei, tmp_path):
    """A finished run whose model and data are functions of a file."""
    (tmp_path / "mine.py").write_text(MARKED)
    done = sentei("train", "mine.py:net", "--data", "mine.py:images", "--run", "base", *TINY)
    assert done.code == 0, done.err
    assert "Next:  sentei prune base --trust --macs 0.5" in done.out
    (tmp_path / "ran").unlink()
    return tmp_path / "ran"


@pytest.mark.parametrize(
    "command",
    [
        ("evaluate", "base"),
        ("evaluate", "base", "--data", "digits"),
        ("inspect", "base"),
        ("prune", "base"),
        ("prune", "base", "--data", "mine.py:images"),
        ("train", "base", "--data", "digits"),
        ("fidelity", "base"),
    ],
)
def test_code_of_a_run_is_not_run_unasked(command, sentei, foreign):
    refused = sentei(*command)
    assert refused.code == 2
    assert "base names code to run: " in refused.err
    assert "mine.py:net" in refused.err
    assert "--trust" in refused.err
    if "mine.py:images" not in command:
        assert not foreign.exists()


def test_with_trust_it_runs(sentei, foreign):
    assert sentei("evaluate", "base", "--trust").code == 0
    assert foreign.exists()
    assert sentei("inspect", "base", "--trust").code == 0
    assert sentei("prune", "base", "--method", "l1", "--trust", "--run", "half", *TINY).code == 0
    assert "names code" in sentei("evaluate", "half").err


def test_resume_asks_for_trust_or_for_the_names(sentei, dying, tmp_path):
    (tmp_path / "mine.py").write_text(MARKED)
    command = ("train", "mine.py:net", "--data", "mine.py:images", "--run", "x", *TINY)
    dying(3)
    with pytest.raises(Killed):
        sentei(*command)
    dying(-1)
    (tmp_path / "ran").unlink()
    for named in ((), ("--model", "mine.py:net")):
        refused = sentei("resume", "x", *named)
        assert refused.code == 2
        assert "x names code to run" in refused.err
        assert not (tmp_path / "ran").exists()
    shutil.copytree("x", "y")
    assert sentei("resume", "x", "--model", "mine.py:net", "--data", "mine.py:images").code == 0
    assert sentei("resume", "y", "--trust").code == 0


def test_an_interrupted_run_says_how_to_go_on_with_its_code(sentei, tmp_path, monkeypatch):
    from sentei.train import training

    (tmp_path / "mine.py").write_text(MARKED)
    original = training.Training.save

    def interrupted(self, record):
        original(self, record)
        raise KeyboardInterrupt

    monkeypatch.setattr(training.Training, "save", interrupted)
    stopped = sentei("train", "mine.py:net", "--data", "mine.py:images", "--run", "x", *TINY)
    assert "Go on with:  sentei resume x --trust" in stopped.err


def test_a_network_of_random_weights_from_a_file_is_refused(sentei, tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    refused = sentei("prune", "mine.py:net", "--method", "l1", "--data", "mine.py:images", *TINY)
    assert refused.code == 2
    assert "mine.py:net has random weights (0.weight differs from one call" in refused.err
    assert "--untrained" in refused.err
    assert not Path("runs").exists()
    command = ("prune", "mine.py:net", "--method", "l1", "--data", "mine.py:images", "--untrained")
    done = sentei(*command, "--run", "x", *TINY)
    assert done.code == 0, done.err
    assert "no better than guessing" in done.out
    assert json.loads(Path("x/summary.json").read_text())["warnings"]


def test_a_function_that_brings_trained_weights_is_accepted(sentei, tmp_path):
    loading = "num_classes))\n    model.load_state_dict(torch.load(__file__[:-7] + 'w.pt'))\n    return model\n"
    trained = MINE.replace("    return nn.Sequential", "    model = nn.Sequential").replace("num_classes))\n", loading)
    (tmp_path / "mine.py").write_text(MINE)
    assert sentei("train", "mine.py:net", "--data", "mine.py:images", "--run", "base", *TINY).code == 0
    torch.save(read_state("base/model.safetensors"), "w.pt")
    (tmp_path / "mine.py").write_text(trained)
    done = sentei("prune", "mine.py:net", "--method", "l1", "--data", "mine.py:images", "--run", "x", *TINY)
    assert done.code == 0, done.err
    assert "Model mine.py:net: its own weights" in done.out


def test_shards_that_a_command_brings_are_not_fetched_unasked(sentei, dying, tmp_path, monkeypatch):
    monkeypatch.setenv("SENTEI_CACHE", str(tmp_path / "cache"))
    for name in ("train", "val"):
        make_shards(tmp_path, [16], f"ids-{name}", classes=2)
    pipe = f"pipe:touch {tmp_path}/ran; cat {tmp_path}/ids-"
    (tmp_path / "list.yaml").write_text(f"train: {pipe}train-000.tar\nval: {pipe}val-000.tar\n")
    command = ("train", "resnet20", "--data", "webdataset:list.yaml", "--image-size", 8, "--workers", 0, "--run", "x")
    dying(7)  # two shards are fetched, two indices written, then the run begins
    with pytest.raises(Killed):
        sentei(*command, *TINY)
    dying(-1)
    (tmp_path / "ran").unlink()
    shutil.rmtree(tmp_path / "cache")
    refused = sentei("resume", "x")
    assert "x names code to run: webdataset:" in refused.err
    assert not (tmp_path / "ran").exists()
    done = sentei("resume", "x", "--trust")
    assert done.code == 0, done.err
    assert (tmp_path / "ran").exists()
