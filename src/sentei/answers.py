"""Which samples of a test set a network answers right, and how sure that makes a difference between two networks.

Two networks that see the same samples mostly fail on the same ones, so that their difference is known far better than
either accuracy. Kept are their number and a bit for each, as text: 1.7 kB for 10,000 samples.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
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


def error_of_difference(first: Sequence[Right], second: Sequence[Right]) -> float:
    """Standard error, by the samples, of the difference between two mean accuracies.

    The seeds of each method are averaged sample by sample; what is left is one difference a sample, whose standard
    deviation over n samples counts sqrt(n) times less. With one seed it is that of McNemar's test.

    >>> error_of_difference([np.array([True, True, False, True])], [np.array([True, False, False, True])])
    0.25
    """
    mean: Any = [np.mean(np.asarray(side, np.float64), axis=0) for side in (first, second)]
    gaps = mean[0] - mean[1]
    return float(gaps.std(ddof=1) / math.sqrt(len(gaps))) if len(gaps) > 1 else math.inf
