"""What is refused: one readable message, exit code 2, no traceback, nothing lost."""

import json
import shutil

import pytest

from sentei.errors import SenteiError
from sentei.runfiles import write_config
from tests.cli.conftest import QUICK


def refused(outcome, *texts):
    assert outcome.code == 2
    assert "Traceback" not in outcome.err
    assert outcome.err.startswith("Error: ")
    for text in texts:
        assert text in outcome.err


def test_unknown_names(sentei):
    refused(sentei("inspect", "resnet65"), "Did you mean resnet56")
    refused(sentei("inspect", "torchvision:resnet55"), "torchvision:resnet50")
    refused(sentei("train", "digitsnet", "--data", "digit"), "Did you mean 'digits'")
    refused(sentei("inspect", "net.py:make"), "there is no file net.py")
    assert sentei("prun").code == 2
    assert sentei("prune", "digitsnet", "--method", "tailor").code == 2


def test_missing_data(sentei):
    refused(sentei("train", "digitsnet"), "--data is missing", "imagefolder:PATH")
    refused(sentei("train", "resnet20", "--data", "imagefolder:photos"), "photos")


def test_random_weights(sentei):
    refused(
        sentei("prune", "digitsnet", "--data", "digits"),
        "random weights", "sentei train digitsnet --data digits", "--weights FILE", "--untrained",
    )  # fmt: skip
    assert sentei("prune", "digitsnet", "--method", "l1", "--data", "digits", "--untrained", *QUICK).code == 0


def test_unreachable_budget_leaves_nothing(sentei, trained, tmp_path):
    refused(sentei("prune", trained, "--run", "x", "--macs", 0.001), "smallest reachable")
    refused(sentei("prune", trained, "--run", "x", "--macs", -1), "macs=-1.0")
    assert not (tmp_path / "x").exists()


def test_settings_out_of_range(sentei, trained):
    refused(sentei("prune", trained, "--lr", -1.0), "lr is -1.0; expected 0 or more")
    refused(sentei("prune", trained, "--method", "l1", "--steps", 0), "steps is 0")
    refused(sentei("prune", trained, "--keep", "conv9"), "conv9", "nearest")
    refused(sentei("inspect", "digitsnet", "--input", "a,b"), "1,3,224,224")
    refused(sentei("train", "digitsnet", "--data", "digits", "--device", "cuda:99"), "--device cuda:99")


def test_a_finished_run_is_not_replaced_by_accident(sentei, trained, tmp_path):
    run = ("prune", trained, "--method", "l1", "--run", "x", *QUICK)
    assert sentei(*run).code == 0
    before = (tmp_path / "x/model.safetensors").read_bytes()
    refused(sentei(*run), "x holds a finished run", "--overwrite")
    refused(sentei("train", "digitsnet", "--data", "digits", "--run", "x"), "x holds a finished run")
    assert (tmp_path / "x/model.safetensors").read_bytes() == before
    assert sentei(*run, "--method", "random", "--overwrite").code == 0
    assert json.loads((tmp_path / "x/summary.json").read_text())["method"] == "random"


def test_overwrite_that_is_refused_keeps_the_old_run(sentei, trained, tmp_path):
    assert sentei("prune", trained, "--method", "l1", "--run", "x", *QUICK).code == 0
    refused(sentei("prune", "digitsnet", "--data", "nonsense", "--run", "x", "--overwrite"), "nonsense")
    assert (tmp_path / "x/summary.json").exists()


def test_resume_of_what_is_no_run(sentei, tmp_path):
    refused(sentei("resume", "nowhere"), "nowhere is not a run directory")
    (tmp_path / "x").mkdir()
    (tmp_path / "x/config.yaml").write_text("a: [")
    refused(sentei("resume", "x"), "damaged")
    (tmp_path / "x/config.yaml").write_text("a: 1")
    refused(sentei("resume", "x"), "not written by sentei")
    (tmp_path / "x/config.yaml").write_text("command: null\nresolved: {}\n")
    refused(sentei("resume", "x"), "checksum does not match")
    write_config(tmp_path / "x", {"command": None, "resolved": {}})
    refused(sentei("resume", "x"), "made from Python")


def test_a_pruned_run_is_not_pruned_again(sentei, trained):
    assert sentei("prune", trained, "--method", "l1", "--run", "x", *QUICK).code == 0
    refused(sentei("prune", "x", "--run", "y"), "x is a pruned network already", "smaller budget")


def test_weights_with_a_run(sentei, trained):
    refused(sentei("prune", trained, "--weights", "w.pt"), "leave out --weights")


def test_damaged_files(sentei, trained, tmp_path):
    assert sentei("prune", trained, "--method", "l1", "--run", "x", *QUICK).code == 0
    whole = (tmp_path / "x/model.safetensors").read_bytes()
    (tmp_path / "x/model.safetensors").write_bytes(whole[:-100])
    refused(sentei("evaluate", "x"), "truncated or altered")
    shutil.copytree(trained, tmp_path / "base")
    (tmp_path / "base/model.safetensors").write_bytes(b"junk")
    refused(sentei("evaluate", "base"), "damaged")


def test_a_model_that_fails_shows_its_own_error(sentei, tmp_path):
    (tmp_path / "bad.py").write_text(
        "from torch import nn\n"
        "def net(): return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(5, 4, 3))\n"
        "def broken(): return 1 / 0\n"
        "def number(): return 3\n"
    )
    refused(sentei("inspect", "bad.py:net"), "model's own forward failed", "to have 5 channels, but got 4")
    refused(sentei("inspect", "bad.py:broken"), "ZeroDivisionError")
    refused(sentei("inspect", "bad.py:number"), "expected a torch.nn.Module")


def test_model_and_data_that_do_not_fit(sentei, tmp_path):
    (tmp_path / "few.py").write_text(
        "from torch import nn\n"
        "def net(): return nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))\n"
    )
    refused(sentei("train", "few.py:net", "--data", "digits"), "scores 3 classes")


def test_debug_shows_the_traceback(sentei, monkeypatch):
    monkeypatch.setenv("SENTEI_DEBUG", "1")
    with pytest.raises(SenteiError):
        sentei("inspect", "resnet65")
