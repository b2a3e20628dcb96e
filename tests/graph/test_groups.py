"""What each family of operations does to groups: one micro-network each, with the groups written out."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sentei import ChannelGraph, Group, Plan, trace
from tests.proof import prove, random_plan
from tests.random_networks import Block, conv, randomise

IMAGE = (torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)),)


def graph_of(model: nn.Module, inputs: tuple[torch.Tensor, ...] = IMAGE) -> ChannelGraph:
    """Trace, and prove three random cuts on the way, so that no group below is wishful."""
    randomise(model.double().eval())
    graph = trace(model, inputs)
    for seed in range(3):
        prove(model, graph, random_plan(graph, seed), inputs)
    return graph


def net(fn: Callable[..., Any], **parts: Any) -> nn.Module:
    return Block(fn, **parts)


def members(group: Group) -> dict[tuple[str, int], tuple[int, int]]:
    return {(m.param, m.dim): m.indices.shape for m in group.members}


def free(graph: ChannelGraph) -> dict[str, int]:
    return {g.name: g.width for g in graph.groups if not g.frozen}


def reason(graph: ChannelGraph, name: str) -> str:
    why = graph.group(name).why
    assert why is not None
    return why


def indices(group: Group, param: str, dim: int) -> list[list[int]]:
    return next(m.indices for m in group.members if (m.param, m.dim) == (param, dim)).tolist()


# -- convolution and linear layers


def test_plain_convolutions() -> None:
    graph = graph_of(nn.Sequential(conv(3, 8), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 4)))
    assert free(graph) == {"0": 8}
    places = [
        ("0.weight", 0),
        ("0.bias", 0),
        ("1.weight", 0),
        ("1.bias", 0),
        ("1.running_mean", 0),
        ("1.running_var", 0),
        ("3.weight", 1),
    ]
    assert members(graph.group("0")) == dict.fromkeys(places, (8, 1))
    assert "output" in reason(graph, "3")


def test_a_single_network_output_freezes_everything() -> None:
    graph = graph_of(conv(3, 8))
    assert free(graph) == {}
    assert "output" in graph.groups[0].why


def test_flatten_gives_each_channel_many_columns() -> None:
    graph = graph_of(nn.Sequential(conv(3, 6), nn.Flatten(), nn.Linear(6 * 64, 5)))
    assert members(graph.group("0"))["2.weight", 1] == (6, 64)
    assert indices(graph.group("0"), "2.weight", 1)[1] == list(range(64, 128))


def test_channels_last_flatten() -> None:
    graph = graph_of(net(lambda m, x: m.b(m.a(x).permute(0, 2, 3, 1).flatten(1)), a=conv(3, 6), b=nn.Linear(384, 5)))
    assert indices(graph.group("a"), "b.weight", 1)[1] == list(range(1, 384, 6))


@pytest.mark.parametrize("multiplier", [1, 2])
def test_depthwise(multiplier: int) -> None:
    graph = graph_of(nn.Sequential(conv(3, 6), conv(6, 6 * multiplier, groups=6), conv(6 * multiplier, 4)))
    assert free(graph) == {"0": 6}
    group = graph.group("0")
    assert members(group)["1.weight", 0] == members(group)["2.weight", 1] == (6, multiplier)
    assert indices(group, "1.weight", 0)[2] == [2 * multiplier + i for i in range(multiplier)]


def test_grouped_convolution_with_few_groups_shrinks_within_them() -> None:
    graph = graph_of(nn.Sequential(conv(3, 12), conv(12, 16, groups=2), conv(16, 4)))
    assert free(graph) == {"0": 6, "1": 8}
    assert indices(graph.group("0"), "0.weight", 0)[1] == [1, 7]
    assert members(graph.group("0"))["1.weight", 1] == (6, 1)
    assert indices(graph.group("1"), "2.weight", 1)[1] == [1, 9]


def test_grouped_convolution_with_many_groups_shrinks_by_groups() -> None:
    graph = graph_of(nn.Sequential(conv(3, 12), conv(12, 12, groups=6), conv(12, 4)))
    assert free(graph) == {"0": 6}
    assert indices(graph.group("0"), "0.weight", 0)[1] == indices(graph.group("0"), "1.weight", 0)[1] == [2, 3]


@pytest.mark.parametrize("grouped", [lambda: conv(8, 8, groups=2), lambda: nn.ConvTranspose2d(8, 2, 1, groups=2)])
def test_one_channel_left_in_each_group(grouped) -> None:
    """At one channel a group, shapes no longer tell whether groups or the channels within them were removed."""
    middle = grouped()
    model = randomise(nn.Sequential(conv(3, 8), middle, nn.ReLU(), conv(middle.out_channels, 3)).double().eval())
    graph = trace(model, IMAGE)
    keep = {name: [width - 1] for name, width in free(graph).items()}
    prove(model, graph, Plan(keep, graph.structure), IMAGE)


def test_transposed_convolution() -> None:
    graph = graph_of(nn.Sequential(conv(3, 6), nn.ConvTranspose2d(6, 8, 2, 2), conv(8, 4)))
    assert free(graph) == {"0": 6, "1": 8}
    assert ("1.weight", 0) in members(graph.group("0"))
    assert members(graph.group("1")) == dict.fromkeys([("1.weight", 1), ("1.bias", 0), ("2.weight", 1)], (8, 1))


@pytest.mark.parametrize(
    ("make", "make_input"),
    [
        (lambda: nn.Sequential(nn.Conv1d(3, 6, 3), nn.BatchNorm1d(6), nn.AvgPool1d(2), nn.Conv1d(6, 4, 1)), (2, 3, 12)),
        (
            lambda: nn.Sequential(nn.Conv3d(3, 6, 3), nn.BatchNorm3d(6), nn.MaxPool3d(2), nn.Conv3d(6, 4, 1)),
            (2, 3, 6, 6, 6),
        ),
        (lambda: nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 4)), (5, 3)),
        (lambda: nn.Sequential(nn.Linear(3, 6), nn.LayerNorm(6), nn.GELU(), nn.Linear(6, 4)), (2, 7, 3)),
        (lambda: nn.Sequential(nn.ConvTranspose1d(3, 6, 3), nn.ConvTranspose1d(6, 4, 3)), (2, 3, 12)),
    ],
)
def test_other_dimensions(make, make_input) -> None:
    graph = graph_of(make(), (torch.randn(make_input, dtype=torch.float64),))
    assert free(graph) == {"0": 6}


def test_unbatched_image() -> None:
    graph = graph_of(nn.Sequential(conv(3, 6), nn.ReLU(), conv(6, 4)), (IMAGE[0][0],))
    assert free(graph) == {"0": 6}


# -- sharing


def test_residual_ties_what_is_added() -> None:
    graph = graph_of(
        net(
            lambda m, x: m.out((y := m.stem(x)) + m.b(m.a(y))),
            stem=conv(3, 8),
            a=conv(8, 6),
            b=conv(6, 8),
            out=conv(8, 2),
        )
    )
    assert free(graph) == {"stem": 8, "a": 6}
    assert {("stem.weight", 0), ("a.weight", 1), ("b.weight", 0), ("out.weight", 1)} < set(members(graph.group("stem")))


def test_zero_pad_shortcut_splits_padded_from_carried_channels() -> None:
    """CIFAR ResNets pad the shortcut with zeros: the pad has a fixed size, so what it meets cannot go."""
    graph = graph_of(
        net(
            lambda m, x: m.out(m.b(y := m.stem(x)) + F.pad(y, (0, 0, 0, 0, 2, 2))),
            stem=conv(3, 4),
            b=conv(4, 8),
            out=conv(8, 2),
        )
    )
    carried = graph.group("stem")
    assert carried.width == 4
    assert not carried.frozen
    assert indices(carried, "b.weight", 0) == [[2], [3], [4], [5]]
    padded = next(g for g in graph.groups if g.frozen and "zero padding" in g.why)
    assert indices(padded, "b.weight", 0) == [[0], [1], [6], [7]]


def test_shared_module_ties_input_and_output() -> None:
    graph = graph_of(net(lambda m, x: m.out(m.c(m.c(m.stem(x)).relu())), stem=conv(3, 6), c=conv(6, 6), out=conv(6, 2)))
    assert free(graph) == {"stem": 6}
    assert {("c.weight", 0), ("c.weight", 1)} < set(members(graph.group("stem")))


def test_tied_parameters_are_one() -> None:
    a, b = conv(3, 6), conv(3, 6)
    b.weight = a.weight
    graph = graph_of(net(lambda m, x: m.out(torch.cat([m.a(x), m.b(x)], 1)), a=a, b=b, out=conv(12, 2)))
    assert free(graph) == {"a": 6}
    assert members(graph.group("a"))["out.weight", 1] == (6, 2)
    assert "b.weight" not in graph.params


def test_squeeze_and_excitation() -> None:
    graph = graph_of(
        net(
            lambda m, x: m.out((y := m.stem(x)) * m.up(m.down(y.mean((2, 3), True)).relu()).sigmoid()),
            stem=conv(3, 8),
            down=conv(8, 3, 1),
            up=conv(3, 8, 1),
            out=conv(8, 2),
        )
    )
    assert free(graph) == {"stem": 8, "down": 3}
    assert ("up.weight", 0) in members(graph.group("stem"))


def test_broadcast_mask_leaves_channels_apart() -> None:
    graph = graph_of(
        net(
            lambda m, x: m.out((y := m.stem(x)) * m.mask(y).sigmoid()), stem=conv(3, 8), mask=conv(8, 1), out=conv(8, 2)
        )
    )
    assert free(graph) == {"stem": 8}


def test_layer_scale_and_tables_follow() -> None:
    graph = graph_of(
        net(
            lambda m, x: m.out(m.stem(x) * m.gamma + m.table),
            stem=conv(3, 6),
            out=conv(6, 2),
            gamma=nn.Parameter(torch.ones(6, 1, 1)),
            table=torch.randn(1, 6, 8, 8),
        )
    )
    assert {("gamma", 0), ("table", 1)} < set(members(graph.group("stem")))


def test_concatenation_keeps_branches_apart() -> None:
    graph = graph_of(
        net(lambda m, x: m.out(torch.cat([m.a(x), m.b(x)], 1)), a=conv(3, 4), b=conv(3, 6), out=conv(10, 2))
    )
    assert free(graph) == {"a": 4, "b": 6}
    assert indices(graph.group("b"), "out.weight", 1) == [[i] for i in range(4, 10)]


def test_dense_connections_have_many_readers() -> None:
    graph = graph_of(
        net(lambda m, x: m.out(torch.cat([y := m.a(x), m.b(y)], 1)), a=conv(3, 4), b=conv(4, 6), out=conv(10, 2))
    )
    assert {("b.weight", 1), ("out.weight", 1)} < set(members(graph.group("a")))


# -- parts and orders


@pytest.mark.parametrize(
    "halve",
    [
        lambda y: y.chunk(2, 1),
        lambda y: y.tensor_split(2, 1),
        lambda y: (y[:, : y.shape[1] // 2], y[:, y.shape[1] // 2 :]),
        lambda y: y.view(2, 2, -1, 8, 8).unbind(1),
        lambda y: y.unflatten(1, (2, -1)).unbind(1),
    ],
)
def test_halves_shrink_evenly(halve) -> None:
    graph = graph_of(
        net(
            lambda m, x: m.out(torch.cat([m.b((h := halve(m.a(x)))[0]), h[1]], 1)),
            a=conv(3, 8),
            b=conv(4, 5),
            out=conv(9, 2),
        )
    )
    assert free(graph) == {"a": 4, "b": 5}
    assert indices(graph.group("a"), "a.weight", 0) == [[0, 4], [1, 5], [2, 6], [3, 7]]


def test_chunk_of_four() -> None:
    graph = graph_of(net(lambda m, x: m.out(torch.cat(m.a(x).chunk(4, 1)[1:], 1)), a=conv(3, 12), out=conv(9, 2)))
    assert free(graph) == {"a": 3}
    assert indices(graph.group("a"), "a.weight", 0)[1] == [1, 4, 7, 10]


def test_gated_linear_unit() -> None:
    graph = graph_of(nn.Sequential(conv(3, 8), nn.GLU(1), conv(4, 2)))
    assert free(graph) == {"0": 4}
    assert indices(graph.group("0"), "0.weight", 0)[1] == [1, 5]


@pytest.mark.parametrize("sizes", [(4, 4), (3, 5)])
def test_hard_coded_split_is_frozen_with_the_reason(sizes) -> None:
    graph = graph_of(
        net(
            lambda m, x: m.out(torch.cat([m.b((p := m.a(x).split(sizes, 1))[0]), p[1]], 1)),
            a=conv(3, 8),
            b=conv(sizes[0], 5),
            out=conv(5 + sizes[1], 2),
        )
    )
    assert "a" not in free(graph)
    assert "cannot shrink" in reason(graph, "a")


def test_even_and_odd_channels() -> None:
    graph = graph_of(
        net(lambda m, x: m.out(torch.cat([(y := m.a(x))[:, ::2], y[:, 1::2]], 1)), a=conv(3, 8), out=conv(8, 2))
    )
    assert free(graph) == {"a": 4}
    assert indices(graph.group("a"), "a.weight", 0)[1] == [2, 3]


def test_picking_one_channel_keeps_it() -> None:
    graph = graph_of(net(lambda m, x: m.out((y := m.a(x)) * y[:, :1]), a=conv(3, 6), out=conv(6, 2)))
    assert any(g.frozen and g.width == 1 and "picked" in g.why for g in graph.groups) or not free(graph)


def test_channel_shuffle_by_view() -> None:
    def forward(m: Block, x: torch.Tensor) -> torch.Tensor:
        y = m.a(x)
        return m.out(y.view(2, 2, -1, 8, 8).transpose(1, 2).reshape(2, -1, 8, 8))

    graph = graph_of(net(forward, a=conv(3, 8), out=conv(8, 2)))
    assert free(graph) == {"a": 4}
    assert indices(graph.group("a"), "a.weight", 0)[1] == [1, 5]
    assert indices(graph.group("a"), "out.weight", 1)[1] == [2, 3]


def test_channel_shuffle_module() -> None:
    graph = graph_of(nn.Sequential(conv(3, 8), nn.ChannelShuffle(2), conv(8, 2)))
    assert free(graph) == {"0": 4}
    assert indices(graph.group("0"), "2.weight", 1)[1] == [2, 3]


def test_pixel_shuffle_and_unshuffle() -> None:
    graph = graph_of(nn.Sequential(conv(3, 12), nn.PixelShuffle(2), conv(3, 5), nn.PixelUnshuffle(2), conv(20, 2)))
    assert free(graph) == {"0": 3, "2": 5}
    assert indices(graph.group("0"), "0.weight", 0)[1] == [4, 5, 6, 7]
    assert indices(graph.group("2"), "4.weight", 1)[1] == [4, 5, 6, 7]


def test_pixel_shuffle_before_flatten() -> None:
    graph = graph_of(nn.Sequential(conv(3, 12), nn.PixelShuffle(2), nn.Flatten(), nn.Linear(3 * 256, 5)))
    assert free(graph) == {"0": 3}


def test_repeated_channels() -> None:
    graph = graph_of(net(lambda m, x: m.out(m.a(x).repeat_interleave(2, 1)), a=conv(3, 4), out=conv(8, 2)))
    assert indices(graph.group("a"), "out.weight", 1)[1] == [2, 3]


def test_permuting_table() -> None:
    graph = graph_of(net(lambda m, x: m.out(m.a(x).flip(1)), a=conv(3, 4), out=conv(4, 2)))
    assert indices(graph.group("a"), "out.weight", 1) == [[3], [2], [1], [0]]


def test_written_into_slices() -> None:
    def forward(m: Block, x: torch.Tensor) -> torch.Tensor:
        a, b = m.a(x), m.b(x)
        both = torch.zeros(2, a.shape[1] + b.shape[1], 8, 8, dtype=a.dtype)
        both[:, : a.shape[1]] = a
        both[:, a.shape[1] :] = b
        return m.out(both)

    graph = graph_of(net(forward, a=conv(3, 4), b=conv(3, 4), out=conv(8, 2)))
    assert set(free(graph).values()) <= {4}
    assert indices(graph.group("b"), "out.weight", 1) == [[4], [5], [6], [7]]


def test_inplace_activation_of_a_view() -> None:
    def forward(m: Block, x: torch.Tensor) -> torch.Tensor:
        y = m.a(x)
        y[:, : y.shape[1] // 2].relu_()
        return m.out(y)

    assert free(graph_of(net(forward, a=conv(3, 8), out=conv(8, 2)))) in ({"a": 4}, {"a": 8})


# -- norms and statistics


@pytest.mark.parametrize(("groups", "width"), [(1, 8), (2, 4), (4, 4), (8, 8)])
def test_group_norm_shrinks_evenly_or_by_groups(groups: int, width: int) -> None:
    graph = graph_of(nn.Sequential(conv(3, 8), nn.GroupNorm(groups, 8), conv(8, 2)))
    assert free(graph) == {"0": width}
    second = {1: [1], 2: [1, 5], 4: [2, 3], 8: [1]}[groups]
    assert indices(graph.group("0"), "1.weight", 0)[1] == second


def test_layer_norm_over_channels() -> None:
    graph = graph_of(
        net(
            lambda m, x: m.out(m.norm(m.a(x).permute(0, 2, 3, 1))),
            a=conv(3, 6),
            norm=nn.LayerNorm(6),
            out=nn.Linear(6, 2),
        )
    )
    assert free(graph) == {"a": 6}
    plan = random_plan(graph, 0, 0.5)
    assert graph.mixing(plan) == ("norm",)


def test_instance_norm_and_prelu_keep_channels_apart() -> None:
    graph = graph_of(nn.Sequential(conv(3, 6), nn.InstanceNorm2d(6, affine=True), nn.PReLU(6), nn.PReLU(), conv(6, 2)))
    assert {("1.weight", 0), ("2.weight", 0), ("4.weight", 1)} < set(members(graph.group("0")))
    assert graph.mixing(random_plan(graph, 0, 0.5)) == ()


@pytest.mark.parametrize(
    "fn",
    [
        lambda y: y.mean(1, True),
        lambda y: y.amax(1, True),
        lambda y: y.softmax(1),
        lambda y: F.normalize(y, dim=1),
        lambda y: y.logsumexp(1, True),
    ],
)
def test_statistics_over_channels_are_named(fn) -> None:
    graph = graph_of(nn.Sequential(conv(3, 6), Block(lambda m, x: x * fn(x)), conv(6, 2)))
    assert free(graph) == {"0": 6}
    assert graph.mixing(random_plan(graph, 0, 0.5)) == ("1",)


def test_sum_over_channels_is_exact() -> None:
    graph = graph_of(net(lambda m, x: m.out(m.a(x).sum(1, keepdim=True)), a=conv(3, 6), out=conv(1, 2)))
    assert free(graph) == {"a": 6}
    assert graph.mixing(random_plan(graph, 0, 0.5)) == ()


# -- products of activations


def test_attention_over_channels_ties_queries_and_keys() -> None:
    def forward(m: Block, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (f(x).flatten(2).transpose(1, 2) for f in (m.q, m.k, m.v))
        return m.out(torch.softmax(q @ k.transpose(1, 2), -1) @ v)

    graph = graph_of(net(forward, q=conv(3, 4), k=conv(3, 4), v=conv(3, 6), out=nn.Linear(6, 2)))
    assert free(graph) == {"q": 4, "v": 6}
    assert ("k.weight", 0) in members(graph.group("q"))


def test_einsum_with_a_free_weight() -> None:
    graph = graph_of(
        net(
            lambda m, x: m.out(torch.einsum("bchw,dc->bdhw", m.a(x), m.weight)),
            a=conv(3, 6),
            out=conv(5, 2),
            weight=nn.Parameter(torch.randn(5, 6)),
        )
    )
    assert ("weight", 1) in members(graph.group("a"))
    assert ("out.weight", 1) in members(next(g for g in graph.groups if g.width == 5))


def test_scale_of_attention_follows_its_head_size() -> None:
    """1 / sqrt(head size) is computed inside the kernel: the cut follows, and the reference computes with its scale."""

    def forward(m: Block, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (f(x.flatten(2).transpose(1, 2)).unsqueeze(1) for f in (m.q, m.k, m.v))
        return m.out(F.scaled_dot_product_attention(q, k, v))

    model = net(forward, q=nn.Linear(3, 4), k=nn.Linear(3, 4), v=nn.Linear(3, 6), out=nn.Linear(6, 2))
    randomise(model.double().eval())
    graph = trace(model, IMAGE)
    assert free(graph) == {"q": 4, "v": 6}
    _, report = prove(model, graph, Plan({"q": np.array([0, 3])}, graph.structure), IMAGE)
    assert report.approximate


# -- never guess


def test_unknown_operation_is_named() -> None:
    graph = graph_of(net(lambda m, x: m.out(torch.fft.fft(m.a(x), dim=1).real), a=conv(3, 6), out=conv(6, 2)))
    assert free(graph) == {}
    assert "fft" in reason(graph, "a")


def test_custom_operator_is_named() -> None:
    @torch.library.custom_op("sentei_tests::twice", mutates_args=())
    def twice(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    @twice.register_fake
    def _(x: torch.Tensor) -> torch.Tensor:
        return torch.empty_like(x)

    graph = graph_of(net(lambda m, x: m.out(twice(m.a(x))), a=conv(3, 6), out=conv(6, 2)))
    assert free(graph) == {}
    assert "sentei_tests.twice" in reason(graph, "a")


@pytest.mark.parametrize("fn", [lambda y: y.cumsum(1), lambda y: y.sort(1).values, lambda y: y.topk(3, 1).values])
def test_operations_on_the_order_of_channels_freeze_them(fn) -> None:
    graph = graph_of(net(lambda m, x: fn(m.a(x)).mean(1), a=conv(3, 6)))
    assert free(graph) == {}


def test_constants_of_a_fixed_size_freeze() -> None:
    table = torch.randn(6, dtype=torch.float64)[None, :, None, None]
    graph = graph_of(net(lambda m, x: m.out(m.a(x) + table), a=conv(3, 6), out=conv(6, 2)))
    assert free(graph) == {}


@pytest.mark.parametrize(
    "scale",
    [
        lambda y: y / y.shape[1] ** 0.5,
        lambda y: y.sum(1, keepdim=True) / y.shape[1] + y,
        lambda y: y * torch.tensor(y.shape[1]).double().rsqrt(),
        lambda y: y + torch.full((), 1 / y.shape[1], dtype=y.dtype),
        lambda y: y.clamp(max=1 / y.shape[1]),
    ],
)
def test_numbers_made_of_the_running_width_are_those_of_the_cut(scale: Callable[[torch.Tensor], torch.Tensor]) -> None:
    model = net(lambda m, x: m.out(scale(m.a(x))), a=conv(3, 6), out=conv(6, 2))
    randomise(model.double().eval())
    graph = trace(model, IMAGE)
    assert free(graph) == {"a": 6}
    _, report = prove(model, graph, random_plan(graph, 0, 0.5), IMAGE)
    assert report.max_error < 1e-12
    assert report.approximate == ("",)


def test_complete_picture_of_a_group() -> None:
    """Kept labels, widths and members speak of the same places."""
    graph = graph_of(nn.Sequential(conv(3, 6), nn.Flatten(), nn.Linear(384, 5)))
    plan = random_plan(graph, 3, 0.5)
    cuts = graph.cuts(plan)
    kept = plan.keep["0"]
    assert np.array_equal(dict(cuts["0.weight"])[0], kept)
    assert np.array_equal(dict(cuts["2.weight"])[1], (kept[:, None] * 64 + np.arange(64)).ravel())
    assert graph.widths(plan)[graph.index("0")] == 3
