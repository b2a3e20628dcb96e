"""Every format on eleven networks at half of their MACs, and what only whole exports can show."""

import json

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

import sentei
from benchmarks.export import HEADS, MODELS, half
from sentei.data import Data
from sentei.deploy.alone import Alone
from sentei.deploy.detectors import Inside
from sentei.deploy.formats import FORMATS
from sentei.deploy.plain import Plain
from sentei.deploy.shipped import Shipped
from sentei.errors import ExportError
from sentei.tasks import task_of

pytestmark = pytest.mark.slow


def available(format: str) -> str:
    try:
        FORMATS[format].require()
    except ExportError as error:
        pytest.skip(str(error))
    return format


@pytest.fixture(scope="module", params=MODELS)
def network(request):
    return request.param, *half(request.param)


@pytest.mark.parametrize("format", FORMATS)
def test_half_a_network_in_every_format(network, format, tmp_path):
    name, small, x = network
    made = sentei.export(small, x, tmp_path, format=available(format))
    record = json.loads(made.sidecar.read_text())
    assert made.max_error <= 1e-5
    assert record["variation"] > 1e-3
    assert record["macs"] == sentei.trace(small, x).cost().macs
    used = sum(p.numel() for n, p in small.named_parameters() if not n.startswith("aux"))
    assert (record["parameters"], record["left_out"]["parameters"] > 0) == (used, name in HEADS)
    assert made.size < 1.25 * 4 * used + 200_000
    assert {p.name for p in tmp_path.iterdir()} == {*(p.name for p in made.files), made.sidecar.name}


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3))
        self.head = nn.Linear(12, 5)

    def forward(self, x, bias):
        features = self.features(x)
        return {"scores": self.head(features.mean((2, 3))) + bias, "features": features}


@pytest.mark.parametrize("format", FORMATS)
def test_free_sizes_two_inputs_and_named_outputs(format, tmp_path):
    torch.manual_seed(0)
    net, example = Small().eval(), (torch.zeros(1, 3, 32, 32), torch.zeros(1, 5))
    made = sentei.export(net, example, tmp_path, format=available(format), batch="dynamic", image="dynamic")
    record = made.record
    assert [i["shape"] for i in record["inputs"]] == [["batch", 3, "height", "width"], ["batch", 5]]
    assert [o["name"] for o in record["outputs"]] == ["scores", "features"]
    assert record["outputs"][1]["shape"] == ["batch", 12, None, None]
    assert ("largest" in record["inputs"][0]) == (format == "executorch")
    inputs = [torch.randn(5, 3, 40, 24), torch.randn(5, 5)]
    with Alone(made.path, FORMATS[format]) as run:
        found, inside = run(inputs), json.loads(run.record)
    with torch.no_grad():
        wanted = net(*inputs)
    for a, b in zip(found, wanted.values(), strict=True):
        assert float((a - b).abs().max() / b.abs().max()) <= 1e-5
    assert inside == {k: v for k, v in record.items() if k not in ("files", "seconds", "sha256")}


@pytest.mark.parametrize("format", ["onnx", "pt2"])
def test_half_precision(format, tmp_path):
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).half()
    made = sentei.export(net, torch.zeros(1, 3, 16, 16), tmp_path, format=available(format))
    assert made.record["inputs"][0]["dtype"] == "float16"
    assert made.max_error <= 5e-2


def test_a_detector_finds_the_same_boxes_with_a_file_inside(tmp_path):
    torch.manual_seed(0)
    kind = torchvision.models.detection.ssdlite320_mobilenet_v3_large
    detector = kind(weights=None, weights_backbone=None, num_classes=4).eval()
    x = torch.zeros(1, 3, 320, 320)
    pytest.importorskip("torchmetrics")
    targets = [{"boxes": torch.tensor([[4.0, 4.0, 80.0, 90.0]]), "labels": torch.tensor([1])} for _ in range(2)]
    batches = [([torch.rand(3, 200, 240), torch.rand(3, 90, 100)], targets)]
    data = Data.of(train=batches, val=batches, num_classes=3)
    made = sentei.export(detector, x, tmp_path, task="detection", data=data, format=available("onnx"))
    assert made.record["accuracy"]["images"] == 2
    assert made.figures == made.record["accuracy"]["network"]
    assert [o["name"] for o in made.record["outputs"]] == ["bbox_regression", "cls_logits"]
    assert made.record["normalisation"]["mean"] == [0.5, 0.5, 0.5]
    plain = Plain(detector, x, task_of("detection").part)
    images = [torch.rand(3, 200, 240), torch.rand(3, 320, 320), torch.rand(3, 90, 100)]
    with Alone(made.path, FORMATS["onnx"]) as run, torch.no_grad():
        found = Inside(detector, Shipped(plain, run, [x], 1, torch.device("cpu")))(images)
        wanted = detector(images)
    assert sum(len(b["boxes"]) for b in wanted) > 0
    for a, b in zip(found, wanted, strict=True):
        assert np.abs(a["scores"].numpy() - b["scores"].numpy()).max() <= 1e-4
        assert np.abs(a["boxes"].numpy() - b["boxes"].numpy()).max() <= 0.1
