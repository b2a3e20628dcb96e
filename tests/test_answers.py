"""Which test samples were answered right: as text, and what that says about a difference between two networks."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sentei.answers import error_of_difference, packed, unpacked
from sentei.comparison.statistics import paired
from sentei.data import load_data
from sentei.errors import TrainError
from sentei.models import build_model
from sentei.tasks import Classification
from sentei.train import evaluate


@given(st.lists(st.booleans(), max_size=40))
def test_text_comes_back(bits):
    right = np.array(bits, bool)
    assert np.array_equal(unpacked(packed(right)), right)


@pytest.mark.parametrize("text", ["", "3:", "3:oA", "x:oA==", "9:oA==", "oA==", "3:o=A="])
def test_other_text_is_refused(text):
    with pytest.raises(ValueError, match="."):
        unpacked(text)


def test_one_seed_by_hand():
    """McNemar: b = 30 right in the first alone, c = 20 in the second alone, of 1000."""
    first, second = np.zeros(1000, bool), np.zeros(1000, bool)
    first[:900] = second[:900] = True
    first[900:930] = True
    second[930:950] = True
    expected = np.sqrt(50 + 1 - 10**2 / 1002) / 1002
    assert error_of_difference([first], [second]) == pytest.approx(expected)
    assert error_of_difference([first], [second, second]) == pytest.approx(expected)
    assert error_of_difference([first], [first]) == pytest.approx(1 / 1002)


def answered(rng, seeds, images=500, spread=0.01):
    """Of networks that are equally good, each seed by chance a little better or worse, on images of which some are
    hard for all."""
    ease = rng.beta(0.9, 0.1, images)
    return [rng.random(images) < np.clip(ease + rng.normal(0, spread), 0, 1) for _ in range(seeds)], ease


def test_intervals_by_image_cover_what_they_promise_and_are_narrower():
    rng, held, widths = np.random.default_rng(0), 0, []
    for _ in range(400):
        first, ease = answered(rng, 3)
        second = [rng.random(500) < np.clip(ease + rng.normal(0, 0.01), 0, 1) for _ in range(3)]
        means = [[float(right.mean()) for right in side] for side in (first, second)]
        found, cautious = paired(*means, 500, (first, second)), paired(*means, 500)
        held += found.low <= 0 <= found.high
        widths.append((found.high - found.low) / (cautious.high - cautious.low))
    assert held / 400 >= 0.95
    assert np.median(widths) < 0.75


def test_a_network_tells_which_images_it_has_right():
    data = load_data("digits")
    model = build_model("digitsnet").eval()
    found = evaluate(model, data.test, batch_size=50)
    scores = torch.cat([model(images) for images, _ in data.test.batches(100)])
    labels = torch.cat([labels for _, labels in data.test.batches(100)])
    assert np.array_equal(found.right, (scores.argmax(1) == labels).numpy())
    assert found.value == found.right.mean()
    assert "right" not in found.figures


class Exam(Classification):
    name, given = "exam", None

    def measure(self, model, batches):
        list(batches)
        return {"accuracy": 0.5, "right": self.given}


@pytest.mark.parametrize("given", [torch.ones(7, dtype=torch.bool), torch.ones(360)])
def test_a_task_that_tells_something_else_is_refused(given, monkeypatch):
    monkeypatch.setattr(Exam, "given", given)
    with pytest.raises(TrainError, match="expected 360 bools, one for each sample"):
        evaluate(nn.Flatten(), load_data("digits").test, task=Exam())


def test_a_plain_figure_of_that_name_is_a_figure(monkeypatch):
    monkeypatch.setattr(Exam, "given", 0.5)
    found = evaluate(nn.Flatten(), load_data("digits").test, task=Exam())
    assert (found.right, found.figures["right"]) == (None, 0.5)
