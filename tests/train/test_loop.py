"""The training loop: it learns, decays what it should, distils, averages, and stops on a broken loss."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sentei.data import Data, load_data
from sentei.errors import TrainError
from sentei.models import build_model
from sentei.tasks import distillation_loss
from sentei.train import Recipe, evaluate, fit
from sentei.train.optimizers import parameter_groups

SHORT = Recipe(epochs=1, batch_size=128, lr=0.1, bf16=False)


def test_digitsnet_learns_the_digits(data: Data) -> None:
    result = fit(build_model("digitsnet"), data, Recipe(epochs=12, batch_size=64, lr=0.2), progress=False)
    assert evaluate(result.model, data.test).value > 0.96
    assert result.value is not None
    assert result.best is not None
    assert 0.95 < result.value <= result.best
    assert [r["epoch"] for r in result.history] == list(range(1, 13))
    assert result.history[-1]["loss"] < result.history[0]["loss"] / 5
    assert result.images_per_second > 0
    assert not result.model.training


def test_same_seed_same_weights_whatever_the_global_state(data: Data) -> None:
    def train(seed: int, noise: int) -> dict[str, Tensor]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Dropout(0.2), build_model("digitsnet"))
        torch.manual_seed(noise)
        before = torch.get_rng_state()
        fit(model, data, replace(SHORT, seed=seed), progress=False)
        assert torch.equal(torch.get_rng_state(), before)
        return model.state_dict()

    first, same, other = train(1, 1), train(1, 2), train(2, 1)
    assert all(torch.equal(first[n], same[n]) for n in first)
    assert not torch.equal(first["1.conv1.weight"], other["1.conv1.weight"])


def test_norms_and_biases_are_not_decayed() -> None:
    model = build_model("vgg16")
    model.get_parameter("features.0.weight").requires_grad_(False)
    (decayed, plain), still = parameter_groups(model, 0.01)
    assert not still
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.01, 0.0)
    names = {id(p): n for n, p in model.named_parameters()}
    norms = {f"{n}.weight" for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    in_decayed, in_plain = ({names[id(p)] for p in g["params"]} for g in (decayed, plain))
    assert in_plain == norms | {n for n in names.values() if n.endswith(".bias")}
    assert in_decayed | in_plain == set(names.values()) - {"features.0.weight"}


def test_one_step_is_the_textbook_step(data: Data) -> None:
    """SGD with momentum, Nesterov and decay, against the same step written out with plain autograd."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    weight = model[1].weight.detach().clone().requires_grad_()
    bias = model[1].bias.detach().clone().requires_grad_()
    recipe = replace(SHORT, limit=128, crop=0, warmup_epochs=0, weight_decay=0.1, label_smoothing=0.2)
    ((x, y),) = data.train.batches(128, train=True, limit=128, augment=recipe.augment(data.train.augment))
    loss = F.cross_entropy(F.linear(x.flatten(1), weight, bias), y, label_smoothing=0.2)
    grad_w, grad_b = torch.autograd.grad(loss, (weight, bias))
    fit(model, data, recipe, progress=False)
    step = (grad_w + 0.1 * weight) * 1.9  # Nesterov's first step: g + momentum * g
    torch.testing.assert_close(model[1].weight, weight - 0.1 * step)
    torch.testing.assert_close(model[1].bias, bias - 0.1 * 1.9 * grad_b)


def test_clip_grad_bounds_the_step(data: Data) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    before = [p.detach().clone() for p in model.parameters()]
    recipe = replace(
        SHORT,
        limit=128,
        warmup_epochs=0,
        lr=1.0,
        momentum=0.0,
        nesterov=False,
        weight_decay=0.0,
        clip_grad=0.01,
    )
    fit(model, data, recipe, progress=False)
    moved = sum(float((p - q).detach().square().sum()) for p, q in zip(model.parameters(), before, strict=True))
    assert moved**0.5 == pytest.approx(0.01, rel=1e-3)


def test_average_is_returned_and_differs_from_the_last_weights(data: Data) -> None:
    seen: list[Tensor] = []

    def collect(model: nn.Module, lr: float) -> None:
        seen.append(model.get_parameter("conv1.weight").detach().clone())

    model = build_model("digitsnet")
    fit(model, data, replace(SHORT, ema_decay=0.8), after_step=collect, progress=False)
    average = seen[0]
    for value in seen[1:]:
        average = 0.8 * average + 0.2 * value
    torch.testing.assert_close(model.get_parameter("conv1.weight").detach(), average)
    assert not torch.equal(average, seen[-1])


def test_after_step_sees_the_rate_of_every_step(data: Data) -> None:
    rates: list[float] = []
    recipe = replace(SHORT, epochs=2)
    fit(build_model("digitsnet"), data, recipe, after_step=lambda m, lr: rates.append(lr), progress=False)
    steps = 1257 // 128
    assert rates == [recipe.lr_at(step, steps) for step in range(2 * steps)]


def test_distillation_loss_is_the_papers() -> None:
    student, teacher = torch.randn(6, 10), torch.randn(6, 10)
    p, q = (teacher / 3).softmax(dim=1), (student / 3).softmax(dim=1)
    expected = 9 * (p * (p / q).log()).sum(dim=1).mean()
    torch.testing.assert_close(distillation_loss(student, teacher, 3.0), expected)
    assert float(distillation_loss(student, student, 3.0)) == pytest.approx(0, abs=1e-6)


def test_teacher_alone_can_teach_and_is_left_as_it_was(data: Data) -> None:
    teacher = fit(build_model("digitsnet"), data, replace(SHORT, epochs=4, batch_size=64), progress=False).model
    before = {n: t.clone() for n, t in teacher.state_dict().items()}
    teacher.train()
    student = build_model("digitsnet")
    recipe = replace(SHORT, epochs=4, batch_size=64, distill_weight=1.0)
    fit(student, data, recipe, teacher=teacher, progress=False)
    assert evaluate(student, data.test).value > 0.85
    assert teacher.training
    assert all(torch.equal(before[n], t) for n, t in teacher.state_dict().items())


@pytest.mark.parametrize("bf16", [False, True])
def test_diverging_run_stops_and_names_the_last_good_checkpoint(data: Data, tmp_path: Path, bf16: bool) -> None:
    calls = 0

    def poison(model: nn.Module, lr: float) -> None:
        nonlocal calls
        calls += 1
        if calls == 12:  # the third step of the second epoch
            with torch.no_grad():
                model.get_parameter("linear.weight").fill_(float("inf"))

    recipe = replace(SHORT, epochs=3, bf16=bf16)
    with pytest.raises(TrainError, match=r"epoch 2, step 4 of 9.*train\.ckpt \(epoch 1\)"):
        fit(build_model("digitsnet"), data, recipe, run_dir=tmp_path, after_step=poison, progress=False)
    resumed = fit(build_model("digitsnet"), data, recipe, run_dir=tmp_path, progress=False)
    assert resumed.value is not None


def test_weights_broken_by_the_last_step_never_reach_a_checkpoint(data: Data, tmp_path: Path) -> None:
    calls = 0

    def poison(model: nn.Module, lr: float) -> None:
        nonlocal calls
        calls += 1
        if calls == 9:
            with torch.no_grad():
                model.get_parameter("linear.bias").fill_(float("nan"))

    with pytest.raises(TrainError, match=r"linear\.bias is no longer finite after epoch 1\. There is no checkpoint"):
        fit(build_model("digitsnet"), data, SHORT, run_dir=tmp_path, after_step=poison, progress=False)
    assert not (tmp_path / "train.ckpt").exists()


def test_too_few_classes_are_refused_before_training(data: Data) -> None:
    with pytest.raises(TrainError, match="scores 5 classes"):
        fit(build_model("digitsnet", num_classes=5), data, SHORT, progress=False)
    with pytest.raises(TrainError, match=r"classification, the task unless.*expects \(1, classes\)"):
        fit(nn.Conv2d(1, 10, 3), data, SHORT, progress=False)


def test_zero_epochs_and_no_validation(data: Data) -> None:
    result = fit(build_model("digitsnet"), data, replace(SHORT, epochs=0), progress=False)
    assert (result.history, result.value, result.images_per_second) == ([], None, 0.0)
    result = fit(build_model("digitsnet"), load_data("digits", val=0), SHORT, progress=False)
    assert result.value is None
    assert "accuracy" not in result.history[0]


def test_progress_is_one_line_an_epoch_off_the_terminal(data: Data, capsys: pytest.CaptureFixture[str]) -> None:
    fit(build_model("digitsnet"), data, replace(SHORT, epochs=2), name="finetune")
    lines = capsys.readouterr().out.strip().splitlines()
    assert len(lines) == 2
    assert lines[1].startswith("finetune 2/2  loss ")
    assert "images/s" in lines[1]
    fit(build_model("digitsnet"), data, SHORT, progress=False)
    assert capsys.readouterr().out == ""


def test_compiled_training_runs(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wrapped forward is what is called, and the weights that train are the model's own."""
    compiled: list[nn.Module] = []

    def eager(model: nn.Module) -> nn.Module:
        compiled.append(model)
        return torch.nn.Sequential(model)

    monkeypatch.setattr(torch, "compile", eager)
    model = build_model("digitsnet")
    before = model.get_parameter("conv1.weight").detach().clone()
    fit(model, data, replace(SHORT, compile=True), progress=False)
    assert compiled == [model]
    assert not torch.equal(before, model.get_parameter("conv1.weight"))
