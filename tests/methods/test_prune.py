"""`sentei.prune`: honest numbers, exact files, refusals, and several cuts that amount to one."""

import dataclasses
import json
import sys

import numpy as np
import pytest
import torch

import sentei
from sentei.data import load_data
from sentei.errors import BudgetError, ConfigError
from sentei.methods import METHODS, prune
from sentei.models import build_model
from sentei.plan import Constraints
from sentei.runfiles import read_summary
from sentei.train import Recipe, evaluate

RECIPE = Recipe(epochs=1, batch_size=64, lr=0.02, limit=256)
HALF = sentei.Budget(macs=0.5)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build_model("digitsnet")


SHORT = {method: {"evaluations": 4} for method in ("abc", "evolution", "random_search")}
SHORT["stagewise"] = {"supernet_epochs": 1}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_meets_the_budget_and_proves_its_cut(method, digitsnet, data):
    result = prune(digitsnet, data, method=method, recipe=RECIPE, images=128, **SHORT.get(method, {}))
    cost, full = result.graph.cost(result.plan), result.graph.cost()
    assert 0.4 * full.macs < cost.macs <= 0.5 * full.macs
    assert sum(p.numel() for p in result.model.parameters()) == cost.params == result.summary["pruned"]["params"]
    assert result.summary["check"]["max_error"] < 1e-5


def test_the_given_model_is_left_as_it_is(model, data):
    before = {name: t.clone() for name, t in model.state_dict().items()}
    model.train()
    prune(model, data, method="l1", recipe=RECIPE, images=128)
    assert model.training
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert model.conv1.weight.is_contiguous()


def test_files_hold_the_result(model, data, tmp_path):
    run = tmp_path / "run"
    result = prune(model, data, method="taylor", recipe=RECIPE, images=128, run_dir=run, source="digitsnet")
    assert sorted(f.name for f in run.iterdir()) == [
        "config.yaml", "journal.jsonl", "model.safetensors", "plan.json", "summary.json",
    ]  # fmt: skip
    loaded = sentei.load(build_model("digitsnet"), run)
    assert all(torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), result.model.state_dict().values(),
                                                 strict=True))  # fmt: skip
    summary = read_summary(run)
    assert summary == result.summary
    assert json.loads((run / "summary.json").read_text()).items() >= summary.items()
    assert summary["pruned"]["accuracy"] == evaluate(loaded, data.test).value
    assert summary["base"]["accuracy"] == evaluate(model, data.test).value
    assert summary["widths"]["conv2"] == [32, loaded.conv2.out_channels]
    events = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    assert [e.get("phase", e.get("name")) for e in events] == ["cut1", "finetune-hints", "finetune", "final"]


def test_the_test_set_is_read_only_at_the_end_and_scores_come_from_training_images(model, data):
    order = []

    class Watched:
        def __init__(self, name, split):
            self.name, self.split, self.augment = name, split, split.augment

        def __len__(self):
            return len(self.split)

        def steps(self, *args):
            return self.split.steps(*args)

        def batches(self, *args, **options):
            # "?" is a sample, to know how many go through the network at once.
            order.append(self.name + "?" * (args == (1,)))
            return self.split.batches(*args, **options)

    splits = {name: Watched(name, getattr(data, name)) for name in ("train", "val", "test")}
    prune(model, dataclasses.replace(data, **splits), method="taylor", recipe=RECIPE, images=128, steps=2)
    assert order[-6:] == ["test?", "test", "val?", "val", "test?", "test"]
    assert not {"test?", "test"} & {*order[:-6]}
    assert [name for name in order if name != "val?"][:2] == ["train", "val"]


def test_same_seed_same_result_and_another_seed_another(model, data):
    def weights(seed):
        out = prune(model, data, method="random", recipe=RECIPE, images=128, seed=seed).model
        return torch.cat([p.detach().flatten() for p in out.parameters()])

    first = weights(1)
    assert torch.equal(first, weights(1))
    assert not torch.equal(first, weights(2))


def test_uniform_keeps_equal_shares_and_l1_need_not(model, data):
    model = build_model("digitsnet")
    with torch.no_grad():
        model.conv2.weight[:24] *= 1e-3
        model.bn2.weight[:24] *= 1e-3
        model.conv3.weight[:, :24] *= 1e-3
    widths = {
        method: prune(model, data, method=method, recipe=dataclasses.replace(RECIPE, epochs=0), images=64,
                      constraints=Constraints(round_to=1, max_ratio=0.9)).summary["widths"]
        for method in ("uniform", "l1")
    }  # fmt: skip
    shares = [after / before for before, after in widths["uniform"].values()]
    assert max(shares) - min(shares) < 0.06
    assert widths["l1"]["conv2"][1] <= 12
    assert widths["l1"]["conv1"][1] > widths["uniform"]["conv1"][1]


def test_several_steps_leave_one_plan_of_the_dense_model(model, data, tmp_path):
    result = prune(model, data, method="l2", recipe=RECIPE, images=128, steps=3, run_dir=tmp_path / "run",
                   constraints=Constraints(round_to=1, max_ratio=0.6))  # fmt: skip
    macs = [step["macs"] for step in result.summary["steps"]]
    full = result.graph.cost().macs
    assert len(macs) == 3
    assert all(m <= full * 0.5 ** (k / 3) + 1 for k, m in enumerate(macs, 1))
    assert macs[0] > macs[1] > macs[2] == result.graph.cost(result.plan).macs
    replayed = sentei.cut(model, result.graph, result.plan)
    assert [p.shape for p in replayed.parameters()] == [p.shape for p in result.model.parameters()]
    assert all(after >= 0.4 * before for before, after in result.summary["widths"].values())
    sentei.load(build_model("digitsnet"), tmp_path / "run")


def test_multiples_hold_through_all_steps(model, data):
    result = prune(model, data, method="l1", recipe=RECIPE, images=128, steps=3, step_epochs=0)
    assert all(after % 8 == 0 for _, after in result.summary["widths"].values())


def test_two_budgets_both_hold(model, data):
    limits = sentei.Budget(macs=0.7, params=9_000)
    result = prune(model, data, method="l1", budget=limits, recipe=RECIPE, images=64, steps=2)
    cost = result.graph.cost(result.plan)
    assert cost.params <= 9_000
    assert cost.macs <= 0.7 * result.graph.cost().macs


def test_a_model_from_python_resumes_by_calling_again(model, data, tmp_path):
    from sentei.train import training

    given = {"method": "l1", "recipe": dataclasses.replace(RECIPE, epochs=3), "images": 64}
    whole = prune(model, data, **given).model
    calls = []
    original = training.Training.save

    def stop_after_the_first_epoch(self, record):
        original(self, record)
        calls.append(record)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.Training, "save", stop_after_the_first_epoch)
        with pytest.raises(KeyboardInterrupt):
            prune(model, data, run_dir=tmp_path / "run", **given)
    with pytest.raises(ConfigError, match="other settings: method is 'l1' there, 'l2' now"):
        prune(model, data, run_dir=tmp_path / "run", **{**given, "method": "l2"})
    result = prune(model, data, run_dir=tmp_path / "run", **given)
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), result.model.state_dict().values(),
                                                 strict=True))  # fmt: skip
    with pytest.raises(ConfigError, match="finished run"):
        prune(model, data, run_dir=tmp_path / "run", **given)
    prune(model, data, run_dir=tmp_path / "run", overwrite=True, **{**given, "recipe": RECIPE})


def test_a_run_resumed_with_other_weights_is_refused(model, data, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        module = sys.modules["sentei.methods.prune"]  # the name in the package is that of the function
        patch.setattr(module, "save", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            prune(model, data, method="l1", recipe=RECIPE, images=64, run_dir=tmp_path)
    torch.manual_seed(5)
    with pytest.raises(ConfigError, match="other settings: base_sha256"):
        prune(build_model("digitsnet"), data, method="l1", recipe=RECIPE, images=64, run_dir=tmp_path)


def test_a_refused_budget_leaves_no_folder(model, data, tmp_path):
    with pytest.raises(BudgetError, match="smallest reachable"):
        prune(model, data, budget=sentei.Budget(macs=1e-4), run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_folder_with_other_files_is_refused_and_untouched(model, data, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match="not empty"):
            prune(model, data, run_dir=tmp_path, overwrite=overwrite)
    assert [f.name for f in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"method": "tailor"}, "did you mean 'taylor'"),
        ({"steps": 0}, "steps is 0; expected 1 or more"),
        ({"scope": "universal"}, "expected 'global' or 'local'"),
    ],
)
def test_bad_settings_are_refused_at_once(given, message, model, data):
    with pytest.raises(ConfigError, match=message):
        prune(model, data, **{"method": "l1", **given})


def test_no_validation_split_is_allowed_and_said(model):
    summary = prune(model, load_data("digits", val=0), method="l1", recipe=RECIPE, images=64).summary
    assert summary["after_cut"]["val_accuracy"] is None
    assert summary["pruned"]["val_accuracy"] is None
    assert 0 <= summary["pruned"]["accuracy"] <= 1


def test_plans_keep_units_by_score(model, data):
    """What taylor keeps differs from what random keeps, at the same widths."""
    plans = [prune(model, data, method=m, scope="local", recipe=dataclasses.replace(RECIPE, epochs=0),
                   images=64).plan for m in ("taylor", "random")]  # fmt: skip
    assert all(len(a) == len(b) for a, b in zip(plans[0].keep.values(), plans[1].keep.values(), strict=True))
    assert any(not np.array_equal(a, b) for a, b in zip(plans[0].keep.values(), plans[1].keep.values(), strict=True))


def test_reconstruction_makes_up_for_a_cut_without_training(digitsnet, data, tmp_path):
    untuned, budget = dataclasses.replace(RECIPE, epochs=0), sentei.Budget(macs=0.2)
    how = {"method": "l1", "recipe": untuned, "budget": budget, "images": 512}
    plain, better = (
        prune(digitsnet, data, reconstruct=again, run_dir=tmp_path / str(again), **how) for again in (False, True)
    )
    assert better.plan == plain.plan
    assert better.summary["pruned"]["val_accuracy"] > plain.summary["pruned"]["val_accuracy"] + 0.02
    assert better.summary["seconds"]["reconstruct"] > 0
    assert better.summary["settings"]["reconstruct"] is True
    assert "reconstruct" not in plain.summary["settings"]
    with pytest.raises(ConfigError, match="reconstruct"):
        prune(digitsnet, data, reconstruct=True, run_dir=tmp_path / "False", **how)
