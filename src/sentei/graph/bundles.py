"""Groups whose widths the model's own code ties to each other: they keep the same share of their units, any units.

`attention(x).reshape(batch, length, channels)` with the channels of x, for instance, needs as many channels from the
attention as x has, but not the same ones. A bundle moves in steps: with widths 256 and 8, each step is 32 and 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

Bundle = Sequence[int]
"""Places of the groups among those of the graph."""


def steps_of(widths: Iterable[int]) -> int:
    """The most steps in which widths can shrink in proportion."""
    return math.gcd(*(int(w) for w in widths))


def in_proportion(widths: np.ndarray, full: np.ndarray, bundles: Sequence[Bundle]) -> np.ndarray:
    """Widths [..., n_groups] in which every bundle has the share of its narrowest group, rounded up to whole steps."""
    out = np.array(widths, np.int64)
    for bundle in bundles:
        members = np.asarray(bundle)
        total = steps_of(full[members])
        first = leader(bundle, full)
        step = -(-out[..., first] * total // full[first])
        out[..., members] = step[..., None] * (full[members] // total)
    return out


def leader(bundle: Bundle, full: np.ndarray) -> int:
    """The narrowest group of a bundle, the first of them: the others follow it."""
    return min(bundle, key=lambda i: (int(full[i]), i))


def followers(bundles: Sequence[Bundle], full: np.ndarray) -> set[int]:
    """All groups of bundles but the leaders."""
    return {i for b in bundles for i in b} - {leader(b, full) for b in bundles}


def completed(
    keep: Mapping[str, np.ndarray], bundles: Iterable[Sequence[str]], width: Mapping[str, int]
) -> dict[str, np.ndarray]:
    """What a plan keeps, with more units of the groups in bundles until all of a bundle keep the same share.

    Each keeps as large a share as the one that keeps most, by the first of the units that it would have lost.
    """
    out = dict(keep)
    for names in bundles:
        total = steps_of(width[n] for n in names)
        most = max(-(-len(keep[n]) * total // width[n]) if n in keep else total for n in names)
        for n in names:
            own, wanted = np.asarray(keep.get(n, np.arange(width[n])), np.int64), width[n] // total * most
            if len(own) < wanted:
                lost = np.setdiff1d(np.arange(width[n]), own)
                out[n] = np.sort(np.concatenate([own, lost[: wanted - len(own)]]))
    return out
