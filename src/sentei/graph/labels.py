"""Label layers: which unit each element of a tensor belongs to.

A *layer* is an int64 tensor of the shape of the tensor that it describes. Each element is a label (a place in one
dimension of one parameter) or -1 where no unit lives. Dimensions along which a layer does not vary have stride 0, so an
(N, C, H, W) activation costs C integers. A tensor carries one layer per independent axis: a conv weight has one that
varies along its outputs and one that varies along its inputs, an activation usually one along its channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

Layers = tuple[Tensor, ...]
NONE = -1


def varying(layer: Tensor) -> tuple[int, ...]:
    """Dimensions along which the layer changes."""
    strides = layer.stride()
    return tuple([d for d, n in enumerate(layer.shape) if n > 1 and strides[d]])


def stay(labels: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Which elements of a label vector stay where the labels are `kept`; what carries no label does."""
    return np.asarray((labels < 0) | kept[np.maximum(labels, 0)])


def narrow(layer: Tensor, keep: Sequence[int]) -> Tensor:
    """The layer with every dimension not in `keep` cut to its first index (size 1)."""
    return layer[tuple([slice(None) if d in keep else slice(0, 1) for d in range(layer.ndim)])]


def same(a: Tensor, b: Tensor) -> bool:
    """Equal layers, without visiting the dimensions along which they are constant."""
    vary = varying(a)
    return a is b or (a.shape == b.shape and vary == varying(b) and torch.equal(narrow(a, vary), narrow(b, vary)))


def tidy(layer: Tensor, shape: Sequence[int] | None = None) -> Tensor:
    """Give stride 0 to the dimensions along which the values are equal, then expand to `shape`.

    A layer that holds one unit everywhere keeps the largest of its dimensions: many channels that are one unit are not
    the same as no channels.
    """
    full = layer.shape if shape is None else shape
    small = narrow(layer, varying(layer))
    left = sorted((d for d in range(small.ndim) if small.shape[d] > 1), key=lambda d: small.shape[d])
    for d in list(left):
        if bool((small.narrow(d, 0, 1) == small).all()) and (len(left) > 1 or int(small.flatten()[0]) == NONE):
            small = small.narrow(d, 0, 1)
            left.remove(d)
    return small.expand(full)


def place(vector: Tensor, dim: int, shape: Sequence[int]) -> Tensor:
    """A layer of `shape` that varies along `dim` only."""
    strides = [0] * len(shape)
    strides[dim] = vector.stride(0)
    return vector.as_strided(shape, strides)


def blocks(old: Sequence[int], new: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Factor a reshape into the smallest runs of dimensions with equal products.

    >>> blocks((2, 6, 5), (2, 2, 3, 5))
    [([0], [0]), ([1], [1, 2]), ([2], [3])]
    """
    out: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(old) or j < len(new):
        a, b = old[i : i + 1], new[j : j + 1]
        ni, nj = i + len(a), j + len(b)
        while math.prod(a) != math.prod(b):
            if math.prod(a) < math.prod(b):
                a, ni = old[i : ni + 1], ni + 1
            else:
                b, nj = new[j : nj + 1], nj + 1
        out.append((list(range(i, ni)), list(range(j, nj))))
        i, j = ni, nj
    return out


def reshape(layer: Tensor, shape: Sequence[int]) -> tuple[Tensor, list[list[int]]]:
    """The layer of a reshaped tensor, and the runs of new dimensions into which one varying dimension was split."""
    vary = set(varying(layer))
    keep: set[int] = set()
    sizes = list(shape)
    splits = []
    for old, new in blocks(layer.shape, shape):
        if vary.intersection(old):
            keep.update(old)
            if sum(layer.shape[d] > 1 for d in old) == 1 and sum(shape[d] > 1 for d in new) > 1:
                splits.append([d for d in new if shape[d] > 1])
        else:
            for d in new:
                sizes[d] = 1
    moved = tidy(narrow(layer, tuple(keep)).reshape(sizes), shape)
    vary = set(varying(moved))
    return moved, [dims for dims in splits if len(vary.intersection(dims)) > 1]


def overlap_clusters(dims: Sequence[Sequence[int]]) -> list[list[int]]:
    """Indices of the dimension sets, grouped so that sets which share a dimension fall together."""
    clusters: list[tuple[set[int], list[int]]] = []
    for i, ds in enumerate(dims):
        hit = [c for c in clusters if c[0].intersection(ds)]
        merged = (set(ds).union(*(c[0] for c in hit)), sorted([i, *(k for c in hit for k in c[1])]))
        clusters = [c for c in clusters if c not in hit] + [merged]
    return [c[1] for c in clusters]


def first_along(layer: Tensor, dim: int) -> Tensor:
    """The labels along one dimension, read at the first index of all others. Shape [size]."""
    return layer.as_strided((layer.shape[dim],), (layer.stride(dim),))
