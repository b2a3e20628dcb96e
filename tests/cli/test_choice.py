"""`sentei prune` where no method is named."""

import json
from dataclasses import fields
from pathlib import Path

import pytest

from sentei.cli.prune import OPTIONS, Prune
from sentei.runfiles import read_summary
from tests.cli.conftest import QUICK, Killed

SMALL = (*QUICK, "--score-images", 64)


@pytest.mark.parametrize(("options", "method"), [(("--evaluations", 4), "abc"), (("--fast",), "l1")])
def test_the_method_that_is_taken_is_named_with_what_it_takes(options, method, sentei, trained, tmp_path):
    done = sentei("prune", trained, *options, *SMALL)
    assert done.code == 0, done.err
    assert f"No method is named: {method}, " in done.out
    assert "It takes 256 training images, " in done.out
    summary = read_summary(tmp_path / f"runs/base-{method}")
    assert summary["method"] == method


def test_a_run_goes_on_with_the_method_that_it_began_with(sentei, trained, dying, monkeypatch):
    dying(4)
    with pytest.raises(Killed):
        sentei("prune", trained, "--fast", *SMALL, "--run", "x")
    dying(-1)
    monkeypatch.setattr("sentei.methods.choice.FAST", None)
    done = sentei("resume", "x")
    assert done.code == 0, done.err
    assert "method l1" in done.out


def test_every_option_that_decides_is_there_when_a_run_is_resumed(sentei, trained):
    said = {"model", "images", "fast", "run", "overwrite", "code", "trust", "output", "preset"}
    apart = {"limits", "clock", "teacher", "weights", "recipe", "how"}
    assert {f.name for f in fields(Prune)} == {*OPTIONS, *said, *apart}
    options = ("--method", "l1", "--reconstruct", *SMALL, "--run", "x")
    before = sentei("prune", trained, *options, "--json")
    Path("x/summary.json").unlink()
    after = sentei("resume", "x", "--json")
    assert after.code == 0, after.err
    assert json.loads(after.out)["pruned"] == json.loads(before.out)["pruned"]


def test_fast_and_a_method_exclude_each_other(sentei, trained):
    refused = sentei("prune", trained, "--fast", "--method", "taylor")
    assert refused.code == 2
    assert "--fast picks the method itself: leave out --fast, or leave out --method taylor" in refused.err


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (("--fast", "--evaluations", 4), "method l1 (which is taken with --fast) has no option --evaluations"),
        (("--steps", 2), "method abc (which is taken where --method names none) has no option --steps"),
    ],
)
def test_options_of_the_method_that_is_not_taken_are_refused(given, text, sentei, trained):
    assert f"{text}; it belongs to " in sentei("prune", trained, *given).err


@pytest.mark.parametrize(
    ("options", "taught"),
    [((), True), (("--distill",), True), (("--no-distill",), False), (("--distill-weight", 0), False)],
)
def test_the_original_network_teaches_unless_told_otherwise(options, taught, sentei, trained, tmp_path):
    done = sentei("prune", trained, "--method", "l1", *options, *SMALL, "--run", "x")
    assert done.code == 0, done.err
    assert ("Fine-tuning, taught by the original network" in done.out) == taught
    assert ("method l1, taught by the original" in done.out) == taught
    assert read_summary(tmp_path / "x")["taught"] == taught


def test_with_and_without_a_teacher_exclude_each_other(sentei, trained):
    refused = sentei("prune", trained, "--distill", "--no-distill")
    assert refused.code == 2
    assert "--distill and --no-distill exclude each other: leave one of them out" in refused.err
