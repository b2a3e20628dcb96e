"""Whole networks: a stem, some blocks and a head."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.random_networks.blocks import WIDTHS, Block, Pick, conv, randomise, sequence

SIZE = 8


@dataclass
class Answer:
    """A dataclass that a network returns."""

    scores: Tensor
    features: Tensor


@dataclass(slots=True)
class Slots:
    """A dataclass without a __dict__."""

    scores: Tensor
    features: Tensor


class Network(nn.Module):
    """A stem, some blocks and a head. With `second`, another input joins after the stem."""

    def __init__(self, stem: nn.Module, second: nn.Module | None, body: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.stem, self.second, self.body, self.head = stem, second, body, head

    def forward(self, x: Tensor, y: Tensor | None = None) -> Any:
        x = self.stem(x)
        if self.second is not None:
            x = x + self.second(y)
        return self.head(self.body(x))


def head(pick: Pick, c: int, n: int) -> nn.Module:
    kind = pick(("pool", "flatten", "conv", "map", "dict", "tuple", "dataclass", "features", "flatten_pool",
                 "slots", "deque", "frozenset"))  # fmt: skip
    pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c, 5))
    if kind == "flatten":
        return nn.Sequential(nn.Flatten(), nn.Linear(c * n * n, 7), nn.ReLU(), nn.Linear(7, 5))
    if kind == "flatten_pool":
        return nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(), nn.Linear(4 * c, 5))
    if kind == "conv":
        return nn.Sequential(conv(c, 5, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    if kind == "map":
        return conv(c, 5)
    if kind == "features":
        return nn.Identity()
    if kind == "dict":
        return Block(lambda m, x: {"out": m.a(x), "aux": m.b(x)}, a=pooled, b=conv(c, 2))
    if kind == "tuple":
        return Block(lambda m, x: (m.a(x), [m.b(x), None]), a=pooled, b=conv(c, 2))
    if kind in ("slots", "deque", "frozenset"):
        answer = {"slots": Slots, "deque": lambda *t: deque(t), "frozenset": lambda a, _: frozenset([a])}[kind]
        return Block(lambda m, x: answer(m.a(x), m.b(x)), a=pooled, b=conv(c, 2))
    if kind == "dataclass":
        return Block(lambda m, x: Answer(m.a(x), m.b(x)), a=pooled, b=conv(c, 2))
    return pooled


class Drawn:
    """A network with inputs to run it on, and the recipe to build it again."""

    def __init__(self, model: nn.Module, inputs: tuple[Tensor, ...], recipe: list[int]) -> None:
        self.model, self.inputs, self.recipe = model, inputs, recipe

    def __repr__(self) -> str:
        return f"build({self.recipe})  # {self.model}"


def assemble(pick: Pick) -> tuple[nn.Module, tuple[Tensor, ...]]:
    width, two = pick(WIDTHS), pick((False, True))
    stem = nn.Sequential(conv(3, width, bias=False), nn.BatchNorm2d(width), nn.ReLU()).double()
    second = conv(2, width, 1) if two else None
    body, c, n = sequence(pick, width, SIZE, pick((1, 2, 3, 4, 5)))
    model = Network(stem, second, body, head(pick, c, n)).double()
    randomise(model)
    generator = torch.Generator().manual_seed(1)
    shapes = [(2, 3, SIZE, SIZE)] + ([(2, 2, SIZE, SIZE)] if two else [])
    return model.eval(), tuple(torch.randn(s, dtype=torch.float64, generator=generator) for s in shapes)


def build(recipe: Sequence[int]) -> Drawn:
    """The network that hypothesis printed."""
    rest = iter(recipe)
    model, inputs = assemble(lambda options: options[next(rest, 0) % len(options)])
    return Drawn(model, inputs, list(recipe))


@st.composite
def networks(draw: st.DrawFn) -> Drawn:
    """Strategy: random networks in float64 with random weights, statistics and inputs."""
    recipe: list[int] = []

    def pick(options: Sequence[Any]) -> Any:
        recipe.append(draw(st.integers(0, len(options) - 1)) if len(options) > 1 else 0)
        return options[recipe[-1]]

    model, inputs = assemble(pick)
    return Drawn(model, inputs, recipe)
