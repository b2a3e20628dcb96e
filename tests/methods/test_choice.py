"""Where no method is named: which is taken, that it is said, and what it will take."""

import pytest
import torch

import sentei
from sentei.data import load_data
from sentei.errors import ConfigError
from sentei.methods import METHODS, OneShot, prune
from sentei.methods.choice import choose
from sentei.methods.common.forecast import forecast, pace
from sentei.methods.prune import prepared
from sentei.train import Recipe

RECIPE = Recipe(epochs=1, batch_size=64, lr=0.02, limit=256)


def test_without_a_method_the_best_is_taken_and_with_fast_the_best_one_shot(digitsnet, data):
    for fast, options in ((False, {"evaluations": 4}), (True, {})):
        lines = []
        result = prune(digitsnet, data, fast=fast, recipe=RECIPE, images=64, say=lines.append, **options)
        choice = choose(fast)
        assert result.summary["method"] == choice.method
        assert lines[0] == choice.told()
        assert result.summary["settings"]["distill"]
        (takes,) = (line for line in lines if line.startswith("It takes"))
        assert f"It takes {result.summary['images_trained']['total']:,} training images" in takes
    assert isinstance(METHODS[choose(fast=True).method], OneShot)
    alone = prune(digitsnet, data, fast=True, distill=False, recipe=RECIPE, images=64)
    assert not alone.summary["settings"]["distill"]
    with pytest.raises(ConfigError, match=r"has no option 'evaluations'; it belongs to abc, evolution"):
        prune(digitsnet, data, fast=True, evaluations=4)


def test_a_method_that_is_named_is_taken_without_a_word(digitsnet, data):
    lines = []
    prune(digitsnet, data, method="l1", recipe=RECIPE, images=64, say=lines.append)
    assert not [line for line in lines if "named" in line or "It takes" in line]
    with pytest.raises(ConfigError, match="fast picks the method, and method is 'l1'"):
        prune(digitsnet, data, method="l1", fast=True)


def test_without_validation_images_nothing_is_searched(digitsnet):
    lines = []
    data = load_data("digits", val=0)
    result = prune(digitsnet, data, recipe=RECIPE, images=64, say=lines.append)
    assert result.summary["method"] == choose(validation=False).method == choose(fast=True).method
    assert "without validation images nothing can be searched" in lines[0]


def pruning(model, data, **given):
    found, method = prepared(model, data, recipe=Recipe(epochs=3, batch_size=60), **given)
    found.graph = found.trace()
    return found, method


def test_a_forecast_counts_what_is_trained_before_the_fine_tuning_and_leaves_the_network_alone(three, data):
    before = {name: t.clone() for name, t in three.state_dict().items()}
    three.zero_grad()
    assert forecast(*pruning(three, data, method="l1")).startswith("3,600 training images, about ")
    stages = {"method": "stagewise", "supernet_epochs": 2, "evaluations": 10, "candidates": 3, "table_images": 50}
    told = forecast(*pruning(three, data, **stages))
    judged = 10 * 50 + 3 * (1000 + 180)
    trained = "6,000 training images, 2,400 of them before the fine-tuning"
    assert told.startswith(f"{trained}, up to {judged:,} more to judge structures by, about ")
    assert forecast(*pruning(three, data, **stages, total_images=3000)).startswith("3,000 training images, 2,400 of")
    told = forecast(*pruning(three, data, method="abc", evaluations=7))
    assert told.startswith(f"3,600 training images, up to {7 * 1180:,} more to judge structures by, about ")
    assert all(p.grad is None for p in three.parameters())
    assert all(torch.equal(before[name], t) for name, t in three.state_dict().items())


def test_a_forecast_is_shorter_for_a_smaller_network_and_longer_with_a_teacher(three, data, monkeypatch):
    monkeypatch.setattr("sentei.methods.common.forecast._step", lambda *_: 0.16)
    alone = {"distill": False}
    asked = ({"budget": sentei.Budget(macs=0.25), **alone}, alone, {}, {"budget": sentei.Budget(params=0.5), **alone})
    times = [pace(pruning(three, data, method="l1", **given)[0])[0] for given in asked]
    assert times == pytest.approx([0.0025, 0.005, 0.01 * (0.5 + 1 / 3), 0.01], rel=1e-6)
