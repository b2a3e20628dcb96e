"""What lets groups shrink: numbers of helper modules, numbers under misleading names, chains of equal widths."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sentei import ChannelGraph, Plan, check, cut, trace
from tests.proof import random_plan

TOKENS = torch.zeros(2, 16, 48)


def free(graph: ChannelGraph) -> set[str]:
    return {g.name for g in graph.groups if not g.frozen}


def assert_cuts_are_right(model: nn.Module, graph: ChannelGraph, x: Tensor) -> None:
    for seed in range(3):
        plan = random_plan(graph, seed, 0.5)
        check(model, cut(model, graph, plan), graph, plan, torch.randn(x.shape))


class Bias(nn.Module):
    """A table that only a method reads, with the number of heads in a tuple of sizes."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.shape = (16, 16, heads)
        self.table = nn.Parameter(torch.randn(256, heads))
        self.register_buffer("index", torch.arange(256))

    def bias(self) -> Tensor:
        return self.table[self.index].view(self.shape).permute(2, 0, 1)


class Biased(nn.Module):
    """Attention whose sizes are all kept as numbers; `out_dim` equals its output's width, and is another."""

    def __init__(self, dim: int = 48, heads: int = 6) -> None:
        super().__init__()
        self.heads, self.out_dim = heads, dim
        self.qkv, self.proj, self.bias = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim), Bias(heads)

    def forward(self, x: Tensor) -> Tensor:
        b, n = x.shape[:2]
        q, k, v = self.qkv(x).view(b, n, self.heads, -1).transpose(1, 2).chunk(3, -1)
        y = (q @ k.transpose(2, 3) + self.bias.bias()).softmax(-1) @ v
        return self.proj(y.transpose(1, 2).reshape(b, n, self.out_dim))


def test_numbers_of_helpers_and_under_misleading_names_follow() -> None:
    model = nn.Sequential(nn.Linear(48, 48), Biased(), nn.Linear(48, 5)).eval()
    graph = trace(model, TOKENS)
    assert free(graph) == {"0", "1.qkv", "1.proj"}
    plan = random_plan(graph, 0, 0.5)
    small = cut(model, graph, plan)
    kept = len(plan.keep["1.qkv"])
    assert graph.group("1.qkv").width == 6  # whole heads
    assert small[1].heads == small[1].bias.shape[2] == kept
    assert small[1].out_dim == 8 * kept
    assert_cuts_are_right(model, graph, TOKENS)


class Reduced(nn.Module):
    """Attention over fewer keys: the width of the input is that of the heads, and more."""

    def __init__(self, dim: int, heads: int, fewer: bool) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.kv, self.proj = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)
        self.sr, self.norm = (nn.Conv1d(dim, dim, 2, 2), nn.LayerNorm(dim)) if fewer else (None, None)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q = self.q(x).reshape(b, n, self.heads, c // self.heads).transpose(1, 2)
        if self.sr is not None:
            x = self.norm(self.sr(x.transpose(1, 2)).reshape(b, c, -1).transpose(1, 2))
        k, v = self.kv(x).reshape(b, -1, 2, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).reshape(b, n, c))


class Stack(nn.Module):
    """Residual attentions, the first without a reduction."""

    def __init__(self, classes: int | None = 5) -> None:
        super().__init__()
        self.first = nn.Linear(48, 48)
        self.blocks = nn.ModuleList(Reduced(48, 6, fewer) for fewer in (False, True))
        self.head = nn.Identity() if classes is None else nn.Linear(48, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


def test_all_of_a_chain_of_equal_widths_shrinks_together() -> None:
    graph = trace(Stack().eval(), TOKENS)
    assert {g.name for g in graph.groups if g.frozen} == {"head"}
    names = {graph.groups[i].name for i in graph.bundles[0]}
    assert {"first", "blocks.1.sr"} <= names
    assert_cuts_are_right(Stack().eval(), graph, TOKENS)


def test_what_cannot_shrink_has_its_true_reason() -> None:
    """The stream is the output: so are as many channels of attention. No split into q, k and v is blamed."""
    graph = trace(Stack(classes=None).eval(), TOKENS)
    reasons = {g.name: g.why or "" for g in graph.groups if g.frozen}
    assert "output" in reasons["first"]
    assert not any("picked out" in why for why in reasons.values())


class GroupStd(nn.Module):
    """Divides by the standard deviation of each of some groups of channels, as EvoNorm does."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        parts = x.reshape(b, self.groups, c // self.groups, h, w)
        return x / (parts.var((2, 3, 4), keepdim=True) + 1e-5).sqrt().expand(parts.shape).reshape(b, c, h, w)


def test_statistics_run_over_whole_units() -> None:
    """As many groups of fewer channels would meet the same channels, and compute something else."""
    layers = [nn.Conv2d(3, 64, 1), GroupStd(8), nn.Conv2d(64, 16, 1), GroupStd(8), nn.Conv2d(16, 5, 1)]
    model = nn.Sequential(*layers).double().eval()
    x = torch.zeros(2, 3, 4, 4, dtype=torch.double)
    graph = trace(model, x)
    assert free(graph) == {"0", "2"}
    for keep in ([0], [1, 3], [0, 1, 2, 3, 4, 6]):
        plan = Plan(graph.bind({"0": keep, "2": keep[:1]}), graph.structure)
        check(model, cut(model, graph, plan), graph, plan, torch.randn(x.shape, dtype=torch.double))


class Lambda(nn.Module):
    """Queries of several heads with keys that all heads share, which cannot be cut; one head may be left."""

    def __init__(self, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.mix = nn.Conv2d(48, 8 * heads + 8 + 12, 1), nn.Conv3d(1, 8, (3, 3, 1), padding=(1, 1, 0))

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        q, k, v = torch.split(self.qkv(x), [8 * self.heads, 8, 12], 1)
        q, v = q.reshape(b, self.heads, 8, h * w).transpose(2, 3), v.reshape(b, 12, h * w).transpose(1, 2)
        content = q @ (k.reshape(b, 8, h * w).softmax(2) @ v)[:, None]
        position = self.mix(v.reshape(b, 1, h, w, 12)).reshape(b, 1, 8, h * w, 12).transpose(2, 3)
        return (content + (q[..., None, :] @ position)[..., 0, :]).transpose(2, 3).reshape(b, c, h, w)


def test_a_single_head_is_left_of_several() -> None:
    model = nn.Sequential(nn.Conv2d(3, 48, 1), Lambda(), nn.Conv2d(48, 5, 1)).eval()
    x = torch.zeros(2, 3, 4, 4)
    graph = trace(model, x)
    assert {"0", "1.qkv"} <= free(graph)
    for keep in ([2], [0, 3]):
        plan = Plan(graph.bind({"1.qkv": keep, "0": [*range(12 * len(keep))]}), graph.structure)
        small = cut(model, graph, plan)
        assert small[1].heads == len(keep)
        check(model, small, graph, plan, torch.randn(x.shape))
