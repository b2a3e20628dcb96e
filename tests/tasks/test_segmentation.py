"""Segmentation: figures against counting by hand and torchmetrics, ignored pixels, outputs of every kind."""

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sentei.data import Data
from sentei.errors import TrainError
from sentei.tasks import Segmentation
from sentei.train import Recipe, evaluate, fit


class Fixed(nn.Module):
    """Answers with what it is given: scores N,classes,h,w are its inputs."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def scores_of(answers: Tensor, classes: int) -> Tensor:
    return F.one_hot(answers, classes).permute(0, 3, 1, 2).float()


def random_case(classes: int = 4) -> tuple[Tensor, Tensor]:
    scores, mask = torch.randn(6, classes, 9, 7), torch.randint(0, classes, (6, 9, 7))
    mask[torch.rand(mask.shape) < 0.2] = 255
    return scores, mask


def test_figures_are_those_counted_by_hand() -> None:
    answers = torch.tensor([[[0, 0, 1], [1, 1, 2]]])
    mask = torch.tensor([[[0, 1, 1], [1, 255, 255]]])
    figures = Segmentation().measure(Fixed(), [(scores_of(answers, 4), mask)])
    # Class 0: 1 of 2, class 1: 2 of 3; 2 is answered on an ignored pixel only, 3 nowhere.
    assert figures["miou"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert figures["pixel_accuracy"] == pytest.approx(3 / 4)
    assert (figures["majority"], figures["majority_miou"]) == (3 / 4, 3 / 8)


def test_an_answered_class_that_no_mask_has_counts_as_zero() -> None:
    figures = Segmentation().measure(Fixed(), [(scores_of(torch.tensor([[[0, 3]]]), 4), torch.tensor([[[0, 0]]]))])
    assert figures["miou"] == pytest.approx((1 / 2 + 0) / 2)


def test_figures_over_batches_are_those_of_torchmetrics() -> None:
    from torchmetrics.classification import MulticlassJaccardIndex  # takes seconds

    scores, mask = random_case()
    figures = Segmentation().measure(Fixed(), zip(scores.split(4), mask.split(4), strict=True))
    expected = MulticlassJaccardIndex(4, average="macro", ignore_index=255)(scores.argmax(1), mask)
    assert figures["miou"] == pytest.approx(float(expected), abs=1e-6)
    assert figures["loss"] == pytest.approx(float(F.cross_entropy(scores, mask, ignore_index=255)), rel=1e-5)


def test_another_value_may_be_ignored() -> None:
    scores, mask = random_case()
    moved = mask.masked_fill(mask == 255, -1)
    assert Segmentation(ignore=-1).measure(Fixed(), [(scores, moved)]) == Segmentation().measure(
        Fixed(), [(scores, mask)]
    )
    assert torch.equal(Segmentation(ignore=-1).loss(scores, (None, moved)), Segmentation().loss(scores, (None, mask)))


def test_loss_is_the_mean_over_counted_pixels() -> None:
    scores, mask = random_case()
    for smoothing in (0.0, 0.1):
        task = Segmentation().with_settings(smoothing, 1.0)
        expected = F.cross_entropy(scores, mask, ignore_index=255, label_smoothing=smoothing)
        torch.testing.assert_close(task.loss(scores, (None, mask)), expected)


def test_a_batch_without_labels_costs_nothing_and_can_be_differentiated() -> None:
    scores = torch.randn(2, 3, 4, 4, requires_grad=True)
    mask = torch.full((2, 4, 4), 255)
    loss = Segmentation().loss(scores, (None, mask))
    loss.backward()
    assert loss.item() == 0
    assert scores.grad is not None
    assert float(scores.grad.abs().sum()) == 0
    assert math.isnan(Segmentation().measure(Fixed(), [(scores.detach(), mask)])["miou"])


def test_outputs_of_torchvision_and_hugging_face_are_understood() -> None:
    scores, mask = random_case()
    other, task = torch.randn_like(scores), Segmentation(aux_weight=0.4)
    plain, second = task.loss(scores, (None, mask)), task.loss(other, (None, mask))
    assert torch.equal(task.loss({"out": scores}, (None, mask)), plain)
    assert torch.equal(task.loss(SimpleNamespace(logits=scores), (None, mask)), plain)
    torch.testing.assert_close(task.loss({"out": scores, "aux": other}, (None, mask)), plain + 0.4 * second)


def test_scores_of_another_size_are_resized() -> None:
    scores, mask = torch.randn(2, 3, 4, 5), torch.randint(0, 3, (2, 16, 20))
    large = F.interpolate(scores, (16, 20), mode="bilinear", align_corners=False)
    task = Segmentation()
    assert torch.equal(task.loss(scores, (None, mask)), task.loss(large, (None, mask)))
    assert task.measure(Fixed(), [(scores, mask)]) == task.measure(Fixed(), [(large, mask)])


def test_what_cannot_be_compared_is_refused() -> None:
    scores, mask = torch.randn(2, 3, 4, 4), torch.full((2, 4, 4), 3)
    for act in (
        lambda: Segmentation().loss(scores, (None, mask)),
        lambda: Segmentation().measure(Fixed(), [(scores, mask)]),
        lambda: Segmentation().measure(Fixed(), [(scores, mask - 3), (scores, mask)]),
    ):
        with pytest.raises(TrainError, match=r"scores 3 classes, but the masks hold 3|does not score"):
            act()
    with pytest.raises(TrainError, match=r"expected \(2, classes, height, width\)"):
        Segmentation().loss(scores.mean((2, 3)), (None, mask))


def test_imitating_is_the_mean_divergence_of_the_pixels() -> None:
    student, teacher = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    target = F.softmax(teacher / 2, dim=1)
    each = (target * (target.log() - F.log_softmax(student / 2, dim=1))).sum(dim=1)
    task = Segmentation(temperature=2.0)
    torch.testing.assert_close(task.imitate(student, {"out": teacher}, None), 4 * each.mean())
    assert float(task.imitate(student, student, None)) == pytest.approx(0, abs=1e-6)
    small = F.interpolate(teacher, (2, 2))
    assert task.imitate(student, small, None).isfinite()


def test_guessing_is_doubted_and_better_is_not() -> None:
    task = Segmentation()
    figures = {"pixel_accuracy": 0.6, "majority": 0.6, "miou": 0.1, "majority_miou": 0.1}
    assert "no better than always answering" in str(task.doubt(figures, 9))
    assert task.doubt({**figures, "miou": 0.2}, 9) is None
    assert task.doubt({**figures, "pixel_accuracy": 0.7}, 9) is None


def test_settings_are_plain_and_without_those_of_the_recipe() -> None:
    task = Segmentation().with_settings(0.1, 3.0)
    assert (task.label_smoothing, task.temperature) == (0.1, 3.0)
    assert task.settings == {"name": "segmentation", "metric": "miou", "ignore": 255, "aux_weight": 0.5}


def test_a_network_learns_the_brightness_of_pixels() -> None:
    images = torch.rand(16, 3, 8, 8)
    masks = (images.mean(1) > 0.5).long()
    batches = [(images[:8], masks[:8]), (images[8:], masks[8:])]
    data = Data.of(batches, batches, num_classes=2)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 2, 1))
    before = evaluate(model, data.val, task=Segmentation()).value
    result = fit(model, data, Recipe(epochs=20, lr=0.1), task=Segmentation(), progress=False)
    assert result.value is not None
    assert result.value > max(before, 0.75)
    assert result.history[-1]["loss"] < result.history[0]["loss"]
    assert {"miou", "val_pixel_accuracy", "val_loss"} <= result.history[-1].keys()
