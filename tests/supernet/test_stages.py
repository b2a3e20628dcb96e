"""Stages: where networks are taken apart, that a stage depends on itself alone, and what is refused."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import sentei
from sentei.errors import ConfigError
from sentei.graph.outputs import output_tensors
from sentei.models import build_model
from sentei.supernet.stages import find_stages, visiting
from tests.amount import examples
from tests.methods.networks import Three
from tests.proof import random_plan
from tests.random_networks import networks

ZOO = {
    "resnet56": (32, ("layer1", "layer2", "output"), (9, 9, 9)),
    "vgg16": (32, ("features.6", "features.13", "features.23", "features.33", "output"), (1, 1, 2, 2, 3)),
    "mobilenetv2": (32, ("blocks.2", "blocks.5", "blocks.12", "output"), (4, 3, 8, 7)),
    "densenet40": (32, ("trans1", "trans2", "output"), (13, 12, 12)),
    "googlenet": (32, ("b3", "e4", "output"), (11, 31, 14)),
    "torchvision:resnet50": (64, ("layer1", "layer2", "layer3", "output"), (7, 8, 12, 7)),
    "torchvision:mobilenet_v2": (
        64, ("features.1", "features.3", "features.6", "features.13", "output"), (1, 2, 3, 8, 7),
    ),
}  # fmt: skip


BLOCKS = {
    "resnet20": (32, 9, ("layer1.0", "layer1.1", "layer1"), {1}),
    "vgg16": (32, 5, ("features.6", "features.13", "features.23", "features.33"), {1, 2, 3}),
    "densenet40": (32, 3, ("trans1", "trans2"), {12, 13}),
    "torchvision:resnet50": (64, 16, ("layer1.0", "layer1.1", "layer1"), {2, 3}),
    "torchvision:mobilenet_v2": (64, 17, ("features.2", "features.3", "features.4"), {1, 3}),
    "torchvision:efficientnet_b0": (64, 17, ("features.1", "features.2.0", "features.2", "features.3.0"), {1, 2}),
}


def traced(name, size):
    model = build_model(name).eval()
    return model, sentei.trace(model, torch.zeros(1, 3, size, size))


@pytest.mark.parametrize("name", ZOO)
def test_networks_come_apart_where_the_size_changes(name):
    size, names, genes = ZOO[name]
    model, graph = traced(name, size)
    stages = find_stages(model, graph)
    assert stages.names == names
    assert tuple(map(len, stages.inside)) == genes
    seen = np.concatenate([*stages.inside, *stages.between])
    assert len(set(seen.tolist())) == len(seen)
    plan = random_plan(graph, 0)
    for cost in ("macs", "params", "activation_bytes"):
        assert stages.costs(graph, cost, graph.widths(plan)).sum() == getattr(graph.cost(plan), cost)


@pytest.mark.parametrize("name", BLOCKS)
def test_networks_come_apart_after_each_block(name):
    size, count, first, genes = BLOCKS[name]
    model, graph = traced(name, size)
    stages = find_stages(model, graph, split="block")
    assert (len(stages), stages.names[: len(first)]) == (count, first)
    assert {len(groups) for groups in stages.inside} == genes
    plan = random_plan(graph, 0)
    assert stages.costs(graph, "macs", graph.widths(plan)).sum() == graph.cost(plan).macs


@pytest.mark.parametrize("name", ["resnet56", "torchvision:mobilenet_v2"])
def test_costs_of_a_stage_follow_from_its_own_widths(name):
    model, graph = traced(name, ZOO[name][0])
    stages = find_stages(model, graph)
    full = graph.widths()
    for i, groups in enumerate(stages.inside):
        widths = full.copy()
        widths[groups] = np.maximum(full[groups] // 3, 1)
        for cost in ("macs", "params", "activation_bytes"):
            changed = stages.costs(graph, cost, widths) != stages.costs(graph, cost, full)
            assert changed.tolist() == [j == i for j in range(len(stages))], (cost, i)


@settings(max_examples=examples(10))
@given(networks(), st.sampled_from(["resolution", "block"]))
def test_random_networks_run_on_from_every_boundary(network, split):
    """The output follows from a boundary's features, whatever the image was; costs add up; features are untouched."""
    model = network.model
    graph = sentei.trace(model, network.inputs)
    stages = find_stages(model, graph, split=split)
    assert len(stages) == 1 or split == "resolution" or all(map(len, stages.inside))
    features = {}
    with torch.no_grad():
        plain = output_tensors(model(*network.inputs))
        with visiting(model, stages.boundaries, lambda i, out: features.update({i: out.clone()})):
            assert all(map(torch.equal, output_tensors(model(*network.inputs)), plain))
        other = tuple(torch.randn_like(x) for x in network.inputs)
        for i, boundary in enumerate(stages.boundaries):
            assert tuple(features[i].shape[1:]) == boundary.shape
            with visiting(model, [boundary], lambda _, __, i=i: features[i].clone()):
                assert all(map(torch.equal, output_tensors(model(*other)), plain))
    plan = random_plan(graph, 1)
    parts = stages.costs(graph, "macs", graph.widths(plan))
    assert parts.sum() == pytest.approx(graph.cost(plan).macs)


@pytest.mark.parametrize("split", ["blocks", None, ""])
def test_a_split_that_does_not_exist_is_refused(split):
    model, graph = traced("resnet20", 32)
    with pytest.raises(ConfigError, match=f"split is {split!r}; expected 'resolution' or 'block'"):
        find_stages(model, graph, split=split)
    with pytest.raises(ConfigError, match="split is 'block' beside stages layer1"):
        find_stages(model, graph, ("layer1",), "block")


def test_named_stages_and_the_head_joins_the_last():
    model, graph = traced("resnet20", 32)
    assert find_stages(model, graph, ("layer1", "layer2", "layer3")).names == ("layer1", "layer2", "output")
    finer = find_stages(model, graph, ("layer1.1", "layer2"))
    assert finer.names == ("layer1.1", "layer2", "output")
    assert tuple(map(len, finer.inside)) == (2, 4, 3)


def test_a_network_of_one_size_is_one_stage():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1), nn.Flatten())
    stages = find_stages(model, sentei.trace(model, torch.zeros(1, 3, 6, 6)))
    assert stages.names == ("output",)
    assert stages.feature_bytes() == 0


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (("layr1",), "no module 'layr1' .* did you mean layer1"),
        (("layer2", "layer1"), "stages layer2 and layer1 do not chain"),
        (("layer1", "layer1"), "stages layer1 and layer1 do not chain"),
        (("layer1.0.conv2",), "layer1.0.conv2: .*several inputs, because the output of module layer1.0"),
        (("layer1.1.shortcut",), "no stage can end at module layer1.1.shortcut"),
    ],
)
def test_names_that_are_no_stage_are_refused(names, text):
    model, graph = traced("resnet20", 32)
    with pytest.raises(ConfigError, match=text):
        find_stages(model, graph, names)


def test_modules_that_run_twice_overwrite_or_return_several_are_refused():
    model, graph = traced("googlenet", 32)
    with pytest.raises(ConfigError, match="module pool is called 2 times"):
        find_stages(model, graph, ("pool",))
    with pytest.raises(ConfigError, match="module stem.1: what follows overwrites its output in place"):
        find_stages(model, graph, ("stem.1",))
    model = Pair()
    graph = sentei.trace(model, torch.zeros(1, 3, 8, 8))
    with pytest.raises(ConfigError, match="module split does not return one tensor"):
        find_stages(model, graph, ("split",))
    with pytest.raises(ConfigError, match="module extra is called never"):
        find_stages(model, graph, ("extra",))


def test_a_boundary_that_gradients_cannot_tell_is_found_by_running_it():
    """A second way around the boundary that autograd does not see."""

    class Hidden(Three):
        def forward(self, x):
            y = self.a(x)
            return self.linear(self.c(self.b(y) * (1 + x.detach().mean())).mean(dim=(2, 3)))

    model = Hidden(in_channels=3).eval()
    graph = sentei.trace(model, torch.zeros(1, 3, 8, 8))
    with pytest.raises(ConfigError, match="module a: what follows also reads something else"):
        find_stages(model, graph, ("a",))


class Split(nn.Module):
    def forward(self, x):
        return x[:, :4], x[:, 4:]


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.split, self.extra = nn.Conv2d(3, 8, 3), Split(), nn.Conv2d(4, 4, 1)

    def forward(self, x):
        a, b = self.split(self.conv(x))
        return (a * b).mean((2, 3))
