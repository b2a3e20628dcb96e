"""Sizes that a cut model meets, held against those that a plan leaves.

Labels alone cannot tell where a unit has several channels: whether a roll moves as many of them as it did, say.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from sentei.graph.labels import stay
from sentei.graph.record import At, Contraction, Trace, Vector


@dataclass(frozen=True)
class Strayed:
    """A size that is not what a plan leaves; `labels` are those that the full model met there."""

    message: str
    labels: np.ndarray
    where: str
    at: At


def other_sizes(full: Trace, cut: Trace, kept: np.ndarray, ended: bool, same_inputs: bool) -> Strayed | None:
    """The first place in a pass of a cut model that has another size than the labels that are kept leave there.

    Operations are known again by their number among those of their name in a module, where both passes run equally many
    (torch.einsum does without products over one channel). A pass that has not `ended` is compared as far as it came.
    """
    found = [*_cuts(full, cut, kept, ended)]
    if same_inputs and full.sized:
        found += [*_shapes(full, cut, kept, ended), *_contractions(full, cut, kept, ended)]
    return min(found, key=lambda f: f.at.op, default=None)


def _comparable(full: Trace, cut: Trace, where: str, operation: str, ended: bool) -> bool:
    return not ended or full.counts[where, operation] == cut.counts.get((where, operation))


def _cuts(full: Trace, cut: Trace, kept: np.ndarray, ended: bool) -> Iterator[Strayed]:
    for occurrence, was in full.cuts.items():
        now = cut.cuts.get(occurrence)
        if now is None or len(now.fronts) != len(was.fronts) or not _comparable(full, cut, *occurrence[:2], ended):
            continue
        for a, b in zip(was.fronts, now.fronts, strict=True):
            if left(a, kept) != len(b):
                text = f"cuts channels at {len(b)}, where {left(a, kept)} are left"
                yield Strayed(text, _labels(was.fronts), now.where, now.at)


def _shapes(full: Trace, cut: Trace, kept: np.ndarray, ended: bool) -> Iterator[Strayed]:
    for occurrence, was in full.shapes.items():
        now = cut.shapes.get(occurrence)
        if now is None or len(now.sizes) != len(was.sizes) or not _comparable(full, cut, *occurrence[:2], ended):
            continue
        thin = 1 in [left(a, kept) for a in was.sizes if isinstance(a, Tensor)]
        if thin and was.at.step != now.at.step:
            continue  # torch.einsum reshapes otherwise where a size is one
        for a, b in zip(was.sizes, now.sizes, strict=True):
            if isinstance(a, Tensor) and left(a, kept) != _size(b):
                text = f"is seen as {[_size(n) for n in now.sizes]}, where {left(a, kept)} channels are left"
                yield Strayed(text, _labels(was.sizes), now.where, now.at)


def _contractions(full: Trace, cut: Trace, kept: np.ndarray, ended: bool) -> Iterator[Strayed]:
    before, after = _by_operation(full), _by_operation(cut)
    for (where, operation), contractions in before.items():
        if not _comparable(full, cut, where, operation, ended):
            continue
        for was, now in zip(contractions, after.get((where, operation), ()), strict=False):
            thin = 1 in [left(f, kept) for f in (*was.factors, *was.out_factors)]
            for a, b in ((was.factors, now.factors), (was.out_factors, now.out_factors)):
                expected, sizes = [left(f, kept) for f in a], [_size(f) for f in b]
                # Where a size is one, matmul folds batches.
                folded = (thin or len(a) != len(b)) and math.prod(expected) == math.prod(sizes)
                if expected != sizes and not folded:
                    text = f"sizes are {sizes} where {expected} channels or positions are left"
                    yield Strayed(text, _labels([*was.factors, *was.out_factors]), now.where, now.at)


def _by_operation(trace: Trace) -> dict[tuple[str, str], list[Contraction]]:
    out: dict[tuple[str, str], list[Contraction]] = defaultdict(list)
    for c in trace.contractions:
        out[c.where, c.operation].append(c)
    return out


def _labels(sizes: list[Tensor] | list[Vector] | tuple[Vector, ...]) -> np.ndarray:
    return np.concatenate([np.zeros(0, np.int64), *(v.numpy().reshape(-1) for v in sizes if isinstance(v, Tensor))])


def _size(size: Vector) -> int:
    return size if isinstance(size, int) else len(size)


def left(size: Vector, kept: np.ndarray) -> int:
    """How much of a size a plan leaves."""
    return size if isinstance(size, int) else int(stay(size.numpy(), kept).sum())
