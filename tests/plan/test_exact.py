"""Widths that are said, by the names of groups, layers and parameters."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import nn

import sentei
from sentei.errors import PlanError
from sentei.models import build_model
from tests.amount import examples
from tests.random_networks import Block, build, conv, networks
from tests.surgery.test_cut import Net, X


@pytest.fixture(scope="module")
def resnet():
    return sentei.trace(build_model("resnet20"), torch.zeros(1, 3, 32, 32))


@pytest.fixture(scope="module")
def net():
    """Groups stem and narrow have 4 units of 2 channels each, which a grouped convolution ties."""
    return sentei.trace(Net().double(), X)


def kept(graph, wanted, **options):
    plan = sentei.widths(graph, wanted, **options)
    return {g.name: len(plan.keep[g.name]) for g in graph.groups if not g.frozen and len(plan.keep[g.name]) < g.width}


def test_counts_and_shares_of_groups(resnet):
    wanted = {"layer1.0.conv1": 7, "layer2.0.conv1": 0.5, "layer3.0.conv1": 1, "layer3.1.conv1": 1.0}
    assert kept(resnet, wanted) == {"layer1.0.conv1": 7, "layer2.0.conv1": 16, "layer3.0.conv1": 1}
    plan = sentei.widths(resnet, {"layer1.0.conv1": np.int64(7)})
    assert plan.keep["layer1.0.conv1"].tolist() == list(range(7))
    assert plan.structure == resnet.structure
    assert "odd widths" in plan.note
    assert kept(resnet, {}) == {}
    assert kept(resnet, {"layer1.0.conv1": 1e-9, "layer1.1.conv1": np.float32(0.25)}) == {
        "layer1.0.conv1": 1, "layer1.1.conv1": 4,
    }  # fmt: skip


def test_shares_are_rounded_to_the_nearest_count_by_their_decimal_text():
    graph = sentei.trace(nn.Sequential(conv(3, 10), conv(10, 2)), torch.zeros(1, 3, 4, 4))
    for share, count in ((0.35, 4), (0.34, 3), (0.7, 7), (0.04, 1), (0.99, None)):
        assert kept(graph, {"0": share}).get("0") == count


@pytest.mark.parametrize("key", ["layer1.2.conv2", "layer1.2.bn2", "layer1.2.bn2.weight", "layer1.2.conv2.weight"])
def test_any_layer_of_a_group_speaks_for_it(resnet, key):
    """Residual sums tie the outputs of several layers."""
    assert kept(resnet, {key: 8}) == {"conv1": 8}
    assert kept(resnet, {key: 0.5, "conv1": 8}) == {"conv1": 8}


def test_scores_say_which_units_stay(resnet):
    scores = {"layer1.0.conv1": np.r_[np.zeros(13), 3.0, 1.0, 2.0]}
    plan = sentei.widths(resnet, {"layer1.0.conv1": 2, "layer1.1.conv1": 2}, scores)
    assert plan.keep["layer1.0.conv1"].tolist() == [13, 15]
    assert plan.keep["layer1.1.conv1"].tolist() == [0, 1]
    with pytest.raises(PlanError, match=r"needs scores of shape \(16,\), got \(2,\)"):
        sentei.widths(resnet, {}, {"layer1.0.conv1": np.zeros(2)})


def test_layers_count_channels_and_groups_units(net):
    assert kept(net, {"grouped": 4}) == kept(net, {"stem": 2}) == kept(net, {"stem.weight": 4}) == {"stem": 2}
    assert kept(net, {"excite": 2, "deep": 5}) == {"stem": 1, "wide": 5}
    small = sentei.cut(Net(), net, sentei.widths(net, {"grouped": 4, "narrow.weight": 6}))
    assert (small.grouped.out_channels, small.narrow.out_channels, small.grouped.groups) == (4, 6, 2)
    with pytest.raises(PlanError, match=r"width 3 of 'grouped': each unit of group 'stem' takes 2 .*take 2 or 4"):
        sentei.widths(net, {"grouped": 3})
    with pytest.raises(PlanError, match=r"'grouped' has 8 channels in group 'stem' and cannot keep 9"):
        sentei.widths(net, {"grouped": 9})


@pytest.mark.parametrize(
    ("wanted", "match"),
    [
        ({"layer1.0.conv1": 0}, "group 'layer1.0.conv1' has 16 units and cannot keep 0"),
        ({"layer1.0.conv1": 17}, "has 16 units and cannot keep 17"),
        ({"layer1.0.conv1": True}, "is True: expected a count"),
        ({"layer1.0.conv1": "8"}, "is '8': expected a count"),
        ({"layer1.0.conv1": 0.0}, "is 0.0: a share is above 0 and at most 1.0"),
        ({"layer1.0.conv1": 8.0}, "is 8.0: a share"),
        ({"layer1.0.conv1": float("nan")}, "is nan: a share"),
        ({"linear": 5}, "group 'linear' has 10 units and cannot be cut: reaches the network output"),
        ({"linear.bias": 0.5}, "layer 'linear.bias' has 10 channels in group 'linear' and cannot be cut"),
        ({"layer1.0.convl": 5}, "no group, layer or parameter named 'layer1.0.convl'; did you mean layer1.0.conv"),
        ({"layer1.0": 5}, "'layer1.0' is no layer but holds several: name one of them, layer1.0.bn1, layer1.0.bn2, "),
        ({"conv1": 8, "layer1.1.conv2": 9}, "'conv1' and 'layer1.1.conv2' are of one group, 'conv1', and ask"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(resnet, wanted, match):
    with pytest.raises(PlanError, match=match.replace("(", r"\(")):
        sentei.widths(resnet, wanted)


def test_the_whole_of_a_frozen_group_may_be_said(resnet):
    assert kept(resnet, {"linear": 10, "layer1.0.conv1": 8}) == {"layer1.0.conv1": 8}
    assert kept(resnet, {"linear": 1.0}) == {}


def test_outputs_in_several_groups_are_listed():
    model = Block(
        lambda m, x: m.head(m.norm(torch.cat([m.a(x), m.b(x)], 1))),
        a=conv(3, 4), b=conv(3, 6), norm=nn.BatchNorm2d(10), head=conv(10, 2),
    )  # fmt: skip
    graph = sentei.trace(model, torch.zeros(1, 3, 4, 4))
    with pytest.raises(PlanError, match=r"'norm' lie in several groups, 'a' \(4\), 'b' \(6\): name the group"):
        sentei.widths(graph, {"norm": 5})
    assert kept(graph, {"a": 2, "b": 0.5}) == {"a": 2, "b": 3}


class Transposed(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.up, self.mix, self.head = nn.Embedding(9, 8), nn.ConvTranspose1d(8, 12, 3), conv(1, 1), None
        self.cell, self.head = nn.LSTM(12, 6), nn.Linear(6, 2)
        self.loose = nn.Parameter(torch.ones(()))

    def forward(self, x):
        y = self.up(self.words(x).transpose(1, 2)).transpose(1, 2)
        return self.head(self.cell(y)[0]) * self.loose


def test_outputs_of_other_layers():
    graph = sentei.trace(Transposed(), torch.zeros(2, 5, dtype=torch.long))
    groups = [g.name for g in graph.groups if not g.frozen]
    assert len(groups) == 3
    found = [kept(graph, {key: 3}) for key in ("words.weight", "up.weight", "cell.weight_hh_l0")]
    assert [width for one in found for width in one.values()] == [3, 3, 3]
    assert len({name for one in found for name in one}) == 3
    with pytest.raises(PlanError, match="the outputs of 'loose' belong to no group"):
        sentei.widths(graph, {"loose": 3})


@pytest.fixture(scope="module")
def attention():
    """The width of the stream and the heads keep the same share: 16 units and 4."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.attend, self.head = nn.Linear(8, 16), nn.MultiheadAttention(16, 4), nn.Linear(16, 2)

        def forward(self, x):
            x = self.stem(x).relu()
            return self.head(x + self.attend(x, x, x)[0])

    return sentei.trace(Net(), torch.zeros(3, 2, 8))


def test_a_layer_whose_outputs_are_in_no_group_is_not_taken_for_its_inputs():
    network = build([0, 0, 3, 80, 0, 0, 5, 0, 0, 47, 0, 0, 76, 0, 0, 0, 0])
    graph = sentei.trace(network.model, network.inputs)
    with pytest.raises(PlanError, match="the outputs of 'head.2' belong to no group"):
        sentei.widths(graph, {"head.2": 2})


def test_groups_that_keep_the_same_share_follow(attention):
    assert [[attention.groups[i].name for i in b] for b in attention.bundles] == [["stem", "attend"]]
    for wanted in ({"stem": 8}, {"attend": 2}, {"stem": 0.5}, {"attend": 0.5, "stem": 8}, {"stem": 0.4}):
        assert kept(attention, wanted) == {"stem": 8, "attend": 2}
    scores = {"attend": np.array([0.0, 1.0, 0.0, 2.0])}
    assert sentei.widths(attention, {"stem": 8}, scores).keep["attend"].tolist() == [1, 3]
    with pytest.raises(PlanError, match=r"width 9 of 'stem': .* \(16\) keeps .* 'attend' \(4\); take 8 or 12"):
        sentei.widths(attention, {"stem": 9})
    with pytest.raises(PlanError, match="are of groups that keep one share, .* and ask for different widths"):
        sentei.widths(attention, {"stem": 8, "attend": 3})


@settings(max_examples=examples(6), suppress_health_check=list(HealthCheck), phases=[Phase.generate])
@given(networks(), st.randoms(use_true_random=False))
def test_what_is_said_is_what_is_cut(network, random):
    graph = sentei.trace(network.model, network.inputs)
    free = {i for i, g in enumerate(graph.groups) if not g.frozen} - {i for b in graph.bundles for i in b}
    wanted = {graph.groups[i].name: random.randint(1, graph.groups[i].width) for i in free}
    plan = sentei.widths(graph, wanted)
    assert {name: len(plan.keep[name]) for name in wanted} == wanted
    small = sentei.cut(network.model, graph, plan)
    sentei.retrace(small, graph, plan)
    layers = {name: m for name, m in network.model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
    for name in layers.keys() - {g.name for g in graph.groups}:
        try:
            plan = sentei.widths(graph, {name: 0.5})
        except PlanError:  # these outputs are the network's, or lie in several groups
            continue
        rows = len(sentei.cut(network.model, graph, plan).get_submodule(name).weight)
        assert sentei.widths(graph, {name: rows}) == plan
