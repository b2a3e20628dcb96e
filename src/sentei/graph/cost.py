"""Cost of any plan without cutting: every size is linear in the group widths, every cost a sum of products of sizes."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from torch import Tensor

from sentei.errors import PlanError
from sentei.graph.groups import Grouping, slot_arrays
from sentei.graph.lives import live_at_once
from sentei.graph.record import Trace, Vector

COUNTS = ("macs", "params", "activation_bytes", "memory")
"""The costs that are whole numbers."""


@dataclass(frozen=True)
class Cost:
    """What a network costs on the example inputs it was traced with.

    `macs`: multiply-accumulates of convolutions and matrix products. `params`: elements of all parameters.
    `activation_bytes`: bytes of the outputs of those operations. `memory`: the most bytes of activations, inputs
    included, that are alive at once, each from the operation that makes it to the last one that reads it.
    `latency_ms`: predicted milliseconds of a forward pass; None without measured times (`ChannelGraph.with_latency`).
    """

    macs: int
    params: int
    activation_bytes: int
    memory: int
    latency_ms: float | None = None


class Costs:
    """As `Cost`, for many width vectors at once: float64 arrays, each computed when it is asked for."""

    def __init__(self, model: CostModel, widths: np.ndarray) -> None:
        self._model, self._widths = model, np.asarray(widths, np.float64)

    @cached_property
    def macs(self) -> np.ndarray:
        return self._model.total("macs", self._widths)

    @cached_property
    def params(self) -> np.ndarray:
        return self._model.total("params", self._widths)

    @cached_property
    def activation_bytes(self) -> np.ndarray:
        return self._model.total("activation_bytes", self._widths)

    @cached_property
    def memory(self) -> np.ndarray:
        return self._model.total("memory", self._widths)

    @cached_property
    def latency_ms(self) -> np.ndarray:
        return self._model.total("latency_ms", self._widths)


class Products:
    """Sums of constant * product of sizes; sizes are affine in the widths."""

    def __init__(self, n_groups: int) -> None:
        self.rows: list[np.ndarray] = [np.zeros(n_groups + 1)]
        self.rows[0][-1] = 1.0  # a size that is always 1
        self.terms: list[tuple[float, list[int]]] = []

    def size(self, row: np.ndarray) -> int:
        self.rows.append(row)
        return len(self.rows) - 1

    def freeze(self) -> None:
        longest = max((len(f) for _, f in self.terms), default=0)
        self.factors = np.array([f + [0] * (longest - len(f)) for _, f in self.terms], np.int64).reshape(-1, longest)
        self.constants = np.array([c for c, _ in self.terms])
        self.matrix = np.stack(self.rows).T

    def sizes(self, widths: np.ndarray) -> np.ndarray:
        found: np.ndarray = widths @ self.matrix[:-1] + self.matrix[-1]
        return found

    def parts(self, widths: np.ndarray) -> np.ndarray:
        found: np.ndarray = self.sizes(widths)[..., self.factors].prod(-1) * self.constants
        return found

    def total(self, widths: np.ndarray) -> np.ndarray:
        return self.parts(widths).sum(-1)


class Column(Protocol):
    """One cost as a function of the widths, float64 [..., n_groups]."""

    def parts(self, widths: np.ndarray) -> np.ndarray:
        """In its terms, [..., n_terms]: one for each contraction, for `params` one for each parameter."""
        ...

    def total(self, widths: np.ndarray) -> np.ndarray: ...


class CostModel:
    """All costs as functions of the group widths, exact to the unit."""

    def __init__(self, trace: Trace, grouping: Grouping, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._group_of = grouping.group_of[grouping.unit_of]
        self._n = len(grouping.groups)
        self.full = np.array([g.width for g in grouping.groups], np.float64)
        macs, activations = Products(self._n), Products(self._n)
        for c in trace.contractions:
            self.add(macs, c.constant, c.factors)
            self.add(activations, c.itemsize, c.out_factors)
        lives = Products(self._n)
        for life in trace.lives:
            self.add(lives, life.itemsize, life.sizes)
        for products in (macs, activations, lives):
            products.freeze()
        peak = Peak(lives, live_at_once(trace.lives))
        self.columns: dict[str, Column] = {
            "macs": macs, "params": self._params(trace, shapes), "activation_bytes": activations, "memory": peak,
        }  # fmt: skip

    def _params(self, trace: Trace, shapes: Mapping[str, tuple[int, ...]]) -> Products:
        products = Products(self._n)
        slot, _ = slot_arrays(trace)
        starts = np.searchsorted(slot, np.arange(len(trace.sizes) + 1))
        for name, shape in shapes.items():
            factors: list[int] = []
            constant = 1
            for d, n in enumerate(shape):
                s = trace.slots.get((name, d))
                if s is None:
                    constant *= n
                else:
                    factors.append(products.size(self.row(np.arange(starts[s], starts[s + 1]))))
            products.terms.append((constant, factors))
        products.freeze()
        return products

    def row(self, labels: np.ndarray) -> np.ndarray:
        """Size of a label vector as an affine function of widths: per-group multiplicity, then the constant."""
        row = np.zeros(self._n + 1)
        groups = self._group_of[labels[labels >= 0]]
        counts = np.bincount(groups[groups >= 0], minlength=self._n)
        row[:-1] = counts / np.maximum(self.full, 1)
        row[-1] = len(labels) - counts.sum()
        return row

    def add(self, products: Products, constant: float, factors: Sequence[Vector]) -> None:
        """Add a term: a constant times sizes, which are label vectors or plain numbers."""
        rows = []
        for f in factors:
            if isinstance(f, Tensor):
                rows.append(products.size(self.row(f.numpy())))
            else:
                constant *= f
        products.terms.append((constant, rows))

    def parts(self, name: str, widths: np.ndarray) -> np.ndarray:
        """One cost in its terms, [..., n_terms]: one for each contraction, for `params` one for each parameter."""
        return self.columns[name].parts(np.asarray(widths, np.float64))

    def total(self, name: str, widths: np.ndarray) -> np.ndarray:
        """One cost, [...]; PlanError for milliseconds without measured times."""
        if name not in self.columns:
            raise PlanError(
                "milliseconds are asked for, and this graph has no measured times: "
                "graph.with_latency(LatencyTable.measure(graph, model)) adds them"
            )
        return self.columns[name].total(np.asarray(widths, np.float64))

    def __call__(self, widths: np.ndarray) -> Costs:
        return Costs(self, widths)

    def with_column(self, name: str, column: Column) -> CostModel:
        """The same costs and one more."""
        new = copy.copy(self)
        new.columns = {**self.columns, name: column}
        return new


class Peak:
    """The most that is alive at once: the largest of some sums of sizes."""

    def __init__(self, sizes: Products, alive: np.ndarray) -> None:
        self._sizes, self._alive = sizes, alive.T.astype(np.float64)

    def parts(self, widths: np.ndarray) -> np.ndarray:
        return self.total(widths)[..., None]

    def total(self, widths: np.ndarray) -> np.ndarray:
        found: np.ndarray = (self._sizes.parts(widths) @ self._alive).max(-1, initial=0.0)
        return found


def irregular_vectors(trace: Trace) -> list[np.ndarray]:
    """Label vectors of contractions that are not one whole slot: groups must be uniform over these too."""
    starts = set(np.cumsum([0, *trace.sizes]).tolist())
    out = {}
    for c in trace.contractions:
        for f in (*c.factors, *c.out_factors):
            if isinstance(f, Tensor) and f.numel():
                v = f.numpy()
                whole = int(v[0]) in starts and int(v[-1]) + 1 in starts and bool((np.diff(v) == 1).all())
                if not whole:
                    out[v.tobytes()] = v[v >= 0]
    return list(out.values())
