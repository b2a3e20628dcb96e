"""`method="stagewise"`: budgets, options, refusals before any work, and the same result after a kill at any phase."""

import json
import shutil
import sys

import numpy as np
import pytest
import torch

import sentei
from sentei.errors import BudgetError, CheckpointError, ConfigError, SearchError
from sentei.methods import prune
from sentei.methods.common.measuring import measure
from sentei.methods.stagewise import Stagewise, reinitialise
from sentei.plan import Constraints
from sentei.supernet.training import SupernetLoss
from sentei.train import Recipe
from sentei.train.checkpoint import load_checkpoint
from sentei.train.journal import Journal
from tests.methods.networks import Three

RECIPE = Recipe(epochs=1, batch_size=64, lr=0.02, limit=256)
QUICK = {
    "supernet_epochs": 2, "evaluations": 18, "rounds": 3, "table_images": 60, "candidates": 4,
    "calibration_images": 128, "validation_images": 60, "levels": 6,
}  # fmt: skip
FREE = Constraints(round_to=1, max_ratio=0.9)


def run(three, data, folder=None, budget=0.4, **options):
    return prune(
        three, data, method="stagewise", budget=sentei.Budget(macs=budget), recipe=RECIPE, constraints=FREE,
        images=128, run_dir=folder, **{**QUICK, **options},
    )  # fmt: skip


def same(a, b):
    return a.plan == b.plan and all(
        torch.equal(x, y) for x, y in zip(a.model.state_dict().values(), b.model.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"interfaces": "searched", "evaluations": 36},
        {"stages": ("a",)},
        {"split": "block"},
        {"rule": "sandwich", "search": "abc"},
        pytest.param({"rule": "random-path", "search": "evolution"}, marks=pytest.mark.slow),
        pytest.param({"search": "random", "start": "scratch"}, marks=pytest.mark.slow),
        {"full_epochs": 1, "memory_mb": 1},
    ],
)
def test_the_result_is_within_the_budget_and_proved(options, three, data):
    result = run(three, data, **options)
    cost, full = result.graph.cost(result.plan), result.graph.cost()
    assert 0.25 * full.macs < cost.macs <= 0.4 * full.macs
    assert result.summary["check"]["max_error"] < 1e-4
    told = result.summary["stagewise"]
    assert told["stages"] == (["a", "output"] if "stages" in options else ["a", "b", "output"])
    widths = result.plan.widths(result.graph)
    assert (widths[result.graph.index("a.6")] < 8) == ("interfaces" in options)
    if told["search"]["strategy"] == "merge":
        best = told["search"]["candidates"][told["search"]["picked"]]
        assert best["macs"] == cost.macs
        assert best["val_accuracy"] == max(c["val_accuracy"] for c in told["search"]["candidates"])


def test_the_structure_found_beats_the_narrowest_everywhere(three, data):
    found = run(three, data, budget=0.6)
    wider = [k.size for k in found.plan.keep.values()]
    assert found.summary["pruned"]["accuracy"] > 0.5
    assert sum(wider) > 3 * len(wider)


LATE = ("SubnetMetric", "cut", "finetune")
PHASES = ("stagewise", "StageDistances", *(pytest.param(phase, marks=pytest.mark.slow) for phase in LATE))


@pytest.fixture(scope="module")
def whole(three, data, tmp_path_factory):
    """A finished run, to be left as it is, and its result."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    return folder, run(three, data, folder)


@pytest.mark.parametrize("phase", PHASES)
def test_a_run_that_is_killed_in_any_phase_goes_on_to_the_same_result(phase, three, data, tmp_path, monkeypatch, whole):
    kill_in(phase, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        run(three, data, tmp_path / "killed")
    monkeypatch.undo()
    found = run(three, data, tmp_path / "killed")
    assert same(found, whole[1])
    told = [json.loads(line) for line in (tmp_path / "killed" / "journal.jsonl").read_text().splitlines()]
    keys = [(r["evaluator"], tuple(r["widths"])) for r in told if r["event"] == "evaluation"]
    assert len(keys) == len(set(keys))
    epochs = [(r["name"], r["epoch"]) for r in told if r["event"] == "epoch"]
    assert len(epochs) == len(set(epochs)) == 3


def test_a_kill_within_an_epoch_of_the_supernet_loses_what_came_since_the_last_state(
    three, data, tmp_path, monkeypatch, whole
):
    real, steps = SupernetLoss.__call__, []

    def dying(self, model, batch):
        steps.append(model)
        if len(steps) == 7:
            raise KeyboardInterrupt
        return real(self, model, batch)

    monkeypatch.setattr(SupernetLoss, "__call__", dying)
    with pytest.raises(KeyboardInterrupt):
        run(three, data, tmp_path / "killed", checkpoint_minutes=1e-9)
    assert load_checkpoint(tmp_path / "killed/stagewise.ckpt")["inside"]["step"] == 2
    assert same(run(three, data, tmp_path / "killed"), whole[1])
    assert len(steps) == 7 + 2
    assert epochs_told(tmp_path / "killed") == epochs_told(whole[0])


def epochs_told(folder):
    """What the journal says of the supernet's epochs, without the time that they took."""
    told = [r for r in Journal(folder / "journal.jsonl").records() if r.get("name") == "stagewise"]
    return [{name: value for name, value in r.items() if "second" not in name} for r in told]


def kill_in(phase, monkeypatch):
    """Raise KeyboardInterrupt in the middle of a phase."""
    from sentei.methods.stagewise import stagewise
    from sentei.supernet import proxies

    if phase in ("StageDistances", "SubnetMetric"):
        kind, count = getattr(proxies, phase), [0]
        call = kind.__call__

        def dying(self, widths, share=1.0):
            count[0] += 1
            if count[0] == 3:
                raise KeyboardInterrupt
            return call(self, widths, share)

        monkeypatch.setattr(kind, "__call__", dying)
    elif phase == "cut":
        monkeypatch.setattr(stagewise.SortedNet, "unsorted", stop)
    elif phase == "finetune":
        monkeypatch.setattr("sentei.methods.common.pruning.fit", stop)
    else:
        save = sentei.train.training.Training.save

        def once(self, record):
            save(self, record)
            raise KeyboardInterrupt

        monkeypatch.setattr(sentei.train.training.Training, "save", once)


def stop(*args, **kwargs):
    raise KeyboardInterrupt


def test_a_supernet_serves_another_budget(three, data, tmp_path, monkeypatch, whole):
    shutil.copytree(whole[0], tmp_path / "first")
    monkeypatch.setattr("sentei.methods.stagewise.stagewise.fit", lambda *_, **__: pytest.fail("trained again"))
    again = run(three, data, tmp_path / "again", supernet=str(tmp_path / "first"))
    monkeypatch.undo()
    assert same(again, whole[1])
    narrower = run(three, data, budget=0.3, supernet=str(tmp_path / "first"))
    assert narrower.graph.cost(narrower.plan).macs <= 0.3 * narrower.graph.cost().macs


def test_a_run_that_is_used_is_not_overwritten(three, data, tmp_path, whole):
    shutil.copytree(whole[0], tmp_path / "first")
    with pytest.raises(ConfigError, match="is used by this run and cannot be its run directory"):
        run(three, data, tmp_path / "first", supernet=str(tmp_path / "first"), overwrite=True)
    assert (tmp_path / "first/summary.json").exists()


@pytest.mark.parametrize(
    ("options", "text"),
    [({"rule": "sandwich"}, "no supernet trained by sandwich"), ({"levels": 7}, "trained with other levels: .*a.0")],
)
def test_a_supernet_of_other_settings_is_refused(options, text, three, data, whole):
    with pytest.raises(CheckpointError, match=text):
        run(three, data, supernet=str(whole[0]), **options)


def test_the_test_images_are_not_seen_before_the_end(three, data, monkeypatch):
    seen = []
    monkeypatch.setattr(sys.modules["sentei.methods.prune"], "_measure", lambda *_: seen.append(1) or stop())
    monkeypatch.setattr(type(data.test), "batches", guarded(data.test, type(data.test).batches))
    with pytest.raises(KeyboardInterrupt):
        run(three, data)
    assert seen


def guarded(test, batches):
    def read(self, *args, **kwargs):
        assert self is not test, "the test split was read"
        return batches(self, *args, **kwargs)

    return read


@pytest.mark.parametrize(
    ("budget", "options", "error", "text"),
    [
        ({"macs": 0.05}, {}, BudgetError, "narrowest network of the supernet has .*a.6, b.6.*interfaces='searched'"),
        ({"macs": 0.4, "params": 0.5}, {}, ConfigError, "knows one limit, not macs and params"),
        ({"macs": 0.4}, {"stages": ("nope",)}, ConfigError, "no module 'nope'"),
        ({"macs": 0.4}, {"stages": ("b", "a")}, ConfigError, "stages b and a do not chain"),
        ({"macs": 0.4}, {"rule": "fair"}, ConfigError, "rule is 'fair'; expected 'stagewise' or"),
        ({"macs": 0.4}, {"levels": 1}, ConfigError, "levels is 1; expected 2"),
        ({"macs": 0.4}, {"supernet_lr": 0.0}, ConfigError, "supernet_lr"),
        ({"macs": 0.4}, {"stages": "a"}, ConfigError, "expected several names"),
        ({"macs": 0.4}, {"split": "size"}, ConfigError, "split is 'size'; expected 'resolution' or 'block'"),
    ],
)
def test_bad_input_is_refused_before_any_work(budget, options, error, text, three, data, tmp_path, monkeypatch):
    monkeypatch.setattr("sentei.methods.stagewise.stagewise.fit", lambda *_, **__: pytest.fail("training began"))
    with pytest.raises(error, match=text):
        prune(
            three, data, method="stagewise", budget=sentei.Budget(**budget), recipe=RECIPE, constraints=FREE,
            run_dir=tmp_path / "run", **{**QUICK, **options},
        )  # fmt: skip
    assert not (tmp_path / "run").exists()


def test_nothing_left_to_search_is_refused(three, data):
    with pytest.raises(ConfigError, match="the constraints leave nothing to search"):
        prune(three, data, method="stagewise", constraints=Constraints(keep=("*",)), recipe=RECIPE, **QUICK)


def test_scratch_needs_modules_that_reset_themselves():
    class Own(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.scale = torch.nn.Conv2d(1, 2, 1), torch.nn.Parameter(torch.ones(2, 1, 1))

    with pytest.raises(ConfigError, match="that of scale has none"):
        reinitialise(Own(), 0)
    a, b = Three(), Three()
    reinitialise(a, 3)
    reinitialise(b, 3)
    assert all(map(torch.equal, a.parameters(), b.parameters()))


def test_measure_asks_once_and_tells_failures(tmp_path):
    asked = []

    class Sum:
        settings = {"fitness": "sum"}

        def __call__(self, widths, share=1.0):
            asked.append(tuple(widths))
            if widths[0] == 9:
                raise SearchError("too wide")
            return {"fitness": float(widths.sum())}

    journal = Journal(tmp_path / "journal.jsonl")
    structures = [np.array([1, 2]), np.array([3, 4]), np.array([1, 2])]
    assert [r["fitness"] for r in measure(Sum(), structures, journal=journal)] == [3, 7, 3]
    measure(Sum(), structures, journal=Journal(journal.path))
    assert asked == [(1, 2), (3, 4)]
    with pytest.raises(SearchError, match=r"structure \[9, 1\] could not be measured: too wide"):
        measure(Sum(), [np.array([9, 1])])


def test_settings_are_plain_values():
    from sentei.methods.common.method import like, settings_of

    method = Stagewise(stages=("a", "b"), rule="sandwich")
    assert like(Stagewise(), json.loads(json.dumps(settings_of(method)))) == method
