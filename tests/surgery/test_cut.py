"""Cut, slim and permute: what comes out, what stays, and where gradients go."""

import copy
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from sentei import Plan, cut, permute, slim, trace
from sentei.errors import PlanError
from tests.proof import outputs, prove, random_plan, relative_error, same_bits
from tests.random_networks import Block, conv, randomise


class Net(nn.Module):
    """A residual block with a grouped and a depthwise convolution, SE, and a flattened head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = conv(3, 8, bias=False), nn.BatchNorm2d(8)
        self.wide, self.deep = conv(8, 12), conv(12, 12, groups=12)
        self.narrow, self.grouped = conv(12, 8), conv(8, 8, groups=2)
        self.squeeze, self.excite = nn.Linear(8, 3), nn.Linear(3, 8)
        self.fold, self.head = nn.PReLU(8), nn.Linear(8 * 4, 5)
        self.register_buffer("count", torch.zeros((), dtype=torch.long))
        self.label = "mine"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.stem(x)).relu()
        x = x + self.grouped(self.narrow(self.deep(self.wide(x)).relu_()))
        x = x * self.excite(self.squeeze(x.mean((2, 3))).relu())[:, :, None, None].sigmoid()
        return self.head(nn.functional.adaptive_avg_pool2d(self.fold(x), 2).flatten(1))


X = torch.randn(4, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def net() -> Net:
    return randomise(Net().double()).eval()


def test_attributes_follow(net: Net) -> None:
    graph = trace(net, X)
    small, _ = prove(net, graph, random_plan(graph, 0, 0.5), (X,))
    assert (small.stem.in_channels, small.stem.out_channels, small.norm.num_features) == (3, 4, 4)
    assert (small.deep.groups, small.deep.in_channels, small.deep.out_channels) == (6, 6, 6)
    assert (small.grouped.groups, small.grouped.in_channels, small.grouped.out_channels) == (2, 4, 4)
    assert (small.squeeze.in_features, small.squeeze.out_features, small.excite.out_features) == (4, 2, 4)
    assert (small.fold.num_parameters, small.head.in_features, small.head.out_features) == (4, 16, 5)
    assert small.label == "mine"


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.GroupNorm(8, 8),
        lambda: nn.GroupNorm(2, 8),
        lambda: nn.InstanceNorm2d(8, affine=True),
        lambda: nn.InstanceNorm2d(8, track_running_stats=True),
    ],
)
def test_norm_attributes_follow(make) -> None:
    norm = make()
    model = randomise(nn.Sequential(conv(3, 8), norm, conv(8, 2)).double().eval())
    graph = trace(model, X)
    small, _ = prove(model, graph, random_plan(graph, 0, 0.5), (X,))
    if isinstance(norm, nn.GroupNorm):
        assert small[1].num_channels == 4
        assert small[1].num_groups == min(norm.num_groups, 4)
    else:
        assert small[1].num_features == 4


def test_layer_norm_and_embedding_attributes_follow() -> None:
    model = Block(
        lambda m, t: m.head(m.norm(m.embed(t))), embed=nn.Embedding(10, 8), norm=nn.LayerNorm(8), head=nn.Linear(8, 3)
    )
    randomise(model.double().eval())
    tokens = torch.randint(0, 10, (2, 7))
    graph = trace(model, tokens)
    small, report = prove(model, graph, random_plan(graph, 0, 0.5), (tokens,))
    assert small.norm.normalized_shape == (4,)
    assert (small.embed.embedding_dim, small.embed.num_embeddings) == (4, 10)
    assert report.approximate == ("norm",)


def test_attributes_without_parameters_follow() -> None:
    """A norm without affine parameters has nothing to slice, but its numbers must still change."""
    model = Block(
        lambda m, x: m.b(m.norm(m.a(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)),
        a=conv(3, 6),
        b=conv(6, 2),
        norm=nn.LayerNorm(6, elementwise_affine=False),
    )
    randomise(model.double().eval())
    graph = trace(model, X)
    assert not graph.group("a").frozen
    small, _ = prove(model, graph, random_plan(graph, 0, 0.5), (X,))
    assert small.norm.normalized_shape == (3,)


def test_full_plan_changes_nothing(net: Net) -> None:
    graph = trace(net, X)
    for plan in (Plan({}, graph.structure), Plan.full(graph)):
        small, report = prove(net, graph, plan, (X,))
        assert same_bits(outputs(small, (X,)), outputs(net, (X,)))
        assert report.max_error == 0


def test_cut_shares_nothing_with_the_original(net: Net) -> None:
    graph = trace(net, X)
    small = cut(net, graph, Plan({"stem": np.arange(4)}, graph.structure))
    storages = {t.untyped_storage().data_ptr() for t in net.state_dict().values()}
    assert not storages & {t.untyped_storage().data_ptr() for t in small.state_dict().values()}
    assert all(t.is_contiguous() for t in small.parameters())
    assert all(p.is_leaf for p in small.parameters())


def test_tied_parameters_stay_tied() -> None:
    a, b = conv(6, 6), conv(6, 6)
    b.weight = a.weight
    model = randomise(nn.Sequential(conv(3, 6), a, nn.ReLU(), b, conv(6, 2)).double().eval())
    graph = trace(model, X)
    small, _ = prove(model, graph, random_plan(graph, 0, 0.5), (X,))
    assert small[1].weight is small[3].weight
    assert small[1].weight.shape == (3, 3, 3, 3)


def test_optimiser_state_and_training_go_on(net: Net) -> None:
    graph = trace(net, X)
    small = cut(net, graph, random_plan(graph, 0, 0.5)).train()
    optimiser = torch.optim.SGD(small.parameters(), 0.01, momentum=0.9)
    small(X).square().mean().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in small.parameters())
    optimiser.step()


def test_cut_model_exports(net: Net) -> None:
    graph = trace(net, X)
    small = cut(net, graph, random_plan(graph, 0, 0.5))
    exported = torch.export.export(small, (X,)).module()
    assert relative_error(outputs(exported, (X,)), outputs(small, (X,))) < 1e-12


def test_channels_last_and_bfloat16() -> None:
    model = randomise(Net()).to(torch.bfloat16, memory_format=torch.channels_last).eval()
    x = X.to(torch.bfloat16).to(memory_format=torch.channels_last)
    graph = trace(model, x)
    small = cut(model, graph, random_plan(graph, 0, 0.5))
    assert {p.dtype for p in small.parameters()} == {torch.bfloat16}
    assert small.wide.weight.is_contiguous(memory_format=torch.channels_last)
    assert small(x).shape == (4, 5)


def test_random_plans_on_a_mixed_block(net: Net) -> None:
    graph = trace(net, X)
    for seed in range(10):
        prove(net, graph, random_plan(graph, seed), (X,))


# -- slim


def test_gradients_reach_the_full_parameters(net: Net) -> None:
    graph = trace(net, X)
    plan = random_plan(graph, 1, 0.5)
    small = cut(net, graph, plan)
    small(X).square().sum().backward()
    with slim(net, graph, plan) as subnet:
        assert subnet is net
        subnet(X).square().sum().backward()
    kept = graph.cuts(plan)
    for name, p in net.named_parameters():
        part = p.grad
        for dim, idx in kept.get(name, ()):
            part = part.index_select(dim, torch.from_numpy(idx))
        assert torch.equal(part, small.get_parameter(name).grad), name
        assert int((p.grad != 0).sum()) == int((part != 0).sum()), f"{name} has gradients outside its kept part"


def test_everything_is_put_back(net: Net) -> None:
    graph = trace(net, X)
    before = outputs(net, (X,))
    ids = {n: id(t) for n, t in net.named_parameters()}
    with slim(net, graph, random_plan(graph, 0, 0.5)) as subnet:
        assert subnet.deep.groups == 6
    assert net.deep.groups == 12
    assert {n: id(t) for n, t in net.named_parameters()} == ids
    assert same_bits(outputs(net, (X,)), before)


def test_everything_is_put_back_after_an_error(net: Net) -> None:
    graph = trace(net, X)
    before = outputs(net, (X,))
    with pytest.raises(ZeroDivisionError), slim(net, graph, random_plan(graph, 0, 0.5)):
        raise ZeroDivisionError
    assert same_bits(outputs(net, (X,)), before)


def test_statistics_of_the_full_model_are_not_touched(net: Net) -> None:
    graph = trace(net.train(), X)
    before = copy.deepcopy(dict(net.named_buffers()))
    with slim(net, graph, random_plan(graph, 0, 0.5)) as subnet:
        subnet(X)
    assert all(torch.equal(t, before[n]) for n, t in net.named_buffers())


def test_prefix_slices_are_views(net: Net) -> None:
    graph, net_weight = trace(net, X), net.wide.weight
    with slim(net, graph, Plan({"wide": np.arange(5)}, graph.structure)) as subnet:
        assert subnet.wide.weight._base is net_weight
        assert subnet.wide.weight.shape[0] == 5


def test_slim_within_slim_is_refused_or_right(net: Net) -> None:
    graph = trace(net, X)
    plan = random_plan(graph, 0, 0.5)
    expected = outputs(cut(net, graph, plan), (X,))
    with slim(net, graph, plan) as subnet:
        try:
            with slim(net, graph, plan) as inner:
                outputs(inner, (X,))
        except PlanError:
            pass
        assert same_bits(outputs(subnet, (X,)), expected)


def test_slim_refuses_a_plan_that_does_not_fit(net: Net) -> None:
    graph = trace(net, X)
    with pytest.raises(PlanError, match="stem: no unit|stem has units"), slim(net, graph, _Keep({"stem": [99]})):
        pass


class _Keep:
    def __init__(self, keep) -> None:
        self.keep = keep


# -- permute


def test_permute_moves_the_best_units_first(net: Net) -> None:
    graph = trace(net, X)
    order = np.random.default_rng(0).permutation(12)
    shuffled = permute(net, graph, {"wide": order})
    assert torch.equal(shuffled.wide.weight, net.wide.weight[order])
    assert torch.equal(shuffled.narrow.weight, net.narrow.weight[:, order])
    assert relative_error(outputs(shuffled, (X,)), outputs(net, (X,))) < 1e-12
    a = cut(shuffled, graph, Plan({"wide": np.arange(5)}, graph.structure))
    b = cut(net, graph, Plan({"wide": order[:5]}, graph.structure))
    assert relative_error(outputs(a, (X,)), outputs(b, (X,))) < 1e-12


@pytest.mark.parametrize("order", [[0, 1, 2], [0] * 12, list(range(1, 13))])
def test_permute_refuses_what_is_no_permutation(net: Net, order) -> None:
    with pytest.raises(PlanError, match=r"wide: the order is not a permutation of 0\.\.11"):
        permute(net, trace(net, X), {"wide": order})


def test_permute_refuses_frozen_groups(net: Net) -> None:
    with pytest.raises(PlanError, match="head: reaches the network output"):
        permute(net, trace(net, X), {"head": [1, 0, 2, 3, 4]})


def test_names_of_nested_modules_are_kept() -> None:
    inner = nn.Sequential(OrderedDict(conv=conv(3, 6), act=nn.ReLU()))
    model = randomise(nn.ModuleDict({"x": inner}).double())
    outer = nn.Sequential(OrderedDict(first=model["x"], last=conv(6, 2))).double()
    graph = trace(outer, X)
    small = cut(outer, graph, random_plan(graph, 0, 0.5))
    assert list(small.state_dict()) == ["first.conv.weight", "first.conv.bias", "last.weight", "last.bias"]


class Counted(nn.Module):
    """A module with its own way of being copied, and one that points back at its parent."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.copies = nn.Conv2d(8, 4, 1), 0

    def __deepcopy__(self, memo: dict) -> "Counted":
        new = Counted()
        memo[id(self)] = new
        new.conv, new.copies = copy.deepcopy(self.conv, memo), self.copies + 1
        return new

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)


def test_copies_as_the_modules_ask_for() -> None:
    model = nn.Sequential(OrderedDict(stem=nn.Conv2d(3, 8, 1), own=Counted())).double()
    model.stem.__dict__["parent"] = model
    graph = trace(model, X)
    small = cut(model, graph, Plan({"stem": [1, 5]}, graph.structure))
    assert small.own.copies == 1
    assert small.own.conv.weight.shape == (4, 2, 1, 1)
    assert small.stem.parent is small
    assert small.stem._forward_hooks is not model.stem._forward_hooks
    assert torch.equal(small.stem.weight, model.stem.weight[[1, 5]])
