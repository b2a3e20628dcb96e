"""What trials teach: numbers that follow, groups that keep the same share, whole heads, and who is to blame."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sentei import Budget, ChannelGraph, Plan, check, cut, trace, uniform
from tests.proof import prove, random_plan
from tests.random_networks import Block, conv, randomise

IMAGE = (torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)),)


def proven(model: nn.Module) -> ChannelGraph:
    """The graph, after proof of cuts to random widths."""
    randomise(model.double().eval())
    graph = trace(model, IMAGE)
    for seed in range(5):
        prove(model, graph, random_plan(graph, seed), IMAGE)
    return graph


def free(graph: ChannelGraph) -> dict[str, int]:
    return {g.name: g.width for g in graph.groups if not g.frozen}


# -- plain numbers of modules


class Parts(nn.Module):
    """Pieces of two sizes, which it keeps in whatever container."""

    def __init__(self, keep: str) -> None:
        super().__init__()
        self.a, self.o = conv(3, 20), conv(20, 4, 1)
        self.k = nn.ModuleList([conv(12, 12, groups=12), conv(8, 8, groups=8)])
        self.keep = keep
        self.sizes = {"list": [12, 8], "tuple": (12, 8), "dict": {"first": 12, "rest": 8}, "numbers": None}[keep]
        self.first, self.rest = 12, 8

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        if isinstance(self.sizes, dict):
            parts = y.split(list(self.sizes.values()), 1)
        elif self.sizes is not None:
            parts = y.split(list(self.sizes), 1)
        else:
            parts = y[:, : self.first], y[:, -self.rest :]
        return self.o(torch.cat([k(p) for k, p in zip(self.k, parts, strict=True)], 1))


@pytest.mark.parametrize("keep", ["list", "tuple", "dict", "numbers"])
def test_split_sizes_follow_wherever_they_are_kept(keep: str) -> None:
    model = Parts(keep)
    graph = proven(model)
    assert sorted(free(graph).values()) == [8, 12]
    small = cut(model, graph, Plan({g: np.arange(n // 2) for g, n in free(graph).items()}, graph.structure))
    kept = {"list": [6, 4], "tuple": (6, 4), "dict": {"first": 6, "rest": 4}, "numbers": None}[keep]
    assert small.sizes == kept
    assert model.sizes in ([12, 8], (12, 8), {"first": 12, "rest": 8}, None)  # the model keeps its own


class Bookkeeping(nn.Module):
    """Numbers that its forward never reads, among them some that equal a width by accident."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 12), conv(12, 10), nn.Linear(10, 5)
        self.num_features, self.info, self.kernel_size, self.scale = 10, [{"chs": 12, "module": "a"}], 12, 12**0.5

    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.b(self.a(x)) * self.scale).mean((2, 3)))


def test_numbers_that_are_never_read_follow_the_one_width_they_can_mean() -> None:
    model = Bookkeeping()
    graph = proven(model)
    plan = Plan({"a": np.arange(7), "b": np.arange(4)}, graph.structure)
    small = cut(model, graph, plan)
    assert small.num_features == 4
    assert small.info == [{"chs": 7, "module": "a"}]
    assert small.kernel_size == 12
    assert small.scale == model.scale
    assert check(model, small, graph, plan, IMAGE).stale == ("scale",)
    assert check(model, model, graph, Plan({}, graph.structure), IMAGE).stale == ()


# -- the same share


class Tokens(nn.Module):
    """What comes back from attention takes the number of channels that went in."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.a, self.v, self.p, self.o = (
            conv(3, width),
            nn.Linear(width, inner),
            nn.Linear(width, width),
            conv(width, 2),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        t = y.flatten(2).transpose(1, 2)
        b, n, c = t.shape
        t = self.p(self.v(t).reshape(b, -1, c))
        return self.o(y + t[:, :n].transpose(1, 2).reshape(y.shape))


def test_equal_widths_are_not_equal_units() -> None:
    graph = proven(Tokens(12, 12))
    assert free(graph) == {"a": 12, "v": 12}
    assert graph.bundles == ((0, 1),)
    with_others = Plan({"a": np.array([0, 5, 7]), "v": np.array([1, 2, 11])}, graph.structure)
    assert [list(k) for k in graph.bind(with_others.keep).values()] == [[0, 5, 7], [1, 2, 11]]


def test_a_plan_that_gives_a_bundle_different_shares_is_completed() -> None:
    model = Tokens(12, 12)
    graph = proven(model)
    plan = Plan({"a": np.array([0, 5, 7]), "v": np.array([2])}, graph.structure)
    assert {n: k.tolist() for n, k in graph.bind(plan.keep).items()} == {"a": [0, 5, 7], "v": [0, 1, 2]}
    assert graph.widths(plan).tolist()[:2] == [3, 3]
    assert cut(model, graph, plan).v.out_features == 3


class Heads(nn.Module):
    def __init__(self, width: int, heads: int, how: str) -> None:
        super().__init__()
        self.a, self.o = conv(3, width), conv(width, 2)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mha = nn.MultiheadAttention(width, heads, batch_first=True) if how == "module" else None
        self.num_heads, self.head_dim, self.how = heads, width // heads, how

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        t = y.flatten(2).transpose(1, 2)
        b, n, c = t.shape
        if self.mha is not None:
            t = self.mha(t, t, t, need_weights=False)[0]
        else:
            last = self.head_dim if self.how == "fused" else c // self.num_heads
            q, k, v = self.qkv(t).reshape(b, n, 3, self.num_heads, last).permute(2, 0, 3, 1, 4)
            if self.how == "fused":
                z = F.scaled_dot_product_attention(q, k, v)
            else:
                z = torch.softmax(q @ k.transpose(-2, -1) * last**-0.5, -1) @ v
            t = self.proj(z.transpose(1, 2).reshape(b, n, c))
        return self.o(y + t.transpose(1, 2).reshape(y.shape))


@pytest.mark.parametrize("how", ["fused", "by hand", "module"])
@pytest.mark.parametrize("heads", [2, 3, 4])
def test_whole_heads_are_units_and_shrink_with_the_stream(how: str, heads: int) -> None:
    model = Heads(heads * 5, heads, how)
    graph = proven(model)
    attention = next(i for i, g in enumerate(graph.groups) if not g.frozen and g.width == heads)
    assert any(attention in bundle for bundle in graph.bundles)
    plan = Plan({graph.groups[attention].name: np.array([0]), "a": np.arange(5)}, graph.structure)
    small = cut(model, graph, plan)
    assert (small.mha.num_heads if small.mha else small.num_heads) == 1
    assert (small.mha.head_dim if small.mha else small.head_dim) == 5
    assert check(model, small, graph, plan, IMAGE).max_error < 1e-12


@pytest.mark.parametrize("width", [6, 9, 16, 18, 20, 36])
def test_half_of_the_running_width(width: int) -> None:
    def forward(m: Block, x: Tensor) -> Tensor:
        x = m.a(x)
        b, c, h, w = x.shape
        return m.o(x + m.w(m.g(x).flatten(2).reshape(b, c // 2, h, w)))

    parts = {"g": conv(width, width // 2, 1), "w": conv(width // 2, width, 1), "o": conv(width, 2)}
    proven(Block(forward, a=conv(3, width), **parts))


def test_uniform_moves_a_bundle_in_step() -> None:
    model = Heads(64, 4, "fused")
    randomise(model.double().eval())
    graph = trace(model, IMAGE)
    plan = uniform(graph, Budget(macs=0.5))
    assert graph.widths(plan).tolist()[:2] == [48, 3] or graph.widths(plan).tolist()[:2] == [32, 2]
    assert graph.bind(plan.keep).keys() == plan.keep.keys()
    assert graph.cost(plan).macs <= graph.cost().macs / 2


# -- who is to blame


def test_one_fixed_reader_freezes_only_what_it_reads() -> None:
    def forward(m: Block, x: Tensor) -> Tensor:
        for c, g in zip(m.c, m.g, strict=True):
            x = g(c(x))
        return m.o(x.reshape(x.shape[0], 6, 8, 8) * m.fixed.reshape(6, 1, 1))

    model = Block(
        forward, c=nn.ModuleList([conv(3, 8), conv(4, 12), conv(6, 12)]), g=nn.ModuleList(nn.GLU(1) for _ in range(3)),
        o=conv(6, 2), fixed=torch.rand(6, dtype=torch.float64),
    )  # fmt: skip
    graph = proven(model)
    assert free(graph)["c.0"] == 4
    assert free(graph)["c.1"] == 6


def test_a_fault_without_labels_is_traced_to_its_group() -> None:
    """The model's own Python insists on a width: of the many groups only that one is at fault."""

    def forward(m: Block, x: Tensor) -> Tensor:
        for c in m.body:
            x = F.relu(c(x))
        y = m.pick(x)
        if y.shape[1] != 10:
            raise ValueError("ten channels are expected")
        return m.o(F.relu(m.last(x))) + m.p(y)

    body = nn.ModuleList([conv(3, 8), *(conv(8, 8) for _ in range(4))])
    graph = proven(Block(forward, body=body, last=conv(8, 6), pick=conv(8, 10), o=conv(6, 2), p=conv(10, 2)))
    assert free(graph).keys() == {"body.0", "body.1", "body.2", "body.3", "body.4", "last"}
    assert "ten channels are expected" in (graph.group("pick").why or "")


def test_training_that_wants_targets_freezes_nothing() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.aux, self.o = conv(3, 8), conv(8, 6), conv(8, 5, 1), conv(6, 5, 1)

        def forward(self, x: Tensor, target: Tensor | None = None) -> Tensor:
            y = self.a(x)
            if not self.training:
                return self.o(self.b(y))
            return F.mse_loss(self.o(self.b(y)), self.aux(y)) + F.mse_loss(self.aux(y), target)

    model = Net()
    graph = proven(model)
    assert free(graph) == {"a": 8, "b": 6}
    plan = random_plan(graph, 1, 0.5)
    small = cut(model, graph, plan).train()
    assert small(*IMAGE, target=torch.zeros(2, 5, 8, 8, dtype=torch.float64)).isfinite()  # the auxiliary head fits


# -- sizes that pass by luck


@pytest.mark.parametrize("width", [4, 5, 6, 9, 12])
@pytest.mark.parametrize("how", ["roll", "halves", "list", "thirds", "every second", "tensor_split"])
def test_channels_taken_by_place(width: int, how: str) -> None:
    half, third = width // 2, width // 3

    def forward(m: Block, x: Tensor) -> Tensor:
        y = torch.sigmoid(m.a(x))
        if how == "roll":
            y = y.roll(2, 1)
        elif how == "halves":
            y = y.clone()
            y[:, :half] = y[:, half : 2 * half]
        elif how == "list":
            y = y[:, [width - 1, 0, *range(1, width - 1)]]
        elif how == "thirds":
            y = torch.cat([y[:, third:], y[:, :third]], 1)
        elif how == "every second":
            y = torch.cat([y[:, ::2], y[:, 1::2]], 1)
        else:
            y = torch.cat(y.tensor_split(3, 1)[::-1], 1)
        return m.o(y)

    model = Block(forward, a=conv(3, width), o=conv(width, 2))
    randomise(model.double().eval())
    graph = trace(model, IMAGE)
    for seed in range(12):
        plan = random_plan(graph, seed)
        check(model, cut(model, graph, plan), graph, plan, IMAGE)
