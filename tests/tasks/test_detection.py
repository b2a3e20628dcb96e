"""Detection: losses in every mode, figures where they are known, what a model has to return."""

import importlib.util
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign

from sentei.data import Data
from sentei.errors import ConfigError, TrainError
from sentei.tasks import Detection
from sentei.train import Recipe, evaluate, fit

Batch = tuple[list[Tensor], list[dict[str, Tensor]]]


class Backbone(nn.Sequential):
    out_channels = 8

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 8, 3, 4, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1))


def two_stages() -> nn.Module:
    anchors = AnchorGenerator(((8, 16),), ((1.0,),))
    pool = MultiScaleRoIAlign(["0"], 2, 1)
    few = {f"rpn_{kind}_nms_top_n_{mode}": 20 for kind in ("pre", "post") for mode in ("train", "test")}
    sizes = {"min_size": (32, 48), "max_size": 64, "box_detections_per_img": 10}
    return FasterRCNN(Backbone(), 3, rpn_anchor_generator=anchors, box_roi_pool=pool, **few, **sizes)


def one_stage() -> nn.Module:
    anchors = AnchorGenerator(((8, 16),), ((1.0,),))
    return RetinaNet(Backbone(), 3, anchor_generator=anchors, min_size=32, max_size=64)


def a_batch(count: int = 2, boxes: bool = True) -> Batch:
    images = [torch.rand(3, 24, 32) for _ in range(count)]
    found = torch.tensor([[2.0, 3.0, 12.0, 15.0], [10.0, 8.0, 30.0, 22.0]])
    target = {"boxes": found, "labels": torch.tensor([1, 2])}
    return images, [target if boxes else {"boxes": found[:0], "labels": target["labels"][:0]} for _ in range(count)]


class Answers(nn.Module):
    """A detector that returns what a function makes of the targets it was told beforehand."""

    def __init__(self, targets: list[dict[str, Tensor]], make: Callable[[dict[str, Tensor]], Any]) -> None:
        super().__init__()
        self.targets, self.make = targets, make

    def forward(self, images: list[Tensor]) -> Any:
        return [self.make(target) for target in self.targets[: len(images)]]


def perfect(target: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**target, "scores": torch.ones(len(target["labels"]))}


def nothing(target: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long(), "scores": torch.zeros(0)}


def test_perfect_and_empty_answers() -> None:
    batch = a_batch(3)
    assert Detection().measure(Answers(batch[1], perfect), [batch]) == {"map50": 1.0, "map": 1.0}
    assert Detection().measure(Answers(batch[1], nothing), [batch]) == {"map50": 0.0, "map": 0.0}


def test_a_shifted_box_counts_at_a_small_overlap_only() -> None:
    images, targets = a_batch(1)
    shifted = perfect(targets[0]) | {"boxes": targets[0]["boxes"] + torch.tensor([2.0, 0.0, 2.0, 0.0])}
    figures = Detection().measure(Answers(targets, lambda _: shifted), [(images, targets)])
    assert figures["map50"] == pytest.approx(1)  # overlaps of 2/3 and 9/11
    assert figures["map"] == pytest.approx((4 + 7) / 2 / 10, abs=1e-6)


def test_where_nothing_is_to_be_found_there_is_no_figure() -> None:
    batch = a_batch(2, boxes=False)
    assert math.isnan(Detection().measure(Answers(batch[1], nothing), [batch])["map50"])
    data = Data.of([batch], [batch])
    with pytest.raises(TrainError, match="expected a finite number"):
        evaluate(Answers(batch[1], nothing), data.val, task=Detection())


@pytest.mark.parametrize("make", [two_stages, one_stage])
def test_losses_in_evaluation_mode_leave_statistics_and_modes_alone(make: Callable[[], nn.Module]) -> None:
    model = make().eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    loss = Detection().step(model, a_batch())
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(module.training for module in model.modules())


def test_losses_in_training_mode_are_those_of_the_model() -> None:
    model, batch = one_stage().train(), a_batch()
    expected = model(*batch)
    torch.testing.assert_close(Detection().step(model, batch), expected["classification"] + expected["bbox_regression"])
    assert all(module.training for module in model.modules())


def test_images_without_boxes_can_be_trained_on() -> None:
    for model in (two_stages(), one_stage()):
        assert Detection().step(model, a_batch(boxes=False)).isfinite()


def test_a_detector_is_trained_and_measured() -> None:
    batch = a_batch()
    data = Data.of([batch, batch], [batch], num_classes=2)
    model, task = two_stages(), Detection()
    assert task.classes(data) == 3
    result = fit(model, data, Recipe(epochs=2, lr=0.01), task=task, progress=False)
    assert result.value is not None
    assert result.history[-1]["loss"] < result.history[0]["loss"]
    assert "val_map" in result.history[-1]


def test_the_example_has_the_size_that_the_model_computes_on() -> None:
    data, model = Data.of([a_batch()]), two_stages().train()
    for _ in range(4):
        assert Detection().example(model, data).shape == (1, 3, 64, 64)
    assert model.transform.training
    assert Detection().example(nn.Identity(), data).shape == (1, 3, 24, 32)
    given = torch.zeros(1, 3, 8, 8)
    assert Detection().example(model, Data.of([a_batch()], example=given)) is given


def test_inputs_and_counts() -> None:
    images, targets = a_batch(3)
    (passed,) = Detection().inputs((images, targets))
    assert all(a is b for a, b in zip(passed, images, strict=True))
    assert Detection().count((images, targets)) == 3


def test_what_is_no_detector_is_refused() -> None:
    images, targets = batch = a_batch()
    with pytest.raises(TrainError, match="returned a list for images and targets in training"):
        Detection().step(Untold(), batch)
    with pytest.raises(TrainError, match="expected a list with a dict of boxes, scores and labels"):
        Detection().measure(Answers(targets, lambda t: t), [batch])
    with pytest.raises(TrainError, match="returns its own losses"):
        Detection().loss(None, batch)
    with pytest.raises(ConfigError, match="imitate"):
        Detection().imitate(None, None, batch)
    with pytest.raises(ConfigError, match="label smoothing"):
        Detection().with_settings(0.1, 1.0)


class Untold(nn.Module):
    def forward(self, *args: Any) -> Any:
        return []


def test_missing_packages_are_named_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torchmetrics" else real(name))
    for act in (lambda: Detection().with_settings(0.0, 1.0), lambda: Detection().measure(nn.Identity(), [])):
        with pytest.raises(ConfigError, match=r'pip install "torchmetrics\[detection\]>=1.4"'):
            act()


def test_finding_nothing_is_doubted() -> None:
    assert "weights are not trained" in str(Detection().doubt({"map50": 0.001}, 9))
    assert Detection().doubt({"map50": 0.3}, 9) is None
