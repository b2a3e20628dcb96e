"""`sentei compare` as a user runs it: finished runs side by side, and methods at equal cost, killed and resumed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path
from subprocess import DEVNULL

import pytest

from sentei import Budget, compare
from sentei.cli.compare import Compare, labelled, setting
from sentei.comparison.file import read_comparison
from sentei.comparison.tables import comparison_tables
from sentei.data import load_data
from sentei.errors import BudgetError, CheckpointError, ConfigError
from sentei.methods.common import latency
from sentei.models import build_model
from sentei.speed.latency import LatencyTable
from sentei.train import Recipe
from tests.cli.conftest import Killed
from tests.cli.test_interrupted import wait_for
from tests.forked import Popen

TINY = ("--epochs", 2, "--batch-size", 64, "--limit", 128, "--score-images", 64, "--round-to", 1)
SETTINGS = (
    "abc.evaluations=2", "abc.fitness=train", "abc.fitness_epochs=1", "abc.fitness-images=64",
    "stagewise.supernet_epochs=1", "stagewise.evaluations=2", "stagewise.candidates=1", "ista.sparse_epochs=1",
)  # fmt: skip
TOTAL = 2 * 128


@pytest.fixture(scope="module")
def compared(trained, tmp_path_factory) -> Path:
    """A finished comparison of five methods with two seeds."""
    from sentei.cli import main

    folder = tmp_path_factory.mktemp("compared") / "all"
    methods = ("--methods", "taylor", "abc", "stagewise", "ista", "--set", *SETTINGS)
    words = ("compare", trained, *methods, "--seeds", 2, "--run", folder, *TINY)
    assert main([str(w) for w in words]) == 0
    return folder


def test_every_method_trains_on_as_many_images(compared):
    found = read_comparison(compared)
    assert {run["state"] for run in found.runs} == {"finished"}
    assert [run["result"]["images"]["total"] for run in found.runs] == [TOTAL] * 10
    spent = {run["method"]: run["result"]["images"] for run in found.runs}
    assert spent["uniform"]["finetune"] == spent["taylor"]["finetune"] == TOTAL
    assert (spent["abc"]["search"], spent["abc"]["finetune"]) == (3 * 64, 64)
    assert (spent["stagewise"]["supernet"], spent["ista"]["sparse"]) == (128, 128)
    assert found.plan["added"]
    assert [r["method"] for r in found.results] == ["uniform", "taylor", "abc", "stagewise", "ista"]
    assert len(found.sentences) == 4


def test_each_run_is_an_ordinary_run(compared, sentei):
    assert {f.name for f in compared.iterdir()} == {
        "compare.json",
        *(f"{m}-0.5-s{s}" for m in ("uniform", "taylor", "abc", "stagewise", "ista") for s in (0, 1)),
    }
    one = compared / "abc-0.5-s1"
    summary = json.loads((one / "summary.json").read_text())
    assert summary["seed"] == 1
    assert summary["settings"]["total_images"] == TOTAL
    assert "The run recorded the same" in sentei("evaluate", one).out


def test_the_folder_shows_the_table_again(compared, sentei):
    shown = sentei("compare", compared)
    assert shown.code == 0, shown.err
    for text in ("digitsnet on digits, 50% of the MACs", "dense", "stagewise", "64 tuning", "192 search",
                 "Each run trained on 256 images in all", "uniform: ", "2 seeds."):  # fmt: skip
        assert text in shown.out, text
    found = json.loads(sentei("compare", compared, "--json").out)
    assert found["format"] == "sentei compare"
    assert found["results"] == json.loads((compared / "compare.json").read_text())["results"]
    assert all(r["test"]["count"] == 2 for r in found["results"])


def test_runs_side_by_side(compared, trained, sentei):
    names = [compared / "uniform-0.5-s0", compared / "ista-0.5-s1"]
    done = sentei("compare", trained, *names)
    assert done.code == 0, done.err
    for text in ("100.0%", "±", "128 sparse", "All on digits: 1,257 training, 180 validation, 360 test images, the"):
        assert text in done.out, text
    assert "Warning" not in done.out
    found = json.loads(sentei("compare", trained, *names, "--json").out)
    assert [row["role"] for row in found["runs"]] == ["dense", "pruned", "pruned"]
    assert found["runs"][1]["images"]["total"] == TOTAL
    assert found["runs"][1]["test"] == json.loads((names[0] / "summary.json").read_text())["pruned"]["accuracy"]
    assert found["warnings"] == []
    whole = json.loads(sentei("compare", trained, compared, "--json").out)
    assert len(whole["runs"]) == 1 + len(list(compared.glob("*-s[01]")))


def test_training_counts_its_images(trained):
    assert json.loads((trained / "summary.json").read_text())["images_trained"] == {"train": 256, "total": 256}


def test_the_same_command_makes_nothing_twice_and_more_may_be_asked_for(trained, sentei):
    command = ("compare", trained, "--methods", "l1", "--run", "x", *TINY)
    first = sentei(*command, "--seeds", 1)
    assert first.code == 0, first.err
    assert "uniform is added: all others are held against it" in first.out
    assert "1 seed, which says nothing about the next" in first.out
    wider = sentei(*command[:4], "uniform", *command[4:], "--seeds", 1, "--macs", 0.5, 0.4)
    assert wider.code == 0, wider.err
    assert wider.out.count("finished already") == 2
    assert len(read_comparison("x").runs) == 4
    again = sentei(*command, "--seeds", 1)
    assert again.out.count("finished already") == 2
    refused = sentei(*command, "--seeds", 1, "--lr", 0.5)
    assert refused.code == 2
    assert "x holds a comparison with other settings: recipe.lr is 0.02 there, 0.5 now" in refused.err
    refused = sentei(*command, "--seeds", 1, "--set", "l1.steps=2")
    assert "other settings: l1.settings.steps is 1 there, 2 now" in refused.err


def results(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.glob("*/model.safetensors")}


def test_kill_9_and_the_same_command_again(trained, tmp_path, sentei):
    words = [str(w) for w in ("compare", trained, "--methods", "taylor", "l1", "--seeds", 1, *TINY, "--epochs", 8)]
    assert sentei(*words, "--run", "whole").code == 0
    folder = tmp_path / "killed"
    first = Popen(
        [sys.executable, "-m", "sentei.cli", *words, "--run", folder], stdout=DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    wait_for(folder / "taylor-0.5-s0/journal.jsonl", '"name": "finetune"', first)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert (folder / "uniform-0.5-s0/summary.json").exists()
    half = read_comparison(folder)
    assert [run["state"] for run in half.runs] == ["finished", "waiting", "waiting"]
    assert "2 of 3 runs are not made yet" in sentei("compare", folder).out
    again = sentei(*words, "--run", folder)
    assert again.code == 0, again.err
    assert again.out.count("finished already") == 1
    assert results(folder) == results(tmp_path / "whole")
    assert not list(folder.glob("**/*.ckpt"))
    assert not (folder / ".lock").exists()


@pytest.mark.slow
def test_death_at_any_write_leaves_what_the_same_command_completes(trained, tmp_path, sentei, dying):
    words = ("compare", trained, "--methods", "l1", "--seeds", 1, *TINY)
    assert sentei(*words, "--run", "whole").code == 0
    expected, died = results(tmp_path / "whole"), 0
    for writes in (0, 2, 5, 12):
        folder = tmp_path / f"dies{writes}"
        dying(writes)
        try:
            sentei(*words, "--run", folder)
        except Killed:
            died += 1
        dying(-1)
        done = sentei(*words, "--run", folder)
        assert done.code == 0, (writes, done.err)
        assert results(folder) == expected, writes
    assert died == 4


def test_a_run_can_be_resumed_by_itself(trained, tmp_path, sentei, dying):
    words = ("compare", trained, "--methods", "l1", "--seeds", 1, *TINY, "--run", "x")
    dying(6)
    with pytest.raises(Killed):
        sentei(*words)
    dying(-1)
    (run,) = (f.parent for f in Path("x").glob("*/journal.jsonl"))
    done = sentei("resume", run)
    assert done.code == 0, done.err
    assert json.loads((run / "summary.json").read_text())["images_trained"]["total"] == TOTAL
    assert sentei(*words).out.count("finished already") == 1


def test_a_budget_of_milliseconds_is_one_table_for_all_runs(trained, sentei, monkeypatch):
    """It is measured once, and again used by the same command."""
    times = []
    whole = LatencyTable.measure
    monkeypatch.setattr(LatencyTable, "measure", lambda *a, **k: times.append(k) or whole(*a, **k))
    monkeypatch.setattr(latency, "_timed", lambda pruning, small: {"dense_ms": 2.0, "small_ms": 1.4, "share": 0.7})
    words = ("compare", trained, "--methods", "l1", "--latency", 0.95, 0.9, "--params", 0.9, "--seeds", 1, *TINY,
             "--runtime", "eager", "--run", "x")  # fmt: skip
    done = sentei(*words)
    assert done.code == 0, done.err
    assert [t["runtime"] for t in times] == ["eager"]
    assert {f.name for f in Path("x").iterdir()} == {
        "compare.json", "latency.json",
        *(f"{m}-params0.9-latency{b}-s0" for m in ("uniform", "l1") for b in (0.95, 0.9)),
    }  # fmt: skip
    told = json.loads(Path("x/l1-params0.9-latency0.9-s0/summary.json").read_text())
    table = {k: v for k, v in json.loads(Path("x/latency.json").read_text()).items() if k != "sha256"}
    assert told["settings"]["timing"] == {"runtime": "eager", "threads": 1, "table": table}
    assert told["budget"] == {"params": 0.9, "latency": 0.9}
    found = read_comparison("x")
    assert {r["ms"] for r in found.results} == {1.4}
    assert (found.plan["dense"]["ms"], found.results[0]["ms_share"]) == (2.0, 0.7)
    assert "90% of the parameters and 90% of the milliseconds" in done.out
    shutil.rmtree("x/l1-params0.9-latency0.9-s0")
    assert sentei(*words).out.count("finished already") == 3
    assert len(times) == 1
    other = sentei(*words, "--runtime-threads", 2)
    assert "was measured in eager with 1 threads; asked for is eager with 2" in " ".join(other.err.split())
    wider = sentei(*words[:4], "--macs", 0.5, *words[9:])
    assert wider.code == 0, wider.err
    assert "ms" not in [c.header for t in comparison_tables(read_comparison("x")) for c in t.columns]
    small = sentei("compare", trained, "--methods", "l1", "--latency", 0.001, *TINY, "--runtime", "eager", "--run", "y")
    assert small.code == 2
    assert "the smallest reachable" in small.err


def test_budgets_of_every_kind(sentei):
    def asked(**given):
        return [budget.limits for budget in Compare(("x",), **given).budgets()]

    assert asked() == [{"macs": 0.5}]
    assert asked(params=(0.5, 0.3)) == [{"params": 0.5}, {"params": 0.3}]
    assert asked(macs=(0.5, 0.3), memory=(0.8,)) == [{"macs": 0.5, "memory": 0.8}, {"macs": 0.3, "memory": 0.8}]
    assert asked(latency_ms=(4.0,), activation_bytes=(2e6,)) == [{"latency_ms": 4.0, "activation_bytes": 2e6}]
    with pytest.raises(ConfigError, match="--macs and --latency-ms have several values each"):
        asked(macs=(0.5, 0.3), latency_ms=(4.0, 3.0))


def test_a_run_that_fails_is_a_row_with_the_reason(trained, sentei):
    """The colony has too few validation images to choose by; the others go on."""
    words = ("compare", trained, "--methods", "abc", "--seeds", 1, "--set", "abc.validation_images=20", *TINY)
    done = sentei(*words, "--run", "x")
    assert done.code == 0, done.err
    assert "failed: 20 validation images are asked for; a search needs 50 or more" in done.out
    assert "abc at 50% of the MACs: nothing to compare with uniform: 20 validation images" in done.out
    runs = {run["method"]: run for run in read_comparison("x").runs}
    assert (runs["uniform"]["state"], runs["abc"]["state"]) == ("finished", "failed")
    assert runs["abc"]["error"].startswith("20 validation images are asked for")
    assert not Path("x/abc-0.5-s0").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--methods", "tailor"), "no method 'tailor'; did you mean 'taylor'?"),
        (("--methods", "l1", "--macs", 0.001), "the smallest reachable"),
        (("--methods", "l1", "--macs", 1.5), "a fraction is at most 1.0"),
        (("--methods", "l1", "--macs", "half"), "'half' is no amount"),
        (("--methods", "l1", "--params", 0.0001), "the smallest reachable"),
        (("--methods", "l1", "--macs", 0.5, 0.4, "--params", 0.5, 0.4), "--macs and --params have several values each"),
        (("--methods", "l1", "--latency", 2), "latency=2.0 is a share of the full model's time"),
        (("--params", 0.5), "these options are for pruning by several methods: add --methods"),
        (("--methods", "l1", "--seeds", 0), "seeds is 0; expected 1 or more"),
        (("--methods", "l1", "--epochs", 0), "at least one budget, one seed and one epoch"),
        (("--methods", "stagewise"), "may train on 1,280 images before its fine-tuning (1,280 by supernet_epochs=10); "
                                     "there are 256 in all"),
        (("--methods", "ista"), "2,560 by sparse_epochs=20"),
        (("--methods", "ista", "--set", "ista.rho=0.1"), "takes no budget, its own settings decide the size"),
        (("--methods", "l1", "--set", "l1.stepps=2"), "method l1 has no option 'stepps'; did you mean 'steps'?"),
        (("--methods", "l1", "--set", "l1.steps=two"), "--set l1.steps=two: Input should be a valid integer"),
        (("--methods", "l1", "--set", "l1.steps=0"), "steps is 0; expected 1 or more"),
        (("--methods", "l1", "--set", "taylor.steps=2"), "taylor is not among the methods uniform, l1"),
        (("--methods", "l1", "--set", "steps"), "expected METHOD.OPTION=VALUE"),
        (("--methods", "uniform=l1"), "no label for l1"),
        (("--methods", "a/b=l1"), "'a/b' is no label for a method"),
        (("--methods", "a=l1", "a=l2"), "two methods are called a"),
        (("--methods", "stagewise", "--set", "stagewise.supernet=old", "stagewise.supernet_epochs=1"),
         "what was trained there would not count here"),
        (("--seeds", 2), "these options are for pruning by several methods: add --methods"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_before_any_work(words, told, trained, sentei):
    done = sentei("compare", trained, "--run", "x", *(*TINY, *words))
    assert done.code == 2
    assert told in " ".join(done.err.split()), done.err
    assert not Path("x").exists()


def test_what_is_no_run_is_told_what_to_type(trained, tmp_path, sentei):
    shutil.copytree(trained, "base")
    done = sentei("compare", "base", "bose")
    assert done.code == 2
    assert "bose is not the folder of a run. Did you mean base?" in done.err
    assert "sentei compare bose --data DATA --methods l1 taylor" in done.err
    assert "nothing to compare: name finished runs" in sentei("compare").err
    untrained = sentei("compare", "digitsnet", "--data", "digits", "--methods", "l1", *TINY)
    assert untrained.code == 2
    assert "digitsnet has random weights" in untrained.err
    for given, told in ((("base", "base"), "base, base"), ((), "none")):
        refused = sentei("compare", *given, "--methods", "l1")
        assert f"--methods prunes one model by several methods; given are {told}" in refused.err
    Path("x").mkdir()
    Path("x/compare.json").write_text("{}")
    assert "x is a comparison, not a run" in sentei("resume", "x").err
    Path("full").mkdir()
    Path("full/notes.txt").write_text("mine")
    assert (
        "full is not empty and holds no comparison"
        in sentei("compare", "base", "--methods", "l1", "--run", "full", *TINY).err
    )
    assert Path("full/notes.txt").read_text() == "mine"


def test_an_altered_comparison_is_refused(compared, tmp_path, sentei):
    shutil.copytree(compared, tmp_path / "x")
    file = tmp_path / "x/compare.json"
    file.write_text(file.read_text().replace('"total": 256', '"total": 257', 1))
    done = sentei("compare", "x")
    assert done.code == 2
    assert "compare.json is damaged or was changed afterwards" in done.err


def test_ctrl_c_says_how_to_go_on(trained, sentei, monkeypatch):
    from sentei.train import training

    original = training.Training.save

    def interrupted(self, record):
        original(self, record)
        raise KeyboardInterrupt

    words = ("compare", trained, "--methods", "l1", "--seeds", 1, *TINY, "--run", "x")
    with monkeypatch.context() as patch:
        patch.setattr(training.Training, "save", interrupted)
        stopped = sentei(*words)
    assert stopped.code == 130
    assert "What is finished stays in x; the same command goes on." in stopped.err
    assert sentei(*words).code == 0


def test_labels_settings_and_their_values():
    assert labelled(["abc", "long=abc"]) == {"abc": "abc", "long": "abc"}
    assert setting("abc", "evaluations", "50") == 50
    assert setting("abc", "fitness", "train") == "train"
    assert setting("ista", "rho", "1e-4") == 1e-4
    assert setting("abc", "fitness_images", "null") is None
    assert setting("stagewise", "stages", "[a, b]") == ("a", "b")
    with pytest.raises(ConfigError, match="--set stagewise.rule=x: Input should be 'stagewise'"):
        setting("stagewise", "rule", "x")


# -- from Python


RECIPE = Recipe(epochs=1, batch_size=64, limit=128)


def test_from_python(tmp_path):
    model, data, lines = build_model("digitsnet").train(), load_data("digits"), []
    asked = {
        "methods": {"l1": "l1", "steps": "l1"}, "settings": {"steps": {"steps": 2, "step_epochs": 1}}, "seeds": [3],
        "budgets": [0.6, Budget(params=0.5)], "recipe": RECIPE, "run_dir": tmp_path / "x",
    }  # fmt: skip
    found = compare(model, data, **asked, say=lines.append)
    assert [run["folder"] for run in found.runs] == [
        f"{method}-{budget}-s3" for budget in ("0.6", "params0.5") for method in ("uniform", "l1", "steps")
    ]
    assert model.training
    assert {run["result"]["images"]["total"] for run in found.runs} == {128}
    assert found.results == compare(model, data, **asked).results == read_comparison(tmp_path / "x").results
    assert any("[6/6] steps at 50% of the parameters, seed 3" in line for line in lines)


def test_a_run_that_was_replaced_is_not_taken_for_its_own(tmp_path):
    model, data = build_model("digitsnet"), load_data("digits")
    asked = {"methods": ["l1"], "seeds": 1, "recipe": RECIPE, "run_dir": tmp_path / "x"}
    compare(model, data, **asked)
    shutil.rmtree(tmp_path / "x/l1-0.5-s0")
    shutil.copytree(tmp_path / "x/uniform-0.5-s0", tmp_path / "x/l1-0.5-s0")
    with pytest.raises(CheckpointError, match="holds another run than this comparison asks for: method is 'uniform'"):
        compare(model, data, **asked)


def test_what_python_is_refused(tmp_path):
    model, data = build_model("digitsnet"), load_data("digits")
    given = {"recipe": RECIPE, "run_dir": tmp_path / "x"}
    with pytest.raises(BudgetError, match="smallest reachable"):
        compare(model, data, budgets=[0.5, 0.001], **given)
    with pytest.raises(ConfigError, match="settings for ista, the methods are l1"):
        compare(model, data, methods=["l1"], settings={"ista": {}}, **given)
    with pytest.raises(ConfigError, match="there is nothing to compare"):
        compare(model, data, budgets=[], **given)
    with pytest.raises(CheckpointError, match="holds no comparison"):
        read_comparison(tmp_path)
    assert not (tmp_path / "x").exists()
