"""The colony as a method: budget, paper mode, equal results everywhere, refusals."""

import dataclasses
import json

import numpy as np
import pytest
import torch

import sentei
from sentei.data import load_data
from sentei.errors import BudgetError, ConfigError, DataError
from sentei.methods import METHODS, prune
from sentei.methods.abc import Abc
from sentei.methods.common.method import deciding
from sentei.methods.registry import method_of
from sentei.models import build_model
from sentei.plan import Constraints
from sentei.train import Recipe, evaluate

RECIPE = Recipe(epochs=1, batch_size=64, lr=0.02, limit=256)
QUICK = {"recipe": RECIPE, "images": 128, "evaluations": 24, "constraints": Constraints(round_to=1, max_ratio=0.9)}


@pytest.mark.parametrize("method", ["abc", "evolution", "random_search"])
def test_a_search_meets_the_budget_and_reports_itself(method, digitsnet, data, tmp_path):
    result = prune(digitsnet, data, method=method, budget=sentei.Budget(macs=0.4), run_dir=tmp_path / "run", **QUICK)
    cost, full = result.graph.cost(result.plan), result.graph.cost()
    assert 0.38 * full.macs < cost.macs <= 0.4 * full.macs
    found = result.summary["search"]
    assert found["evaluations"] == 24
    assert found["curve"][-1] == [24, found["fitness"]]
    records = [json.loads(line) for line in (tmp_path / "run/journal.jsonl").read_text().splitlines()]
    evaluated = [r for r in records if r["event"] == "evaluation"]
    assert [r["number"] for r in evaluated] == list(range(24))
    assert found["fitness"] == max(r["fitness"] for r in evaluated)
    best = max(evaluated, key=lambda r: r["fitness"])
    assert best["widths"] == result.graph.widths(result.plan).tolist()
    loaded = sentei.load(build_model("digitsnet"), tmp_path / "run")
    assert evaluate(loaded, data.test).value == result.summary["pruned"]["accuracy"]


@pytest.mark.parametrize("warm", [True, False])
def test_a_search_begins_where_rankings_lead(warm, digitsnet, data, tmp_path):
    given = {**QUICK, "recipe": dataclasses.replace(RECIPE, epochs=0), "evaluations": 3}
    result = prune(digitsnet, data, method="abc", run_dir=tmp_path / "run", warm=warm, **given)
    records = [json.loads(line) for line in (tmp_path / "run/journal.jsonl").read_text().splitlines()]
    tried = [r["widths"] for r in records if r["event"] == "evaluation"]
    given = {name: value for name, value in given.items() if name != "evaluations"}
    rankings = [prune(digitsnet, data, method=name, **given) for name in ("uniform", "l1", "taylor")]
    wanted = [r.graph.widths(r.plan) for r in rankings]
    assert (np.abs(np.subtract(tried, wanted)).max() <= 1) == warm  # what a ranking leaves of the budget is used
    assert result.summary["settings"]["warm"] == warm


def test_the_paper_s_search_is_limited_by_alpha_and_hands_over_trained_weights(digitsnet, data):
    options = {**QUICK, "recipe": dataclasses.replace(RECIPE, epochs=0), "evaluations": 200}
    result = prune(digitsnet, data, method="abc", paper=True, alpha=0.5, fitness_images=256, **options)
    widths = result.summary["widths"]
    assert widths["conv1"] == [32, 32]  # a residual stream stays
    assert all(after in {before * k // 10 for k in range(1, 6)} for before, after in (widths["conv2"], widths["conv4"]))
    settings = result.summary["settings"]
    assert (settings["genes"], settings["fitness"], settings["inherit"]) == ("inner", "train", "random")
    assert (settings["sources"], settings["cycles"], settings["abandon_after"]) == (3, 2, 2)
    assert result.summary["search"]["evaluations"] <= 3 + 2 * (2 * 3 + 3)
    bf16 = options["recipe"].autocast(data.device)
    assert evaluate(result.model, data.val, bf16=bf16).value == result.summary["search"]["fitness"]


def test_constraints_hold_in_the_paper_s_search_too(digitsnet, data):
    given = {**QUICK, "recipe": dataclasses.replace(RECIPE, epochs=0), "fitness_images": 64, "cycles": 1}
    limits = Constraints(keep=("conv2",), min_width=10, max_ratio={"conv4": 0.5})
    result = prune(digitsnet, data, method="abc", paper=True, **{**given, "constraints": limits})
    assert result.summary["widths"]["conv2"] == [32, 32]
    assert 32 <= result.summary["widths"]["conv4"][1] <= 44
    assert result.summary["budget"] is None
    with pytest.raises(ConfigError, match="all of them stay whole"):
        prune(digitsnet, data, method="abc", paper=True, **{**given, "constraints": Constraints(max_ratio=0.1)})


def test_an_exhausted_space_and_an_unused_budget_are_said(digitsnet, data):
    said = []
    given = {**QUICK, "recipe": dataclasses.replace(RECIPE, epochs=0), "constraints": Constraints(), "evaluations": 100}
    result = prune(digitsnet, data, method="abc", say=said.append, **given)
    found = result.summary["search"]
    assert found["exhausted"]
    assert found["evaluations"] < 100
    assert any("Every structure within reach was tried" in line and "--round-to 1" in line for line in said)
    used = result.summary["pruned"]["macs"] / (0.5 * result.summary["base"]["macs"])
    assert (result.summary["note"] == "") == (used >= 0.99)


def test_workers_change_nothing(digitsnet, data):
    short = {"recipe": dataclasses.replace(RECIPE, epochs=0), "budget": sentei.Budget(macs=0.4), "evaluations": 12}
    given = {**QUICK, **short}
    here = prune(digitsnet, data, method="abc", **given)
    there = prune(digitsnet, data, method="abc", executor="process", processes=2, **given)
    assert here.plan == there.plan
    assert here.summary["search"]["curve"] == there.summary["search"]["curve"]


def test_a_model_of_the_user_s_own_file_reaches_the_workers(data, tmp_path):
    (tmp_path / "parts.py").write_text("import torch\nclass Act(torch.nn.ReLU):\n    pass\n")
    (tmp_path / "net.py").write_text(
        "import torch\nfrom parts import Act\n"
        "class Own(torch.nn.Sequential):\n    pass\n"
        "def make():\n"
        "    conv, pool = torch.nn.Conv2d, torch.nn.AdaptiveAvgPool2d(1)\n"
        "    norm = torch.nn.BatchNorm2d(16)\n"
        "    head = torch.nn.Flatten(), torch.nn.Linear(16, 10)\n"
        "    return Own(conv(1, 16, 3), norm, Act(), conv(16, 16, 3), pool, *head)\n"
    )
    own = build_model(f"{tmp_path / 'net.py'}:make")
    result = prune(own, data, method="abc", executor="process", processes=1,
                   **{**QUICK, "evaluations": 3, "recipe": dataclasses.replace(RECIPE, epochs=0)})  # fmt: skip
    assert result.summary["search"]["failed"] == 0


def test_an_interrupted_search_goes_on(digitsnet, data, tmp_path):
    from sentei.search.evaluators import Recalibrate

    given = {**QUICK, "budget": sentei.Budget(macs=0.4)}
    whole = prune(digitsnet, data, method="abc", **given)
    original, calls = Recalibrate.__call__, []

    def interrupted(self, widths, share=1.0):
        calls.append(1)
        if len(calls) == 11:
            raise KeyboardInterrupt
        return original(self, widths, share)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Recalibrate, "__call__", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prune(digitsnet, data, method="abc", run_dir=tmp_path, **given)
        with pytest.raises(ConfigError, match="other settings: guide is 1.5 there, 0.5 now"):
            prune(digitsnet, data, method="abc", run_dir=tmp_path, guide=0.5, **given)
        result = prune(digitsnet, data, method="abc", run_dir=tmp_path, **given)
    assert len(calls) == 25  # 10 before the stop, the one that was in flight, and the 14 that were left
    assert result.plan == whole.plan
    assert all(torch.equal(a, b) for a, b in zip(result.model.state_dict().values(), whole.model.state_dict().values(),
                                                 strict=True))  # fmt: skip


def test_successive_halving_trains_the_better_half_longer(digitsnet, data, tmp_path):
    given = {**QUICK, "evaluations": 8, "fitness_images": 128, "run_dir": tmp_path}
    prune(digitsnet, data, method="abc", halving=2, fitness_epochs=2, **given)
    records = [json.loads(line) for line in (tmp_path / "journal.jsonl").read_text().splitlines()]
    shares = [r["share"] for r in records if r["event"] == "evaluation"]
    assert (shares.count(0.5), shares.count(1.0)) == (8, 4)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"paper": True, "alpha": 1.2}, ConfigError, "alpha is 1.2"),
        ({"alpha": 0.5}, ConfigError, "alpha belongs to the paper's search"),
        ({"paper": True, "budget": sentei.Budget(macs=0.5)}, ConfigError, "takes no budget"),
        ({"budget": sentei.Budget(macs=0.001)}, BudgetError, "smallest reachable"),
        ({"sources": 0}, ConfigError, "sources is 0"),
        ({"evaluations": 0}, ConfigError, "evaluations is 0"),
        ({"fitness": "luck"}, ConfigError, "expected 'reconstruct' or 'recalibrate' or 'train'"),
        ({"halving": 2, "fitness": "recalibrate"}, ConfigError, "needs fitness='train'"),
        ({"processes": 2}, ConfigError, "processes is 2, but structures are measured in this process"),
        ({"processes": 0, "executor": "process"}, ConfigError, "expected 1 or more"),
        ({"halving": 3, "fitness_epochs": 2}, ConfigError, "no whole number"),
        ({"onlookers": "all"}, ConfigError, "expected 'fitness' or 'rank'"),
        ({"evaluations": 20.5}, ConfigError, "expected a whole number"),
        ({"inherit": "best"}, ConfigError, "expected 'l1' or 'bn_scale' or 'random'"),
        ({"fitness_lr": -1.0}, ConfigError, "expected more than 0"),
        ({"bees": 3}, ConfigError, "method abc has no option 'bees'"),
        ({"constraints": Constraints(max_ratio=0.0)}, BudgetError, "smallest reachable"),
    ],
)
def test_bad_input_is_refused_before_any_work(options, error, message, digitsnet, data, tmp_path):
    with pytest.raises(error, match=message):
        prune(digitsnet, data, method="abc", run_dir=tmp_path / "run", **{"recipe": RECIPE, **options})
    assert not (tmp_path / "run").exists()


def test_too_few_validation_images_are_refused(digitsnet):
    with pytest.raises(DataError, match="a search needs 50 or more"):
        prune(digitsnet, load_data("digits", val=0), method="abc", recipe=RECIPE)


def test_a_network_without_anything_to_search_is_refused(data):
    rigid = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    with pytest.raises(ConfigError, match="no group of this network can be searched"):
        prune(rigid, data, method="abc", recipe=RECIPE)


def test_a_run_may_go_on_with_other_workers():
    assert deciding(Abc(executor="process", processes=2)) == deciding(Abc())
    assert deciding(Abc(guide=0.5)) != deciding(Abc())


def test_settings_left_open_follow_the_mode():
    name, method = method_of("abc", {})
    assert name == "abc"
    assert (method.genes, method.fitness, method.sources, method.guide) == ("all", "recalibrate", 8, 1.5)
    assert method_of("abc", {"halving": 2})[1].fitness == "train"
    assert method_of(Abc(paper=True), {"genes": "all"})[1].genes == "all"
    assert method_of(METHODS["evolution"], {})[0] == "evolution"
    assert np.isclose(method_of("abc", {"paper": True})[1].alpha, 0.7)


def test_a_steady_run_may_go_on_with_another_number_out_but_not_with_none():
    assert deciding(Abc(pending=4)) == deciding(Abc(pending=9))
    assert deciding(Abc(pending=4)) != deciding(Abc())
    assert deciding(Abc(executor="ray", worker_gpus=0.25, worker_cpus=2)) == deciding(Abc())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"pending": 0}, "pending is 0; expected a whole number of 1 or more"),
        ({"pending": 4, "halving": 2}, "with pending there are no batches"),
        ({"worker_gpus": 0.5}, "worker_gpus is 0.5 with executor='here'; it belongs to executor='ray'"),
        ({"worker_gpus": 1.5, "executor": "ray"}, "expected a fraction up to 1, or a whole number"),
        ({"worker_cpus": 0, "executor": "ray"}, "worker_cpus is 0; expected more than 0"),
    ],
)
def test_workers_and_pending_that_make_no_sense_are_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        Abc(**given)
