"""The papers' networks have the published sizes, to the unit."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from sentei.models import ZOO, build_model, input_shape_of

# Parameters (conv, BatchNorm scale and shift, linear) and multiply-accumulates (conv and linear) at 32x32.
PUBLISHED = {
    "resnet56": (853_018, 125_485_696),
    "resnet110": (1_727_962, 252_887_680),
    "vgg16": (14_728_266, 313_201_664),
    "googlenet": (6_166_250, 1_521_756_160),
}
# Computed from the layer tables: 3x3 convolutions, two vectors a BatchNorm, one linear layer.
COMPUTED = {
    "resnet20": (269_722, 40_551_040),
    "resnet32": (464_154, 68_862_592),
    "resnet44": (658_586, 97_174_144),
    "densenet40": (1_059_298, 282_917_328),
}


def count(model: nn.Module, shape: tuple[int, ...]) -> tuple[int, int]:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.zeros(1, *shape))
    return sum(p.numel() for p in model.parameters()), counter.get_total_flops() // 2


@pytest.mark.parametrize(("name", "expected"), [*PUBLISHED.items(), *COMPUTED.items()])
def test_parameters_and_macs(name: str, expected: tuple[int, int]) -> None:
    assert count(build_model(name), (3, 32, 32)) == expected


def test_convnet_has_the_papers_count_with_its_statistics() -> None:
    model = build_model("convnet")
    statistics = [b for n, b in model.named_buffers() if not n.endswith("num_batches_tracked")]
    assert sum(t.numel() for t in [*model.parameters(), *statistics]) == 1_986_760
    assert count(model, (3, 32, 32))[1] == 147_754_752


def test_mobilenetv2_is_torchvisions_with_ten_classes() -> None:
    reference = build_model("torchvision:mobilenet_v2", num_classes=10)
    ours = build_model("mobilenetv2")
    shapes = [sorted(tuple(p.shape) for p in m.parameters()) for m in (ours, reference)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("name", ZOO)
def test_classes_and_channels_are_free_and_gradients_reach_everything(name: str) -> None:
    model = build_model(name, num_classes=7, in_channels=2)
    size = input_shape_of(name)[1:]
    scores = model(torch.randn(2, 2, *size))
    assert scores.shape == (2, 7)
    scores.square().sum().backward()
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in model.parameters())


def test_shortcut_pads_zeros_on_both_sides() -> None:
    shortcut = build_model("resnet20").get_submodule("layer2.0.shortcut")
    x = torch.randn(1, 16, 8, 8)
    y = shortcut(x)
    assert y.shape == (1, 32, 4, 4)
    assert torch.equal(y[:, 8:24], x[:, :, ::2, ::2])
    assert not bool(y[:, :8].any() or y[:, 24:].any())


def test_residual_networks_keep_the_known_names() -> None:
    names = set(build_model("resnet56").state_dict())
    for name in (
        "conv1.weight",
        "bn1.running_mean",
        "layer1.0.conv1.weight",
        "layer3.8.bn2.bias",
        "linear.bias",
    ):
        assert name in names
    assert not any("shortcut" in n for n in names)


def test_seeded_models_are_equal() -> None:
    models = []
    for _ in range(2):
        torch.manual_seed(3)
        models.append(build_model("resnet20").state_dict())
    assert all(torch.equal(models[0][n], models[1][n]) for n in models[0])
