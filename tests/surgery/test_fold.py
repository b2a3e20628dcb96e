"""Folding constant channels: the small network computes what the big one computes, on other images too."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import sentei
from sentei.errors import ConfigError, SurgeryError
from sentei.graph.outputs import output_tensors
from sentei.models import build_model
from sentei.surgery import fold
from tests.amount import examples
from tests.random_networks import Block, conv, networks, randomise


def silence(model, graph, seed=0, share=0.5):
    """Random betas, and every gamma of a random half of the units of each group exactly zero."""
    generator, rng = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    norms = {name: m for name, m in model.named_modules() if isinstance(m, _BatchNorm) and m.affine}
    with torch.no_grad():
        for norm in norms.values():
            norm.bias.normal_(0, 0.5, generator=generator)
        for group in graph.groups:
            off = rng.permutation(group.width)[: int(group.width * share)]
            for member in group.members:
                module, _, leaf = member.param.rpartition(".")
                if not group.frozen and module in norms and leaf == "weight":
                    norms[module].weight[torch.from_numpy(member.indices[off].ravel())] = 0
    return model


def moved(model, small, x):
    with torch.no_grad():
        pairs = zip(output_tensors(small(*x)), output_tensors(model(*x)), strict=True)
        return max(float((a - b).abs().max() / b.abs().max().clamp_min(1e-30)) for a, b in pairs)


def folded_error(name, size, dtype, batch=3):
    model = randomise(build_model(name)).to(dtype).eval()
    x = torch.randn(batch, 3, size, size, dtype=dtype)
    graph = sentei.trace(model, x[:1])
    silence(model, graph)
    found = fold(model, graph, x)
    small = sentei.cut(found.model, graph, found.plan)
    sentei.check(found.model, small, graph, found.plan, x)
    return moved(model, small, (torch.randn(2, 3, size, size, dtype=dtype),)), found.report, graph, found.plan


FAST = [("resnet20", 32), ("torchvision:mobilenet_v3_small", 64)]
SLOW = [("vgg16", 32), ("mobilenetv2", 32), ("googlenet", 32), ("densenet40", 32), ("torchvision:efficientnet_b0", 64),
        ("torchvision:resnet18", 64), ("torchvision:shufflenet_v2_x1_0", 64),
        ("torchvision:densenet121", 64)]  # fmt: skip
ROUNDING = [(torch.float32, 1e-5), (torch.float64, 1e-10)]
QUICK = [(FAST[0], ROUNDING[0]), *((network, ROUNDING[1]) for network in FAST)]
CASES = [
    pytest.param(*network, *rounding, marks=[] if (network, rounding) in QUICK else [pytest.mark.slow])
    for network in FAST + SLOW
    for rounding in ROUNDING
]


@pytest.mark.parametrize(("name", "size", "dtype", "limit"), CASES)
def test_the_small_network_equals_the_big_one(name, size, dtype, limit):
    error, report, graph, plan = folded_error(name, size, dtype)
    assert error < limit
    assert report.error < limit
    assert report.folded > 20
    assert graph.cost(plan).macs < 0.9 * graph.cost().macs


def test_biases_alone_are_wrong_at_borders_and_the_report_says_by_how_much():
    _, report, _, _ = folded_error("resnet20", 32, torch.float64)
    assert report.border_error > 1e-3
    assert report.carried > 0
    model = build_model("resnet20").double().eval()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    graph = sentei.trace(model, x[:1])
    silence(randomise(model), graph)
    exact, biased = fold(model, graph, x), fold(model, graph, x, mode="bias")
    assert biased.report.carried == 0
    assert biased.report.error == biased.report.border_error == exact.report.border_error
    assert moved(model, sentei.cut(biased.model, graph, biased.plan), (x,)) == pytest.approx(biased.report.error)


def chain(padding, bias=False, norm=True):
    layers = [
        nn.Conv2d(3, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 5, 3, padding=padding, bias=bias),
    ]
    layers += [nn.BatchNorm2d(5)] if norm else []
    layers += [nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4)]
    return randomise(nn.Sequential(*layers)).double().eval()


@pytest.mark.parametrize("bias", [False, True])
def test_the_papers_formula(bias):
    """Without padding the sum of relu(beta) times the kernel's sum goes into the bias, or out of the running mean."""
    model, x = chain(padding=0, bias=bias), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        model[1].weight[[1, 4, 5]] = 0
        model[1].bias.copy_(torch.tensor([0.3, 0.7, -0.2, 0.1, -0.4, 0.9]))
    graph = sentei.trace(model, x)
    found = fold(model, graph, x)
    adds = 0.7 * model[3].weight[:, 1].sum((1, 2)) + 0.9 * model[3].weight[:, 5].sum((1, 2))
    expected = (model[3].bias + adds) if bias else (model[4].running_mean - adds)
    torch.testing.assert_close(found.model[3].bias if bias else found.model[4].running_mean, expected)
    assert found.plan.keep["0"].tolist() == [0, 2, 3]
    report = found.report
    assert (report.zero, report.folded, report.carried, report.unread) == (1, 2, 0, 0)
    assert report.border_error is None


def test_padding_keeps_one_carrier_that_scales_all_others():
    model, x = chain(padding=1), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        model[1].weight[[1, 4, 5]] = 0
        model[1].bias.copy_(torch.tensor([0.3, 0.7, -0.2, 0.1, -0.4, 0.9]))
    graph = sentei.trace(model, x)
    found = fold(model, graph, x)
    assert found.plan.keep["0"].tolist() == [0, 2, 3, 5]
    weight = model[3].weight
    torch.testing.assert_close(found.model[3].weight[:, 5], weight[:, 5] + 0.7 / 0.9 * weight[:, 1])
    assert (found.report.zero, found.report.folded, found.report.carried) == (1, 1, 1)
    assert found.report.border_error > 1e-3


def test_without_bias_or_norm_a_carrier_stays_even_unpadded():
    model, x = chain(padding=0, norm=False), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        model[1].weight[[1, 2]] = 0
        model[1].bias.fill_(0.5)
    graph = sentei.trace(model, x)
    found = fold(model, graph, x, mode="bias")
    assert found.report.carried == 1
    assert moved(model, sentei.cut(found.model, graph, found.plan), (x + 1,)) < 1e-12


def test_constants_propagate_and_what_nobody_reads_goes():
    """The second layer is constant, so nothing reads the first, and the third one's inputs are constant too."""
    layers = [conv(3, 8, 1), nn.BatchNorm2d(8), nn.SiLU(), conv(8, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 6, 1)]
    side = nn.Sequential(*layers, nn.BatchNorm2d(6), nn.ReLU())
    body = Block(lambda m, x: torch.cat([m.side(x), m.main(x)], 1), side=side, main=conv(3, 4))
    model = randomise(nn.Sequential(body, conv(10, 5), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3)))
    model = model.double().eval()
    with torch.no_grad():
        side[4].weight.zero_()
        side[4].bias.fill_(0.5)
        side[7].bias.fill_(1.0)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    graph = sentei.trace(model, x)
    found = fold(model, graph, x)
    assert moved(model, sentei.cut(found.model, graph, found.plan), (x + 1,)) < 1e-12
    widths = dict(zip([g.name for g in graph.groups], found.plan.widths(graph).tolist(), strict=True))
    assert [widths[name] for name in ("0.side.0", "0.side.3", "0.side.6", "0.main")] == [1, 1, 1, 4]
    assert found.report.unread == 7


def test_a_dead_relu_is_no_constant():
    """On these images some channels never fire; on others they do, so they have to stay."""
    model, x = chain(padding=1), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        model[1].bias[:3] = -20.0
    graph = sentei.trace(model, x)
    found = fold(model, graph, x)
    assert not model[:3](x)[:, :3].any()
    assert found.plan.keep["0"].tolist() == list(range(6))
    assert found.report.zero == 0


def test_a_gate_makes_a_constant_vary_unless_it_is_zero():
    gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), conv(6, 6, 1), nn.Sigmoid())
    squeeze = Block(lambda m, x: x * m.gate(x), gate=gate)
    model = nn.Sequential(
        conv(3, 6), nn.BatchNorm2d(6), nn.ReLU(), squeeze, conv(6, 4), nn.Flatten(), nn.Linear(256, 3)
    )
    randomise(model).double().eval()
    with torch.no_grad():
        model[1].weight[[0, 1]] = 0
        model[1].bias[0], model[1].bias[1] = 0.5, -0.5
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    graph = sentei.trace(model, x)
    found = fold(model, graph, x)
    assert found.plan.keep["0"].tolist() == [0, 2, 3, 4, 5]
    assert moved(model, sentei.cut(found.model, graph, found.plan), (x + 1,)) < 1e-12


@given(networks(), st.integers(0, 3))
@settings(max_examples=examples(10), phases=[Phase.generate])  # a failure prints its recipe, which is enough
def test_random_networks(drawn, seed):
    """BatchNorm scales and whole filters set to zero at random, in networks of every kind: the function stays."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in drawn.model.modules():
            weight = getattr(module, "weight", None)
            if isinstance(module, (_BatchNorm, nn.Conv2d, nn.Linear)) and isinstance(weight, nn.Parameter):
                weight[torch.rand(len(weight), generator=generator) < 0.4] = 0
    graph = sentei.trace(drawn.model, drawn.inputs)
    try:
        found = fold(drawn.model, graph, drawn.inputs)
    except SurgeryError:
        assume(False)  # weights that are computed from others do not take constants in, and fold says so
    small = sentei.cut(found.model, graph, found.plan)
    report = sentei.check(found.model, small, graph, found.plan, drawn.inputs)
    fresh = tuple(torch.randn(x.shape, dtype=x.dtype, generator=generator) for x in drawn.inputs)
    scale = max(float(t.detach().abs().max()) for t in output_tensors(drawn.model(*fresh)))
    if scale > 1e-6 and not report.approximate:
        assert moved(drawn.model, small, fresh) < 1e-8


def test_nothing_constant_nothing_done_and_the_model_is_untouched():
    model = randomise(build_model("digitsnet")).eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    graph = sentei.trace(model, torch.zeros(1, 1, 8, 8))
    found = fold(model, graph, torch.zeros(2, 1, 8, 8))  # constant images make nothing constant
    assert graph.cost(found.plan) == graph.cost()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(torch.equal(v, before[k]) for k, v in found.model.state_dict().items())
    with pytest.raises(ConfigError, match="mode is 'half'"):
        fold(model, graph, torch.zeros(2, 1, 8, 8), mode="half")


def test_shared_weights_and_grouped_convolutions():
    shared = conv(6, 6)
    layers = [conv(3, 6), nn.BatchNorm2d(6), nn.ReLU(), shared, nn.BatchNorm2d(6), nn.ReLU(), shared]
    grouped = [nn.BatchNorm2d(6), nn.Hardswish(), nn.Conv2d(6, 12, 3, padding=1, groups=2, bias=False)]
    model = randomise(nn.Sequential(*layers, *grouped, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 3)))
    model = model.double().eval()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    graph = sentei.trace(model, x)
    silence(model, graph)
    found = fold(model, graph, x)
    assert moved(model, sentei.cut(found.model, graph, found.plan), (F.pad(x, (1, 0)) + 1,)) < 1e-12
