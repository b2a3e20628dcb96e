"""Cost of any plan without cutting: every size is linear in the group widths, every cost a sum of products of sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from torch import Tensor

from sentei.graph.groups import Grouping, slot_arrays
from sentei.graph.record import Trace, Vector


@dataclass(frozen=True)
class Cost:
    """What a network costs on the example inputs it was traced with.

    `macs`: multiply-accumulates of convolutions and matrix products. `params`: elements of all parameters.
    `activation_bytes`: bytes of the outputs of those operations.
    """

    macs: int
    params: int
    activation_bytes: int


class Costs(NamedTuple):
    """As `Cost`, for many width vectors at once: float64 arrays."""

    macs: np.ndarray
    params: np.ndarray
    activation_bytes: np.ndarray


class _Products:
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

    def parts(self, widths: np.ndarray) -> np.ndarray:
        sizes = widths @ self.matrix[:-1] + self.matrix[-1]
        return sizes[..., self.factors].prod(-1) * self.constants

    def total(self, widths: np.ndarray) -> np.ndarray:
        return self.parts(widths).sum(-1)


class CostModel:
    """MACs, parameters and activation bytes as functions of the group widths, exact to the unit."""

    def __init__(self, trace: Trace, grouping: Grouping, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._group_of = grouping.group_of[grouping.unit_of]
        self._n = len(grouping.groups)
        self._widths = np.array([g.width for g in grouping.groups], np.float64)
        self.macs, self.activations, self.params = _Products(self._n), _Products(self._n), _Products(self._n)
        for c in trace.contractions:
            self._add(self.macs, c.constant, c.factors)
            self._add(self.activations, c.itemsize, c.out_factors)
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
                    factors.append(self.params.size(self.row(np.arange(starts[s], starts[s + 1]))))
            self.params.terms.append((constant, factors))
        for products in (self.macs, self.activations, self.params):
            products.freeze()

    def row(self, labels: np.ndarray) -> np.ndarray:
        """Size of a label vector as an affine function of widths: per-group multiplicity, then the constant."""
        row = np.zeros(self._n + 1)
        groups = self._group_of[labels[labels >= 0]]
        counts = np.bincount(groups[groups >= 0], minlength=self._n)
        row[:-1] = counts / np.maximum(self._widths, 1)
        row[-1] = len(labels) - counts.sum()
        return row

    def _add(self, products: _Products, constant: int, factors: Sequence[Vector]) -> None:
        rows = []
        for f in factors:
            if isinstance(f, Tensor):
                rows.append(products.size(self.row(f.numpy())))
            else:
                constant *= f
        products.terms.append((constant, rows))

    def parts(self, name: str, widths: np.ndarray) -> np.ndarray:
        """One cost in its terms, [..., n_terms]: one for each contraction, for `params` one for each parameter."""
        products = {"macs": self.macs, "params": self.params, "activation_bytes": self.activations}[name]
        return products.parts(np.asarray(widths, np.float64))

    def __call__(self, widths: np.ndarray) -> Costs:
        w = np.asarray(widths, np.float64)
        return Costs(self.macs.total(w), self.params.total(w), self.activations.total(w))


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
