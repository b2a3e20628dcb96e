"""Detectors of torchvision: their backbones, necks and heads are traced, and the whole detector is cut."""

import copy

import pytest
import torch
from torch import nn
from torchvision.models import detection

import sentei
from sentei.errors import ConfigError
from sentei.graph.outputs import output_tensors
from sentei.tasks.detectors import detector_part
from tests.proof import measured_macs

SIZES = {"ssdlite320_mobilenet_v3_large": 320, "ssd300_vgg16": 300}
"""Of detectors that make all images one size."""
FAST = ["ssdlite320_mobilenet_v3_large"]
SLOW = [
    "fasterrcnn_mobilenet_v3_large_fpn",
    "fasterrcnn_mobilenet_v3_large_320_fpn", "fasterrcnn_resnet50_fpn", "fasterrcnn_resnet50_fpn_v2",
    "retinanet_resnet50_fpn", "retinanet_resnet50_fpn_v2", "fcos_resnet50_fpn", "ssd300_vgg16",
    "maskrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn_v2", "keypointrcnn_resnet50_fpn",
]  # fmt: skip
DETECTORS = [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]


def build(name: str) -> nn.Module:
    """A detector with random weights that makes small images of all, and takes all boxes for possible ones."""
    options = {} if name in SIZES else {"min_size": 96, "max_size": 96}
    model = getattr(detection, name)(weights=None, weights_backbone=None, **options)
    if hasattr(model, "rpn"):
        model.rpn.nms_thresh = 1.0
        model.rpn.score_thresh = 0.0
    return model


def size_of(name: str) -> int:
    return SIZES.get(name, 96)


def losses(model: nn.Module, size: int) -> dict[str, torch.Tensor]:
    target = {
        "boxes": torch.tensor([[10.0, 10, 70, 80]]),
        "labels": torch.tensor([1]),
        "masks": torch.ones(1, size, size, dtype=torch.uint8),
        "keypoints": torch.tensor([[[30.0, 40, 1]]]).repeat(1, 17, 1),
    }
    return copy.deepcopy(model).train()([torch.rand(3, size, size)] * 2, [target] * 2)


def same_detections(a: nn.Module, b: nn.Module, image: torch.Tensor) -> bool:
    with torch.no_grad():
        found = [m.eval()([image])[0] for m in (a, b)]
    return all(torch.equal(found[0][k], found[1][k]) for k in found[0])


@pytest.mark.parametrize("name", DETECTORS)
def test_a_whole_detector_is_cut_through_its_part(name, tmp_path):
    size, model = size_of(name), build(name).eval()
    graph = sentei.trace(model, torch.zeros(1, 3, size, size), forward=detector_part)
    assert graph.params.keys() <= graph.trace_record.read
    assert {g.why for g in graph.groups if g.frozen} == {"reaches the network output"}
    assert min(graph.prunable()) > 0.99
    plan = sentei.uniform(graph, sentei.Budget(macs=0.5))
    assert 0.48 < graph.cost(plan).macs / graph.cost().macs <= 0.5
    small = sentei.cut(model, graph, plan)
    sentei.check(model, small, graph, plan, torch.randn(2, 3, size, size))
    if "maskrcnn" not in name and "keypoint" not in name:  # these look at fewer boxes if they find fewer
        assert graph.cost(plan).macs == measured_macs(small.eval(), ([torch.rand(3, size, size)],))
    found = losses(small, size)
    assert len(found) >= 2
    assert all(bool(torch.isfinite(v)) for v in found.values())
    sentei.save(small, plan, tmp_path, forward=detector_part)
    back = sentei.load(build(name), tmp_path, forward=detector_part)
    assert same_detections(small, back, torch.rand(3, size, size + 20))


def test_images_of_any_size_are_made_a_batch_by_the_detector_itself():
    name = "fasterrcnn_mobilenet_v3_large_fpn"
    model = build(name).eval()
    image = torch.rand(3, 150, 150)
    batch = model.transform([image, image])[0].tensors
    found = [output_tensors(detector_part(model, x)) for x in ([image, image], batch)]
    assert len(found[0]) == 8
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    graphs = [sentei.trace(model, x, forward=detector_part) for x in (([image, image],), batch)]
    assert graphs[0].structure.difference(graphs[1].structure) is None
    assert graphs[0].cost() == graphs[1].cost()


def test_the_part_runs_in_train_mode_too():
    model = build("fasterrcnn_mobilenet_v3_large_fpn").train()
    sum(t.sum() for t in output_tensors(detector_part(model, torch.rand(2, 3, 64, 64)))).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_a_detector_on_one_feature_map():
    body = nn.Sequential(nn.Conv2d(3, 16, 3, 8, 1), nn.ReLU())
    body.out_channels = 16
    faster = detection.faster_rcnn
    model = detection.FasterRCNN(
        body,
        rpn_anchor_generator=faster.AnchorGenerator(((16, 32),), ((1.0,),)),
        box_roi_pool=faster.MultiScaleRoIAlign(["0"], 4, 0),
        box_head=faster.TwoMLPHead(16 * 16, 24),
        box_predictor=faster.FastRCNNPredictor(24, 3),
        min_size=64,
        max_size=64,
    ).eval()
    graph = sentei.trace(model, torch.zeros(1, 3, 64, 64), forward=detector_part)
    group = graph.group("backbone.0")
    fc = next(m for m in group.members if m.param == "roi_heads.box_head.fc6.weight")
    assert (group.width, fc.indices.shape) == (16, (16, 16))
    plan = sentei.uniform(graph, sentei.Budget(macs=0.5))
    small = sentei.cut(model, graph, plan)
    sentei.check(model, small, graph, plan, torch.randn(1, 3, 64, 64))
    small([torch.rand(3, 64, 64)])


def test_other_models_are_refused_with_the_ones_that_are_known():
    with pytest.raises(ConfigError, match=r"no part of a Sequential is known.*Mask R-CNN.*SSDlite.*trace\(model, inp"):
        detector_part(nn.Sequential(), torch.zeros(1, 3, 8, 8))
    with pytest.raises(ConfigError, match="no part of a Conv2d is known"):
        sentei.trace(nn.Conv2d(3, 8, 3), torch.zeros(1, 3, 8, 8), forward=detector_part)
