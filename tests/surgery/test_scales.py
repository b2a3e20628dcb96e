"""Rescaling gammas leaves the function alone, or is refused with the reason."""

import copy

import pytest
import torch
from torch import nn

import sentei
from sentei.methods.common.genes import searched_groups
from sentei.models import build_model
from sentei.surgery.scales import rescale, scales_of, unsilenced
from tests.random_networks import Block, conv, randomise


def traced(model, size=32):
    x = torch.randn(4, 3, size, size)
    return randomise(model).eval(), sentei.trace(model, x[:1]), x


CASES = [("resnet20", 9, 0), ("vgg16", 13, 0), ("mobilenetv2", 20, 18)]
SLOW = [("googlenet", 64, 0), ("densenet40", 39, 0)]


NETWORKS = [*CASES, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)]


@pytest.mark.parametrize(("name", "groups", "refused"), NETWORKS)
@pytest.mark.parametrize("alpha", [0.1, 0.01])
def test_the_function_stays(name, groups, refused, alpha):
    model, graph, x = traced(build_model(name))
    names = searched_groups(graph, "inner")
    assert len(names) == groups
    done = rescale(model, graph, names, alpha, x)
    assert len(done.refused) == refused
    scaled = copy.deepcopy(model)
    done.apply(scaled)
    with torch.no_grad():
        before, after = model(x), scaled(x)
    assert float((after - before).abs().max() / before.abs().max()) < 1e-6
    for group in (n for n in names if n not in done.refused):
        for scale in scales_of(model, graph.group(group)):
            for place in (scale.gamma, scale.beta):
                old, new = (m.get_parameter(place)[scale.indices] for m in (model, scaled))
                torch.testing.assert_close(new, old * alpha)
    done.undo(scaled)
    for old, new in zip(model.state_dict().values(), scaled.state_dict().values(), strict=True):
        torch.testing.assert_close(new, old, rtol=1e-6, atol=0)


@pytest.mark.parametrize("activation", [nn.ReLU6(), nn.SiLU(), nn.Hardswish(), nn.Sigmoid()])
def test_activations_that_bend_or_clip_are_refused(activation):
    layers = [conv(3, 6), nn.BatchNorm2d(6), activation, conv(6, 4), nn.Flatten(), nn.Linear(256, 3)]
    model, graph, x = traced(nn.Sequential(*layers), 8)
    done = rescale(model, graph, ["0"], 0.1, x)
    assert "what 3 reads does not scale with it" in done.refused["0"]
    assert not done.factors


def test_a_sum_with_something_unscaled_is_refused_and_a_sum_of_scaled_ones_is_not():
    def net(second):
        body = Block(lambda m, x: (m.a(x) + m.b(x)).relu(), a=nn.Sequential(conv(3, 6), nn.BatchNorm2d(6)), b=second)
        return nn.Sequential(body, conv(6, 4), nn.Flatten(), nn.Linear(256, 3))

    model, graph, x = traced(net(conv(3, 6)), 8)
    assert list(rescale(model, graph, ["0.a.0"], 0.1, x).refused) == ["0.a.0"]
    model, graph, x = traced(net(nn.Sequential(conv(3, 6), nn.BatchNorm2d(6))), 8)
    assert not rescale(model, graph, ["0.a.0"], 0.1, x).refused


def test_channels_that_zero_scales_do_not_silence_are_named():
    gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), conv(6, 6, 1), nn.Sigmoid())
    squeeze = Block(lambda m, x: x * m.gate(x), gate=gate)
    layers = [conv(3, 8), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 6), nn.BatchNorm2d(6), nn.SiLU(), squeeze, conv(6, 4)]
    model, graph, x = traced(nn.Sequential(*layers, nn.Flatten(), nn.Linear(256, 3)), 8)
    assert unsilenced(model, graph, ["0", "3"], x) == {"3": "7"}
