"""ISTA from end to end on the digits: budget, curve, exact zeros, resume, refusals, advice."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from torch import nn

import sentei
from sentei.errors import BudgetError, ConfigError
from sentei.methods import prune
from sentei.methods.common.pruning import Pruning
from sentei.methods.ista import Ista, Sparsifier
from sentei.methods.ista import ista as module
from sentei.methods.ista.rounds import Round, diagnose, next_rho, starting_point
from sentei.models import build_model
from sentei.plan import Constraints
from sentei.runfiles import read_summary
from sentei.train import Recipe, evaluate
from sentei.train.checkpoint import load_checkpoint

FREE = Constraints(round_to=1, max_ratio=0.9)
RECIPE = Recipe(epochs=2, batch_size=64, lr=0.05, limit=640)
HALF = sentei.Budget(macs=0.5)
ROUND = 10
"""Steps."""


@pytest.fixture(scope="module")
def run(digitsnet, data, tmp_path_factory):
    folder, lines = tmp_path_factory.mktemp("ista") / "run", []
    result = prune(
        digitsnet,
        data,
        method=Ista(growth=2),
        budget=HALF,
        constraints=FREE,
        recipe=RECIPE,
        run_dir=folder,
        say=lines.append,
    )
    return folder, result, lines


def test_the_budget_is_met_by_scales_that_are_zero(run):
    _, result, lines = run
    cost, full, report = result.graph.cost(result.plan), result.graph.cost(), result.summary["ista"]
    assert 0.4 * full.macs < cost.macs <= 0.5 * full.macs
    assert sum(p.numel() for p in result.model.parameters()) == cost.params
    assert result.summary["check"]["max_error"] < 1e-5
    odd = any(before >= 16 and before % 4 == 0 and after % 4 for before, after in result.summary["widths"].values())
    assert ("odd widths" in result.summary["note"]) == odd
    assert report["fold"]["error"] < 1e-5
    assert report["fold"]["zero"] + report["fold"]["folded"] >= 20
    assert report["curve"][-1]["reached"] is not None
    rho = [point["rho"] for point in report["curve"]]
    assert rho == sorted(rho)
    assert any("of the MACs, val" in line for line in lines)
    assert any(line.startswith("Folded:") for line in lines)
    assert result.summary["pruned"]["val_accuracy"] > 0.85


def test_every_network_of_the_curve_is_there_and_measures_what_the_curve_says(run, data):
    folder, result, _ = run
    curve = result.summary["ista"]["curve"]
    assert sorted(f.name for f in (folder / "curve").iterdir()) == [f"{i + 1:02d}" for i in range(len(curve))]
    for i, point in enumerate(curve):
        small = sentei.load(build_model("digitsnet"), folder / "curve" / f"{i + 1:02d}")
        cost = sentei.trace(small, torch.zeros(1, 1, 8, 8)).cost()
        assert (point["macs"], point["params"]) == (cost.macs, cost.params)
        assert abs(evaluate(small, data.val).value - point["val_accuracy"]) < 0.006
    assert (folder / "gammas.png").read_bytes().startswith(b"\x89PNG")
    assert read_summary(folder) == result.summary


def test_a_run_that_was_killed_ends_in_the_same_bits(run, digitsnet, data, tmp_path, monkeypatch):
    _, whole, _ = run
    real, calls = module.fit, []

    def dying(*args, **options):
        calls.append(options["name"])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args, **options)

    settings = {
        "method": Ista(growth=2),
        "budget": HALF,
        "constraints": FREE,
        "recipe": RECIPE,
        "run_dir": tmp_path / "run",
    }
    monkeypatch.setattr(module, "fit", dying)
    with pytest.raises(KeyboardInterrupt):
        prune(digitsnet, data, **settings)
    result = prune(digitsnet, data, **settings)
    assert calls[:3] == ["ista 1", "ista 2", "ista 2"]
    assert result.plan == whole.plan
    pairs = zip(result.model.state_dict().values(), whole.model.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    points = [
        [{k: v for k, v in p.items() if k != "seconds"} for p in r.summary["ista"]["curve"]] for r in (result, whole)
    ]
    assert points[0] == points[1]


def test_a_kill_within_a_sparse_epoch_loses_what_came_since_the_last_state(
    run, digitsnet, data, tmp_path, monkeypatch
):
    _, whole, _ = run
    real, steps = Sparsifier.step, []

    def dying(self, lr=None):
        steps.append(lr)
        if len(steps) == ROUND + 7:
            raise KeyboardInterrupt
        real(self, lr)

    how = {"method": Ista(growth=2), "budget": HALF, "constraints": FREE, "recipe": RECIPE, "run_dir": tmp_path / "run"}
    monkeypatch.setattr(Sparsifier, "step", dying)
    with pytest.raises(KeyboardInterrupt):
        prune(digitsnet, data, checkpoint_minutes=1e-9, **how)
    assert load_checkpoint(tmp_path / "run/ista 2.ckpt")["inside"]["step"] == 6
    began = len(steps)
    result = prune(digitsnet, data, checkpoint_minutes=10, **how)
    rounds = result.summary["ista"]["curve"]
    assert len(steps) - began == ROUND * (len(rounds) - 1) - 6
    assert rounds[1]["steps"] == ROUND
    pairs = zip(result.model.state_dict().values(), whole.model.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    names = {json.loads(line).get("name") for line in (tmp_path / "run/journal.jsonl").read_text().splitlines()}
    assert names <= {None, "finetune"}


def test_folding_left_the_network_as_it_was(run, data):
    """The last network of the curve is the trained one: the same accuracy, with fewer channels and no zero scale."""
    folder, result, _ = run
    last = len(result.summary["ista"]["curve"])
    small = sentei.load(build_model("digitsnet"), folder / "curve" / f"{last:02d}")
    fold = result.summary["ista"]["fold"]
    zeros = sum(int((small.get_parameter(f"bn{i}.weight") == 0).sum()) for i in (2, 4))
    assert zeros == fold["carried"] + fold["kept"]


def test_a_fixed_rho_is_the_papers_mode(digitsnet, data):
    result = prune(digitsnet, data, method=Ista(rho=0.02, sparse_epochs=3), constraints=FREE, recipe=RECIPE)
    report = result.summary["ista"]
    assert [p["rho"] for p in report["curve"]] == [0.02] * 3
    assert report["alpha"] == 0.1
    assert report["closed"] == 0
    assert all(p["reached"] is None for p in report["curve"])
    with pytest.raises(ConfigError, match="takes no budget"):
        prune(digitsnet, data, method=Ista(rho=0.02), budget=HALF, recipe=RECIPE)


def test_too_few_epochs_are_closed_with_the_smallest_scales(digitsnet, data):
    lines = []
    result = prune(
        digitsnet, data, method=Ista(sparse_epochs=1), budget=HALF, constraints=FREE, recipe=RECIPE, say=lines.append
    )
    assert result.graph.cost(result.plan).macs <= 0.5 * result.graph.cost().macs
    assert result.summary["ista"]["closed"] > 10
    assert any("Closed the gap" in line for line in lines)


def test_a_budget_without_room_for_carriers_is_met_by_biases(digitsnet, data):
    """The smallest network that the limits allow: constants of groups at their floor have nowhere to stay."""
    graph = sentei.trace(digitsnet, torch.zeros(1, 1, 8, 8))
    limits = Constraints(round_to=1, max_ratio=0.9, keep=("conv1",))
    least = int(graph.costs(limits.ladder(graph).floor).macs)
    given = {"recipe": dataclasses.replace(RECIPE, epochs=0), "constraints": limits, "sparse_epochs": 1}
    summary = prune(digitsnet, data, method="ista", budget=sentei.Budget(macs=float(least)), **given).summary
    assert summary["pruned"]["macs"] <= least


def test_streams_too(digitsnet, data):
    how = Ista(genes="all", cost="macs", fold="bias", sparse_epochs=6, growth=2)
    result = prune(digitsnet, data, method=how, budget=sentei.Budget(params=0.6), constraints=FREE, recipe=RECIPE)
    assert result.summary["widths"]["conv1"][1] <= 32
    assert result.graph.cost(result.plan).params <= 0.6 * result.graph.cost().params
    assert result.summary["ista"]["fold"]["carried"] == 0


def test_limits_of_the_user_hold(digitsnet, data):
    given = Constraints(round_to=1, max_ratio=0.5, keep=("conv4",))
    result = prune(
        digitsnet,
        data,
        method=Ista(sparse_epochs=2, growth=3),
        budget=sentei.Budget(macs=0.75),
        constraints=given,
        recipe=RECIPE,
    )
    widths = result.summary["widths"]
    assert widths["conv4"] == [64, 64]
    assert widths["conv2"][1] >= 16
    with pytest.raises(BudgetError):
        prune(digitsnet, data, method="ista", budget=sentei.Budget(macs=0.05), constraints=given, recipe=RECIPE)


def net(norm):
    layers = [nn.Conv2d(1, 8, 3, padding=1), norm(), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)]
    return nn.Sequential(*layers)


def frozen():
    layer = nn.BatchNorm2d(8)
    layer.weight.requires_grad_(False)
    return layer


@pytest.mark.parametrize(
    ("norm", "why"),
    [
        (nn.Identity, "no BatchNorm with a scale"),
        (lambda: nn.BatchNorm2d(8, affine=False), "no BatchNorm with a scale"),
        (lambda: nn.GroupNorm(8, 8), "no BatchNorm with a scale"),
        (frozen, "the scale of 1 is frozen"),
    ],
)
def test_networks_without_usable_batchnorm_are_refused(norm, why, data, tmp_path):
    with pytest.raises(ConfigError, match=f"{why}.*taylor, l1, uniform"):
        prune(net(norm), data, method="ista", budget=HALF, recipe=RECIPE, run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "wrong",
    [
        {"rho": 0.0},
        {"growth": 1.0},
        {"alpha": 2.0},
        {"sparse_epochs": 0},
        {"sparse_lr": 0},
        {"cost": "speed"},
        {"genes": "some"},
        {"fold": "x"},
    ],
)
def test_settings_out_of_range(wrong):
    with pytest.raises(ConfigError, match=f"{next(iter(wrong))} is"):
        Ista(**wrong)


def a_round(sparsity=0.0, loss=0.1, lasso=1.0, rho=1.0, val=0.9):
    zeros = {"a": round(100 * sparsity)}
    return Round(rho, loss, lasso, zeros, {"a": 100}, 10, 10, val, 10, None, 1.0)


def fell(r):
    return r.value < 0.45


def test_advice():
    assert diagnose([a_round()], fell, 2.3) is None
    assert diagnose([a_round(loss=None)], fell) is None
    assert "smaller alpha" in diagnose([a_round(), a_round(lasso=0.8), a_round(lasso=0.5)], fell, 2.3)
    rising = [a_round(lasso=1 / n, rho=n) for n in range(1, 8)]
    assert diagnose(rising, fell, 2.3) is None
    assert "smaller alpha" in diagnose([*rising, a_round(lasso=0.1, rho=8)], fell, 2.3)
    assert "lower rho" in diagnose([a_round(), a_round(0.97)], fell, 2.3)
    assert "than the network survives: lower rho" in diagnose([a_round(), a_round(0.3, val=0.2)], fell, 2.3)
    assert "learning rate" in diagnose([a_round(loss=2.2)], fell, 2.3)
    assert "learning rate" in diagnose([a_round(loss=float("inf"))])


def test_rho_rises_faster_while_scales_stand_still_and_waits_while_many_go_or_the_loss_jumps():
    assert next_rho(0.5, 2.0, []) == 0.5
    assert next_rho(1.0, 2.0, [a_round()]) == 2
    assert next_rho(1.0, 2.0, [a_round(), a_round(lasso=0.99)]) == 4
    assert next_rho(1.0, 2.0, [a_round(), a_round(lasso=0.8)]) == 2
    assert next_rho(1.0, 2.0, [a_round(), a_round(0.05)]) == 2
    assert next_rho(1.0, 2.0, [a_round(), a_round(0.05, loss=0.5)]) == 1
    assert next_rho(1.0, 2.0, [a_round(), a_round(0.05, loss=None)]) == 2
    assert next_rho(1.0, 2.0, [a_round(), a_round(0.5)]) == 1
    broken = a_round(0.5, rho=2.0, val=0.3)
    again = next_rho(1.0, 2.0, [a_round(), broken], fell)
    assert 1.0 < again < 2.0  # between what it survived and what destroyed it
    for later in ([a_round(0.05, rho=again)], [a_round(0.05, rho=again), a_round(0.06, rho=again)]):
        assert next_rho(1.0, 2.0, [a_round(), broken, *later], fell) < 2.0  # and never back there
    assert next_rho(1.0, 2.0, [a_round(val=0.1)], fell) < 1.0


def test_a_round_that_destroys_the_network_is_done_over_with_a_smaller_rho(digitsnet, data, monkeypatch):
    real, given = Pruning.value, []

    def measured(self, network):
        found = real(self, network)
        given.append(found)
        return 0.1 if len(given) == 3 else found  # the original, the first round, the second one

    monkeypatch.setattr(Pruning, "value", measured)
    report = prune(
        digitsnet, data, method=Ista(growth=1.5, sparse_epochs=3), budget=HALF, constraints=FREE, recipe=RECIPE
    ).summary["ista"]
    rho = [p["rho"] for p in report["curve"]]
    assert rho[0] < rho[2] < rho[1]
    assert report["curve"][1]["val_accuracy"] == 0.1


def test_alpha_by_the_papers_rule():
    """ResNet-101 on ImageNet: rho 0.1 and learning rate 0.001 went with alpha 0.01; 100 mu lambda rho is then 0.01."""
    gammas, costs = np.ones(100), np.ones(100)
    assert starting_point(None, 0.1, gammas, costs, 0.001, 100) == (0.01, 0.1)
    assert starting_point(0.5, 0.1, gammas, costs, 0.001, 100) == (0.5, 0.1)
    alpha, rho = starting_point(None, None, gammas, costs, 0.01, 50)
    assert alpha * 0.1 == pytest.approx(50 * 0.01 * rho)


def test_only_training_and_validation_images_are_seen(digitsnet, data):
    """A method that looked at the test set would fail on a test set without images."""
    seen = []

    class Watched:
        def __init__(self, name, split):
            self.name, self.split, self.augment = name, split, split.augment

        def __len__(self):
            return len(self.split)

        def steps(self, *args):
            return self.split.steps(*args)

        def content(self):
            return self.split.content()

        def batches(self, *args, **options):
            # "?" is a sample, to know how many go through the network at once.
            seen.append(self.name + "?" * (args == (1,)))
            return self.split.batches(*args, **options)

    splits = {name: Watched(name, getattr(data, name)) for name in ("train", "val", "test")}
    prune(
        digitsnet,
        dataclasses.replace(data, **splits),
        method=Ista(sparse_epochs=1),
        budget=HALF,
        constraints=FREE,
        recipe=RECIPE,
    )
    assert seen[-7:] == ["val", "test?", "test", "val?", "val", "test?", "test"]
    assert not {"test?", "test"} & {*seen[:-7]}
