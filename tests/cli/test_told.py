"""What commands say: budgets as people write them, JSON for programs, doubts where figures deserve them, typos."""

import json
import shlex
import shutil
from pathlib import Path

import pytest

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
    assert sentei("prune", trained, "--macs", "50%", "--run", "x", *QUICK).code == 0
    assert json.loads(Path("x/summary.json").read_text())["budget"] == {"macs": 0.5}
    refused = sentei("prune", trained, "--macs", "half", "--run", "y", *QUICK)
    assert refused.code == 2
    assert refused.err.startswith("Error: 'half' is no amount")


@pytest.mark.parametrize("limits", [(), ("--max-ratio", 1), ("--max-ratio", 0.3), ("--round-to", 1, "--keep", "conv2")])
def test_inspect_and_prune_agree_on_the_smallest_size(limits, sentei, trained):
    least = json.loads(sentei("inspect", trained, *limits, "--json").out)["smallest"]
    for name in ("macs", "params"):
        refused = sentei("prune", trained, *limits, f"--{name}", least[name] - 1, "--run", "x", *QUICK)
        assert refused.code == 2
        assert f"the smallest reachable are {least[name]:,} " in refused.err
        assert f"{least[name]:,}" in sentei("inspect", trained, *limits).out
    done = sentei("prune", trained, *limits, "--macs", least["macs"], "--run", "x", *QUICK)
    assert done.code == 0, done.err
    assert json.loads(Path("x/summary.json").read_text())["pruned"]["macs"] == least["macs"]


def test_json_is_all_that_stands_on_stdout(sentei, trained):
    pruned = sentei("prune", trained, "--run", "x", "--json", *QUICK)
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
    refused = sentei("prune", trained, "--run", "x", "--json", *QUICK)
    assert (refused.code, refused.out) == (2, "")
    fresh = sentei("train", "digitsnet", "--data", "digits", "--run", "y", "--json", *QUICK)
    assert json.loads(fresh.out)["params"] == 38_122


def test_paths_with_spaces_are_quoted(sentei, trained):
    shutil.copytree(trained, "my base")
    done = sentei("prune", "my base", "--run", "my half", *QUICK)
    assert "Next:  sentei evaluate 'my half'\n" in done.out
    word = shlex.split(next(line for line in done.out.splitlines() if line.startswith("Next:")))
    assert sentei(*word[2:]).code == 0
    assert "sentei inspect 'my half' --groups" in sentei("inspect", "my half").out
    assert "Next:  sentei prune 'my base' --method" in sentei("resume", "my base").out


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
    done = sentei("prune", trained, "--run", "x", *QUICK)
    assert "Only 180 validation images: an accuracy on them is off by up to 3.7 points (one standard error)" in done.out
    summary = json.loads(Path("x/summary.json").read_text())
    told = within_error(summary)
    assert (told is None) == ("is within one standard error" not in done.out)


@pytest.mark.parametrize(("after", "within"), [(0.9, True), (0.892, True), (0.88, False), (0.912, True), (0.93, False)])
def test_differences_within_one_standard_error(after, within):
    summary = {"base": {"accuracy": 0.9}, "pruned": {"accuracy": after}, "data_description": {"test": 1000}}
    assert (within_error(summary) is not None) == within


def test_there_is_no_sentence_without_figures():
    summary = {"base": {"accuracy": None}, "pruned": {"accuracy": None}, "data_description": {"test": 0}}
    assert within_error(summary) is None
