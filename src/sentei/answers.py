"""Which samples of a test set a network answers right, and how sure that makes a difference between two networks.

Two networks that see the same samples mostly fail on the same ones, so that their difference is known far better than
either accuracy. Kept are their number and a bit for each, as text: 1.7 kB for 10,000 samples.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Right = npt.NDArray[np.bool_]


def packed(right: Right) -> str:
    """As text.

    >>> packed(np.array([True, False, True]))
    '3:oA=='
    """
    return f"{len(right)}:{base64.b64encode(np.packbits(right).tobytes()).decode()}"


def unpacked(text: str) -> Right:
    """What `packed` has written; ValueError for anything else.

    >>> unpacked("3:oA==")
    array([ True, False,  True])
    """
    count, _, bits = text.partition(":")
    found = np.frombuffer(base64.b64decode(bits, validate=True), np.uint8)
    if len(found) != math.ceil(int(count) / 8):
        raise ValueError(f"{len(found)} bytes for {count} samples")
    return np.unpackbits(found, count=int(count)).astype(bool)


def error_to_dense(answers: Mapping[str, str] | None) -> float | None:
    """Standard error of the difference between the two networks of a summary; None where answers are not known."""
    return error_of_difference(*([unpacked(answers[role])] for role in ("pruned", "base"))) if answers else None


def error_of_difference(first: Sequence[Right], second: Sequence[Right]) -> float:
    """Standard error, by the samples, of the difference between two mean accuracies.

    The seeds of each method are averaged sample by sample; what is left is one difference d a sample. Over n of them

        sqrt(sum(d^2) + 1 - sum(d)^2 / (n + 2)) / (n + 2)

    which for one seed is the error of matched shares, with half a sample more in each cell of their table: two networks
    that fail on the same few samples are not known to be equal (Agresti and Min 2005, Statistics in Medicine 24).

    >>> right = np.arange(1000) < 900
    >>> round(error_of_difference([right], [right]), 4), round(error_of_difference([right], [np.roll(right, 50)]), 4)
    (0.001, 0.01)
    """
    mean: Any = [np.mean(np.asarray(side, np.float64), axis=0) for side in (first, second)]
    gaps = mean[0] - mean[1]
    count = len(gaps) + 2
    return float(math.sqrt((gaps**2).sum() + 1 - gaps.sum() ** 2 / count) / count)
