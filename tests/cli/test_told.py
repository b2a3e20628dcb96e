"""What commands say: budgets as people write them, JSON for programs, doubts where figures deserve them, typos."""

import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest

from sentei.answers import packed, unpacked
from sentei.cli.options import amount
from sentei.errors import ConfigError
from sentei.report.tables import within_error
from tests.cli.conftest import QUICK


def test_version(sentei):
    from importlib.metadata import version

    assert sentei("--version").out == f"sentei {version('sentei')}\n"


@pytest.mark.parametrize(
    ("text", "value"),
    [("0.5", 0.5), ("50%", 0.5), ("12.5 %", 0.125), ("20000000", 2e7), ("20M", 2e7), ("1.5G", 1.5e9), ("300 k", 3e5)],
)
def test_amounts(text, value):
    assert amount(text) == value


@pytest.mark.parametrize("text", ["half", "50 percent", "%", "M", "", "5O%"])
def test_amounts_that_are_none(text):
    with pytest.raises(ConfigError, match="is no amount; expected a share such as 0.5 or 50%"):
        amount(text)


def test_a_budget_in_percent(sentei, trained):
    assert sentei("prune", trained, "--method", "l1", "--macs", "50%", "--run", "x", *QUICK).code == 0
    assert json.loads(Path("x/summary.json").read_text())["budget"] == {"macs": 0.5}
    refused = sentei("prune", trained, "--method", "l1", "--macs", "half", "--run", "y", *QUICK)
    assert refused.code == 2
    assert refused.err.startswith("Error: 'half' is no amount")


@pytest.mark.parametrize("limits", [(), ("--max-ratio", 1), ("--max-ratio", 0.3), ("--round-to", 1, "--keep", "conv2")])
def test_inspect_and_prune_agree_on_the_smallest_size(limits, sentei, trained):
    least = json.loads(sentei("inspect", trained, *limits, "--json").out)["smallest"]
    for name in ("macs", "params"):
        limit = (f"--{name}", least[name] - 1)
        refused = sentei("prune", trained, "--method", "l1", *limits, *limit, "--run", "x", *QUICK)
        assert refused.code == 2
        assert f"the smallest reachable are {least[name]:,} " in refused.err
        assert f"{least[name]:,}" in sentei("inspect", trained, *limits).out
    done = sentei("prune", trained, "--method", "l1", *limits, "--macs", least["macs"], "--run", "x", *QUICK)
    assert done.code == 0, done.err
    assert json.loads(Path("x/summary.json").read_text())["pruned"]["macs"] == least["macs"]


def test_json_is_all_that_stands_on_stdout(sentei, trained):
    pruned = sentei("prune", trained, "--method", "l1", "--run", "x", "--json", *QUICK)
    summary = json.loads(pruned.out)
    assert summary["run"] == "x"
    assert summary["pruned"]["macs"] <= 0.5 * summary["base"]["macs"]
    assert "Cut to" in pruned.err
    measured = json.loads(sentei("evaluate", "x", "--json").out)
    assert measured["accuracy"] == summary["pruned"]["accuracy"] == measured["recorded"]
    assert measured["macs"] == summary["pruned"]["macs"]
    seen = json.loads(sentei("inspect", "x", "--json").out)
    assert seen["params"] == summary["pruned"]["params"]
    assert {g["name"]: g["width"] for g in seen["groups"]}["conv2"] == summary["widths"]["conv2"][1]
    assert json.loads(sentei("resume", "x", "--json").out) == summary
    refused = sentei("prune", trained, "--method", "l1", "--run", "x", "--json", *QUICK)
    assert (refused.code, refused.out) == (2, "")
    fresh = sentei("train", "digitsnet", "--data", "digits", "--run", "y", "--json", *QUICK)
    assert json.loads(fresh.out)["params"] == 38_122


def test_paths_with_spaces_are_quoted(sentei, trained):
    shutil.copytree(trained, "my base")
    done = sentei("prune", "my base", "--method", "l1", "--run", "my half", *QUICK)
    assert "Next:  sentei evaluate 'my half'\n" in done.out
    word = shlex.split(next(line for line in done.out.splitlines() if line.startswith("Next:")))
    assert sentei(*word[2:]).code == 0
    assert "sentei inspect 'my half' --groups" in sentei("inspect", "my half").out
    assert "Next:  sentei prune 'my base' --macs" in sentei("resume", "my base").out


@pytest.mark.parametrize("verb", ["evaluate", "inspect", "prune", "resume"])
def test_typos_of_a_run_are_answered_as_such(verb, sentei, trained):
    shutil.copytree(trained, "runs/base")
    data = ("--data", "digits") if verb in ("evaluate", "prune") else ()
    for typo in ("runs/bsae", "runs/base2", "run/base"):
        refused = sentei(verb, typo, *data)
        assert refused.code == 2
        assert typo in refused.err
        assert "Did you mean runs/base?" in refused.err
    assert "runs is a folder, but not that of a run. Runs here: runs/base" in sentei("inspect", "runs").err


def test_few_validation_images_and_small_differences_are_said(sentei, trained):
    done = sentei("prune", trained, "--method", "l1", "--run", "x", *QUICK)
    assert "Only 180 validation images: an accuracy on them is off by up to 3.7 points (one standard error)" in done.out
    summary = json.loads(Path("x/summary.json").read_text())
    told = within_error(summary)
    assert (told is None) == ("is within one standard error" not in done.out)
    for role in ("base", "pruned"):
        right = unpacked(summary["answers"][role])
        assert (len(right), right.mean()) == (360, summary[role]["accuracy"])


def test_known_answers_narrow_that_error():
    before = np.arange(1000) < 900
    after = before & (np.arange(1000) >= 5)
    summary = {"base": {"accuracy": 0.9}, "pruned": {"accuracy": 0.895}, "data_description": {"test": 1000}}
    assert within_error(summary).endswith("(1.36 points).")
    assert within_error({**summary, "answers": {"base": packed(before), "pruned": packed(after)}}) is None


@pytest.mark.parametrize(("after", "within"), [(0.9, True), (0.892, True), (0.88, False), (0.912, True), (0.93, False)])
def test_differences_within_one_standard_error(after, within):
    summary = {"base": {"accuracy": 0.9}, "pruned": {"accuracy": after}, "data_description": {"test": 1000}}
    assert (within_error(summary) is not None) == within


def test_there_is_no_sentence_without_figures():
    summary = {"base": {"accuracy": None}, "pruned": {"accuracy": None}, "data_description": {"test": 0}}
    assert within_error(summary) is None


def test_inspect_says_that_the_shape_was_a_guess(sentei, tmp_path):
    (tmp_path / "grey.py").write_text("from torch import nn\ndef net():\n    return nn.Conv2d(1, 8, 3)\n")
    refused = sentei("inspect", "grey.py:net")
    assert refused.code == 2
    assert "1x3x224x224 is a guess; --input N,C,H,W gives another" in refused.err
    assert sentei("inspect", "grey.py:net", "--input", "1,1,8,8").code == 0


def test_a_model_of_torchvision_is_suggested_by_its_full_name(sentei):
    assert "Did you mean torchvision:vit_b_16?" in sentei("inspect", "vit_b_16").err


def test_a_damaged_finished_run_is_not_called_finished(sentei, trained, tmp_path):
    quick = ("--epochs", 1, "--limit", 128, "--score-images", 64)
    assert sentei("prune", trained, "--method", "l1", "--run", "small", *quick).code == 0
    assert "is finished already" in sentei("resume", "small").out
    weights = tmp_path / "small/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    refused = sentei("resume", "small")
    assert refused.code == 2
    assert "truncated or altered" in refused.err
    (tmp_path / "small/plan.json").unlink()
    assert sentei("resume", "small").code == 2


def test_a_mistyped_run_is_answered_before_its_data_are_missed(sentei, trained):
    for verb in ("prune", "evaluate", "train", "fidelity"):
        refused = sentei(verb, str(trained) + "x/y")
        assert refused.code == 2
        assert "there is no run directory" in refused.err


def test_code_of_a_run_that_moved_is_named_again(sentei, tmp_path):
    net = "from torch import nn\ndef net(num_classes):\n    return nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3), nn.Flatten(), nn.Linear(128, num_classes))\n"  # noqa: E501
    (tmp_path / "mine.py").write_text(net)
    quick = ("--epochs", 1, "--limit", 128)
    assert sentei("train", "mine.py:net", "--data", "digits", "--run", "base", *quick).code == 0
    (tmp_path / "mine.py").rename(tmp_path / "moved.py")
    assert "there is no file" in sentei("evaluate", "base", "--trust").err
    assert sentei("evaluate", "base", "--model", "moved.py:net").code == 0
    quick += ("--score-images", 64, "--method", "l1")
    done = sentei("prune", "base", "--model", "moved.py:net", "--run", "small", *quick)
    assert done.code == 0, done.err
    assert "recorded the same" in sentei("evaluate", "small", "--model", "moved.py:net").out
    refused = sentei("evaluate", "resnet20", "--data", "digits", "--model", "moved.py:net")
    assert "is not the folder of a run" in refused.err
    assert "only FILE.py:FUNCTION can move" in sentei("evaluate", "base", "--model", "resnet20").err
