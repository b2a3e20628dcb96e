"""The recipe: its schedule, and what it refuses."""

import math
from dataclasses import replace

import pytest
import torch

from sentei.data import Augment
from sentei.errors import ConfigError
from sentei.train import Recipe
from sentei.train.recipe import bf16_supported


def test_schedule_rises_to_the_peak_and_falls_to_zero() -> None:
    recipe = Recipe(epochs=10, lr=0.4, warmup_epochs=2)
    rates = [recipe.lr_at(step, 50) for step in range(500)]
    assert max(rates) == rates[100] == 0.4
    assert rates[:100] == sorted(rates[:100])
    assert rates[100:] == sorted(rates[100:], reverse=True)
    assert 0 < rates[0] < 0.01
    assert rates[-1] < 1e-4
    assert rates[300] == pytest.approx(0.2)


def test_constant_schedule_stays() -> None:
    recipe = Recipe(epochs=4, lr=0.4, warmup_epochs=0, schedule="constant")
    assert {recipe.lr_at(step, 7) for step in range(28)} == {0.4}


def test_short_runs_warm_up_for_at_most_a_quarter() -> None:
    assert Recipe(epochs=2, lr=1.0, warmup_epochs=5).lr_at(50, 100) == 1.0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", -1),
        ("batch_size", 0),
        ("lr", -0.1),
        ("lr", math.nan),
        ("momentum", 1.0),
        ("weight_decay", -1e-4),
        ("warmup_epochs", -1),
        ("schedule", "step"),
        ("label_smoothing", 1.0),
        ("clip_grad", 0.0),
        ("ema_decay", 1.0),
        ("distill_weight", 1.5),
        ("temperature", 0.0),
        ("crop", -1),
        ("cutout", -2),
        ("scale", (0.9, 0.3)),
        ("limit", 0),
    ],
)
def test_bad_values_are_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"^{field} is .*expected"):
        replace(Recipe(), **{field: value})  # type: ignore[arg-type]


def test_augmentation_of_the_data_is_kept_unless_the_recipe_sets_it() -> None:
    default = Augment(flip=True, crop=4)
    assert Recipe().augment(default) == default
    assert Recipe(flip=False, cutout=8).augment(default) == Augment(flip=False, crop=4, cutout=8)


def test_bf16_follows_the_hardware_unless_set() -> None:
    cpu = torch.device("cpu")
    assert Recipe().autocast(cpu) == bf16_supported(cpu)
    assert Recipe(bf16=True).autocast(cpu)
    assert not Recipe(bf16=False).autocast(cpu)
    assert not bf16_supported(torch.device("meta"))
