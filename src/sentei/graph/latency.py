"""Milliseconds of any plan without running it: measured times of layers, interpolated between two widths an axis."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from torch import Tensor

from sentei.errors import PlanError
from sentei.graph.cost import CostModel, Products
from sentei.graph.record import Contraction, Trace, Vector


class Times(Protocol):
    """Measured times.

    A layer takes c0 + c1 a + c2 b + c3 a b milliseconds, where a and b are its sizes that may shrink (`axes`), each
    rounded up to a multiple of `step`, in which kernels compute; a network takes `scale` times those of all layers,
    `per_byte` for each byte that they write, and `constant`.
    """

    @property
    def coefficients(self) -> np.ndarray:
        """Float64 [n_contractions, 4]."""
        ...

    @property
    def step(self) -> int: ...

    @property
    def scale(self) -> float: ...

    @property
    def per_byte(self) -> float: ...

    @property
    def constant(self) -> float: ...


def axes(c: Contraction) -> tuple[int, ...]:
    """The places of the factors that may shrink, at most two: outputs and inputs of a convolution."""
    if c.kernel is not None:
        return len(c.factors) - 2, len(c.factors) - 1
    return tuple(i for i, f in enumerate(c.factors) if isinstance(f, Tensor))[-2:]


def size(factor: Vector) -> int:
    """How large a factor is in the full network."""
    return factor if isinstance(factor, int) else len(factor)


class Stepped(Products):
    """Products of sizes rounded up to multiples of a step, as far as the full network has them."""

    def __init__(self, full: np.ndarray, step: int) -> None:
        super().__init__(len(full))
        self._widths, self._step = full, step

    def sizes(self, widths: np.ndarray) -> np.ndarray:
        steps = np.ceil(super().sizes(widths) / self._step - 1e-9)
        return np.minimum(steps * self._step, super().sizes(self._widths))


class Latency:
    """A column of a graph's costs."""

    def __init__(self, costs: CostModel, trace: Trace, times: Times) -> None:
        count = len(trace.contractions)
        given = np.asarray(times.coefficients, np.float64)
        if given.shape != (count, 4):
            raise PlanError(
                f"these times are of another model: they know {len(given)} layers, and this graph has {count}. "
                "Measure a table for it: LatencyTable.measure(graph, model)"
            )
        self._layers = Stepped(costs.full, times.step)
        for c, (alone, first, second, both) in zip(trace.contractions, given, strict=True):
            a, b = ([c.factors[i] for i in axes(c)] + [1, 1])[:2]
            for value, factors in ((alone, ()), (first, (a,)), (second, (b,)), (both, (a, b))):
                costs.add(self._layers, times.scale * value, factors)
        self._layers.freeze()
        self._bytes = costs.columns["activation_bytes"]
        self._per_byte, self._rest = times.per_byte, times.constant / max(count, 1)

    def parts(self, widths: np.ndarray) -> np.ndarray:
        layers = self._layers.parts(widths)
        layers = layers.reshape(*layers.shape[:-1], -1, 4).sum(-1)
        found: np.ndarray = layers + self._per_byte * self._bytes.parts(widths) + self._rest
        return found

    def total(self, widths: np.ndarray) -> np.ndarray:
        return self.parts(widths).sum(-1)
