"""Passes without gradients have as many samples at once as memory holds, and measure the same."""

import pytest
import torch
from torch import nn

import sentei
from sentei.data import load_data
from sentei.data.splits import Augment, TensorSplit
from sentei.models import build_model
from sentei.tasks import Classification
from sentei.train import Recipe, evaluate
from sentei.train.passes import MB, at_once, bytes_of, peak_bytes

TASK = Classification()


@pytest.fixture(scope="module")
def digits():
    return load_data("digits")


@pytest.fixture
def model():
    torch.manual_seed(0)
    return build_model("digitsnet").eval()


def sizes_of(model):
    """Samples of every pass that the model makes from now on."""
    seen = []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    return seen


def test_the_peak_is_what_is_alive_at_the_same_time():
    net = nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1), nn.Flatten(), nn.Sigmoid())
    plane = 8 * 8 * 4
    assert peak_bytes(net, torch.zeros(1, 1, 8, 8)) == 2 * 4 * plane
    assert peak_bytes(net, torch.zeros(3, 1, 8, 8)) == 3 * 2 * 4 * plane
    net[1].inplace = True
    assert peak_bytes(net, torch.zeros(1, 1, 8, 8)) == (4 + 2) * plane


def test_a_pass_has_what_fits_and_at_least_one_sample(digits, model):
    few = at_once(model, digits.val, 500, TASK, memory_mb=1)
    assert 1 < few < len(digits.val)
    assert bytes_of(model) + few * peak_bytes(model, torch.zeros(1, 1, 8, 8)) <= MB
    assert at_once(model, digits.val, 500, TASK, memory_mb=1000) == 500
    assert at_once(model, digits.val, 500, TASK) == 500  # too small to be looked at
    wide = nn.Sequential(nn.Flatten(), nn.Linear(64, 500_000), nn.Linear(500_000, 10))
    assert at_once(wide, digits.val, 500, TASK, memory_mb=1) == 1
    assert at_once(wide, digits.train, 256, TASK, memory_mb=1, least=8) == 8


def test_measuring_in_small_batches_gives_the_same(digits, model):
    seen = sizes_of(model)
    small = evaluate(model, digits.val, memory_mb=1)
    pieces, whole = seen[1:], evaluate(model, digits.val, batch_size=1000)
    assert len(pieces) > 2
    assert max(pieces) == at_once(model, digits.val, 500, TASK, memory_mb=1)
    assert small.figures == pytest.approx(whole.figures)


def test_large_inputs_are_looked_at_without_a_limit_and_own_batches_left_alone():
    pixels = torch.zeros(40, 400, 400, 3, dtype=torch.uint8)
    held = TensorSplit(pixels, torch.zeros(40, dtype=torch.long), (0.5,) * 3, (0.5,) * 3, Augment())
    net = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 2))
    assert 20 < at_once(net, held, 500, TASK) < 30
    assert at_once(net, sentei.Data.of(list(held.batches(40))).train, 500, TASK) == 500


def test_a_limit_holds_for_every_pass_of_a_search(digits, model):
    seen, settings = [], {"evaluations": 4, "warm": False, "calibration_images": 200, "validation_images": 200}
    forward = type(model).forward

    def counted(self, x):
        seen.append(len(x))
        return forward(self, x)

    type(model).forward = counted
    try:
        recipe = Recipe(epochs=1, limit=128, train_memory_mb=1, lr=0.01)
        sentei.prune(model, digits, method="abc", recipe=recipe, distill=False, images=200, **settings)
    finally:
        type(model).forward = forward
    assert max(seen) <= 2 * at_once(model, digits.val, 500, TASK, memory_mb=1)  # of half a network twice as many fit
