"""Tasks on the command line: a user's own, remembered by its run, and run again only where it is trusted."""

import json
from pathlib import Path

import pytest

OWN = Path(__file__).parents[1] / "tasks/masked_regression.py"
WHAT = ("--data", f"{OWN}:data", "--task", f"{OWN}:Depth")


@pytest.fixture
def base(sentei):
    """A finished run of a model, data and task from one file."""
    done = sentei("train", f"{OWN}:Stereo", *WHAT, "--epochs", 2, "--lr", 0.1, "--run", "base")
    assert done.code == 0, done.err
    assert "test rmse" in done.out
    return done


def test_a_task_of_ones_own_is_remembered_by_its_run(sentei, base, tmp_path):
    pruning = ("prune", "base", "--method", "taylor", "--macs", 0.5, "--round-to", 1, "--epochs", 1, "--run", "small")
    refused = sentei(*pruning)
    assert refused.code == 2
    assert f"{OWN}:Depth" in refused.err
    done = sentei(*pruning, "--trust")
    assert done.code == 0, done.err
    assert "validation rmse" in done.out
    assert "points" not in done.out
    summary = json.loads((tmp_path / "small/summary.json").read_text())
    assert (summary["task"], summary["metric"]["name"]) == ("depth", "rmse")
    again = sentei("evaluate", "small", "--trust", "--json")
    assert again.code == 0, again.err
    assert json.loads(again.out)["rmse"] == summary["pruned"]["rmse"]
    seen = sentei("inspect", "small", "--trust", "--json")
    assert seen.code == 0, seen.err
    assert json.loads(seen.out)["macs"] == summary["pruned"]["macs"]
    assert sentei("resume", "small").code == 0


def test_the_task_is_named_anew_where_it_has_moved(sentei, base, tmp_path):
    moved = tmp_path / "moved.py"
    moved.write_text(OWN.read_text())
    named = ("--task", "moved.py:Depth", "--data", "moved.py:data", "--model", "moved.py:Stereo")
    done = sentei("evaluate", "base", *named)
    assert done.code == 0, done.err
    assert "the same" in done.out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--data", "digits", "--task", "segmentatoin"), "Did you mean 'segmentation'"),
        (("--data", "digits", "--task", f"{OWN}:Stereo"), "is not a sentei.Task; it lacks metric, loss, measure"),
        (("--data", f"{OWN}:data", "--task", f"{OWN}:Depth", "--val", 5), "cannot be applied"),
        ((*WHAT, "--label-smoothing", 0.1), "knows no label smoothing"),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_sentence(sentei, tmp_path, words, said):
    done = sentei("train", f"{OWN}:Stereo", *words, "--epochs", 1, "--run", "x")
    assert done.code == 2
    assert said in done.err.replace("\n", " "), done.err
    assert not (tmp_path / "x").exists()
