"""What a pass holds and computes, against figures that were worked out by hand and by the graph."""

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models import VisionTransformer

import sentei
from sentei.models import build_model
from sentei.speed.survey import Layer, survey


def test_macs_parameters_widths_and_memory_by_hand():
    model = nn.Sequential(
        nn.Conv2d(1, 2, 1, bias=False), nn.ReLU(), nn.Conv2d(2, 4, 1, bias=False), nn.Flatten(),
        nn.Linear(64, 1, bias=False),
    )  # fmt: skip
    found = survey(model, torch.zeros(1, 1, 4, 4))
    assert found.layers == {"0": Layer(32, 1, 2), "2": Layer(128, 2, 4), "4": Layer(64, 64, 1)}
    assert (found.macs, found.params) == (224, 74)
    weights, image, two, four = 4 * 74, 4 * 16, 4 * 2 * 16, 4 * 4 * 16
    # at the second convolution, when the output of the first is gone
    assert found.memory_bytes == weights + image + two + four


def test_buffers_and_shared_weights_count_once_and_views_not_at_all():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = self.b = nn.Linear(4, 4, bias=False)
            self.register_buffer("offset", torch.zeros(4))

        def forward(self, x):
            return self.b(self.a(x).view(1, 4).t().t()) + self.offset

    found = survey(Net(), torch.zeros(1, 4))
    assert found.params == 16
    assert found.memory_bytes == 4 * (16 + 4) + 4 * (4 + 4 + 4)


def test_in_place_operations_need_nothing():
    a, b = (survey(nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace)), torch.zeros(8, 4)) for inplace in (False, True))
    assert a.memory_bytes - b.memory_bytes == 4 * 32


NETWORKS = {
    "depthwise": lambda: torchvision.models.mobilenet_v2(width_mult=0.25),
    "attention": lambda: VisionTransformer(32, 8, num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=32),
    "groups": lambda: torchvision.models.shufflenet_v2_x0_5(),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_macs_are_those_of_the_graph(name):
    model, x = NETWORKS[name](), torch.zeros(1, 3, 32, 32)
    found = survey(model, x)
    assert found.macs == sentei.trace(model, x).cost().macs
    assert sum(layer.macs for layer in found.layers.values()) <= found.macs


def test_the_model_is_left_as_it_is():
    model = build_model("digitsnet").train()
    model.conv2.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    survey(model, torch.randn(4, 1, 8, 8))
    assert model.training
    assert not model.conv2.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.backends.mha.get_fastpath_enabled()
