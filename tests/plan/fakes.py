"""A channel graph of plain conv layers with costs by formula, for tests of budgets and allocation alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import numpy as np
from hypothesis import strategies as st

from sentei.errors import PlanError
from sentei.graph import Structure
from sentei.plan import Plan


@dataclass(frozen=True)
class FakeGroup:
    name: str
    width: int
    frozen: bool = False
    multiplicity: int = 1
    why: str | None = None

    @property
    def members(self) -> tuple[Any, ...]:
        indices = np.arange(self.width * self.multiplicity).reshape(self.width, self.multiplicity)
        return (SimpleNamespace(param=f"{self.name}.weight", dim=0, indices=indices),)


@dataclass(frozen=True)
class FakeGraph:
    groups: tuple[FakeGroup, ...]
    layers: tuple[tuple[int, int, int, int], ...]
    """(input group, output group, kernel area, output pixels) of each layer."""
    bundles: tuple[tuple[int, ...], ...] = ()

    @property
    def structure(self) -> Structure:
        params = {
            f"{i}.weight": (self.groups[target].width, self.groups[source].width, kernel)
            for i, (source, target, kernel, _) in enumerate(self.layers)
        }
        groups = {g.name: (g.width, g.frozen) for g in self.groups}
        return Structure(params, groups, None, f"{self.layers}{groups}")

    def widths(self, plan: Plan | None = None) -> np.ndarray:
        keep = plan.keep if plan else {}
        return np.array([len(keep.get(g.name, range(g.width))) for g in self.groups], np.int64)

    @cached_property
    def _columns(self) -> np.ndarray:
        return np.array(self.layers, np.int64).T

    def costs(self, widths: np.ndarray) -> Any:
        source, target, kernel, pixels = self._columns
        multiplicity = np.array([g.multiplicity for g in self.groups])
        channels = (np.asarray(widths) * multiplicity).astype(np.float64)
        weights = channels[..., source] * channels[..., target] * kernel
        return SimpleNamespace(
            macs=(weights * pixels).sum(-1),
            params=weights.sum(-1),
            activation_bytes=(4 * channels[..., target] * pixels).sum(-1),
        )

    def cost(self, plan: Plan | None = None) -> Any:
        full = np.array([g.width for g in self.groups])
        costs = self.costs(full if plan is None else plan.widths(self))  # type: ignore[arg-type]
        return SimpleNamespace(**{name: int(value) for name, value in vars(costs).items()})

    def group(self, name: str) -> FakeGroup:
        for group in self.groups:
            if group.name == name:
                return group
        raise PlanError(f"no group {name!r}")

    def bind(self, keep: Mapping[str, Any]) -> dict[str, np.ndarray]:
        for name, units in keep.items():
            group = self.group(name)
            if group.frozen and len(units) < group.width:
                raise PlanError(f"group {name!r} is frozen")
            if np.max(units) >= group.width:
                raise PlanError(f"group {name!r} has {group.width} units")
        return dict(keep)


def chain(*widths: int, kernel: int = 9, pixels: int = 64, multiplicity: int = 1) -> FakeGraph:
    """Input (3) -> widths -> output (10), both ends frozen."""
    inner = (FakeGroup(f"conv{i}", w, multiplicity=multiplicity) for i, w in enumerate(widths))
    groups = (FakeGroup("input", 3, True), *inner, FakeGroup("head", 10, True))
    return FakeGraph(groups, tuple((i, i + 1, kernel, pixels) for i in range(len(groups) - 1)))


def resnet(widths: tuple[int, ...] = (16, 32, 64), blocks: int = 3) -> FakeGraph:
    """The groups of a CIFAR ResNet: one residual group per stage, one inner group per block."""
    groups, layers, source = [FakeGroup("input", 3, True)], [], 0
    for stage, width in enumerate(widths):
        stream = len(groups)
        groups.append(FakeGroup(f"stream{stage}", width))
        pixels = 1024 // 4**stage
        if stage == 0:
            layers.append((source, stream, 9, pixels))
        for block in range(blocks):
            inner = len(groups)
            groups.append(FakeGroup(f"stage{stage}.{block}.conv1", width))
            start = source if block == 0 and stage else stream
            layers += [(start, inner, 9, pixels), (inner, stream, 9, pixels)]
        source = stream
    groups.append(FakeGroup("head", 10, True))
    layers.append((source, len(groups) - 1, 1, 1))
    return FakeGraph(tuple(groups), tuple(layers))


@st.composite
def graphs(draw: st.DrawFn) -> FakeGraph:
    """Random layers between 2 to 7 groups, of which some are frozen."""
    n = draw(st.integers(2, 7))
    groups = [
        FakeGroup(
            f"g{i}",
            draw(st.integers(1, 90)),
            draw(st.booleans()) and i > 0,
            draw(st.sampled_from((1, 1, 2, 8))),
        )
        for i in range(n)
    ]
    layer = st.tuples(
        st.integers(0, n - 1), st.integers(0, n - 1), st.sampled_from((1, 9)), st.sampled_from((1, 16, 256))
    )
    return FakeGraph(tuple(groups), tuple(draw(st.lists(layer, min_size=n, max_size=2 * n))))


def scores_for(graph: FakeGraph, seed: int = 0) -> dict[str, np.ndarray]:
    """Random scores with many ties."""
    rng = np.random.default_rng(seed)
    return {g.name: rng.integers(0, 5, g.width).astype(float) for g in graph.groups if not g.frozen}
