"""What is wrong with a task or its data is said in one sentence, before work is lost."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sentei
from sentei.errors import ConfigError, DataError, TrainError
from sentei.plan import CRITERIA
from sentei.tasks import task_of
from sentei.train import Recipe, evaluate, fit, recalibrate
from tests.tasks import masked_regression
from tests.tasks.masked_regression import Depth, Stereo, batches, data

ONE = Recipe(epochs=1, lr=0.01)


class Nameless(Depth):
    def measure(self, model: nn.Module, batches: Any) -> dict[str, float]:
        return {"mse": 1.0}


class Undefined(Depth):
    def measure(self, model: nn.Module, batches: Any) -> dict[str, float]:
        return {"rmse": math.nan}


class Vague(Depth):
    def measure(self, model: nn.Module, batches: Any) -> Any:
        return 0.5


class Wordy(Depth):
    def measure(self, model: nn.Module, batches: Any) -> Any:
        return {"rmse": torch.ones(3)}


class Broken(Depth):
    def measure(self, model: nn.Module, batches: Any) -> dict[str, float]:
        return {"rmse": next(iter(batches))["deepness"]}


WRONG = [
    (Nameless, "returned 'mse'; expected the metric 'rmse'"),
    (Vague, "returned a float; expected a dict of figures with 'rmse'"),
    (Wordy, "no plain number"),
    (Broken, "measure of task broken failed: KeyError: 'deepness'"),
]


@pytest.mark.parametrize(("task", "said"), WRONG)
def test_a_wrong_measurement_is_found_before_the_first_step(task: type[Depth], said: str, tmp_path: Any) -> None:
    model = Stereo()
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(TrainError, match=said):
        fit(model, data(), ONE, task=task(), progress=False)
    assert all(map(torch.equal, before, model.parameters()))
    with pytest.raises(TrainError, match=said):
        sentei.prune(model, data(), task=task(), run_dir=tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_a_metric_that_is_no_number_is_refused(tmp_path: Any) -> None:
    with pytest.raises(TrainError, match="returned rmse = nan; expected a finite number"):
        sentei.prune(Stereo(), data(), task=Undefined(), run_dir=tmp_path / "x")
    assert not (tmp_path / "x").exists()


class Mismatched(Depth):
    def loss(self, output: Any, batch: Any) -> Tensor:
        return (output["depth"] - batch["depth"][:, :5]).square().mean()


class Vector(Depth):
    def loss(self, output: Any, batch: Any) -> Tensor:
        return output["depth"].mean((1, 2))


@pytest.mark.parametrize(
    ("task", "said"),
    [(Mismatched, "the loss of task mismatched failed"), (Vector, r"a tensor of shape \(16,\); expected a scalar")],
)
def test_an_output_that_the_loss_cannot_take(task: type[Depth], said: str) -> None:
    with pytest.raises(TrainError, match=said):
        fit(Stereo(), data(), ONE, task=task(), progress=False)


def test_model_and_batches_in_different_places() -> None:
    model = Stereo().to("meta")
    with pytest.raises(TrainError, match="the model is on meta, its inputs on cpu: move the model"):
        evaluate(model, data().val, task=Depth())


def test_searches_need_validation_data() -> None:
    few = sentei.Data.of(train=batches(2, 0))
    with pytest.raises(DataError, match="validation split has 0 images; a search needs 1 or more"):
        sentei.prune(Stereo(), few, task=Depth(), method="abc")


def test_a_task_without_test_data_is_pruned_all_the_same() -> None:
    part = sentei.Data.of(train=batches(2, 0), val=batches(1, 1))
    done = sentei.prune(Stereo(), part, task=Depth(), method="l1", recipe=ONE, images=32)
    assert done.summary["pruned"]["rmse"] is None
    assert done.summary["pruned"]["val_rmse"] > 0


def test_recalibration_asks_the_task_for_inputs() -> None:
    model = Stereo()
    assert recalibrate(model, batches(2, 0), Depth()) == 4


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "own"])
def test_optimizers(optimizer: str) -> None:
    rates: list[float] = []

    def factory(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        groups = [{**g, "lr": 0.002} for g in groups]
        own = torch.optim.RAdam(groups, lr=0.001)
        own.register_step_pre_hook(lambda o, *_: rates.append(o.param_groups[0]["lr"]))
        return own

    recipe = Recipe(epochs=2, lr=0.001, optimizer="adamw" if optimizer == "adamw" else "sgd", schedule="constant",
                    warmup_epochs=0)  # fmt: skip
    torch.manual_seed(0)
    own = factory if optimizer == "own" else None
    found = fit(Stereo(), data(), recipe, task=Depth(), optimizer=own, progress=False)
    assert found.history[-1]["loss"] < found.history[0]["loss"]
    assert rates == ([0.002] * 16 if optimizer == "own" else [])


def test_what_is_no_optimizer_is_refused() -> None:
    with pytest.raises(ConfigError, match="returned a int; expected a torch Optimizer"):
        fit(Stereo(), data(), ONE, task=Depth(), optimizer=lambda groups: 5, progress=False)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="'sgd' or 'adamw'"):
        Recipe(optimizer="adam")


def test_gammas_take_plain_steps_under_any_optimizer() -> None:
    """ISTA's scales move by learning rate times gradient, however the rest is trained."""
    model, name = Stereo(), "trunk.1.weight"
    before = model.get_parameter(name).detach().clone()
    steps: list[Tensor] = []
    fit(
        model, sentei.Data.of(train=batches(1, 0)), Recipe(epochs=1, lr=0.1, optimizer="adamw", warmup_epochs=0),
        task=Depth(), plain=[name], progress=False, after_step=lambda m, lr: steps.append(m.get_parameter(name).grad),
    )  # fmt: skip
    assert torch.allclose(model.get_parameter(name), before - 0.1 * steps[0])


@pytest.mark.parametrize("method", ["l1", "taylor", "stagewise"])
def test_a_loss_that_is_none_is_found_before_any_scoring(method: str, tmp_path: Any) -> None:
    with pytest.raises(TrainError, match=r"the loss of task vector is a tensor of shape"):
        sentei.prune(Stereo(), data(), task=Vector(), method=method, run_dir=tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_batches_that_need_a_task_of_their_own_are_told_so() -> None:
    said = "a batch is a dict with the keys views, scale, depth, known; task classification takes .* task=Mine"
    with pytest.raises(TrainError, match=said):
        sentei.prune(Stereo(), data())
    with pytest.raises(TrainError, match=said):
        sentei.recalibrate(Stereo(), batches(1, 0))
    graph = sentei.trace(Stereo(), Depth().example(Stereo(), data()))
    with pytest.raises(ConfigError, match="a batch is a dict, not .* give step="):
        CRITERIA["taylor"](Stereo(), graph, batches=batches(1, 0))


def test_costs_are_those_of_one_sample() -> None:
    one = Depth().example(Stereo(), data())
    assert {name: tuple(t.shape)[:1] for name, t in one.items()} == {"left": (1,), "right": (1,), "scale": (1,)}


@pytest.mark.parametrize("given", [0.5, "50%"])
def test_what_is_no_budget_is_told_how_to_write_one(given: Any) -> None:
    graph = sentei.trace(Stereo(), Depth().example(Stereo(), data()))
    for wrong in (
        lambda: sentei.prune(Stereo(), data(), task=Depth(), budget=given),
        lambda: sentei.uniform(graph, given),
        lambda: sentei.search_widths(Stereo(), graph, given, evaluate=len),
        lambda: sentei.Supernet(Stereo(), graph, given, task=Depth()),
    ):
        with pytest.raises(ConfigError, match=r"expected a Budget, for instance sentei.Budget\(macs=0.5\)"):
            wrong()


def test_the_code_of_a_task_is_a_part_of_its_run(tmp_path: Any) -> None:
    file = tmp_path / "own.py"
    text = Path(masked_regression.__file__).read_text()
    file.write_text(text)
    before = task_of(f"{file}:Depth").settings
    assert task_of(f"{file}:Depth").settings == before
    file.write_text(text.replace("smooth_l1_loss", "mse_loss"))
    assert task_of(f"{file}:Depth").settings["code"] != before["code"]
    assert "code" in Depth().settings
    assert "code" not in task_of("segmentation").settings
