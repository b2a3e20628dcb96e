"""How sure a difference between two methods is: over seeds, and over the images of the test set.

Seeds are paired, because both methods start from the same network, and with the same seed from the same order of
images. Two things make a difference of means uncertain: another seed gives another result, and another test set of the
same size would too. Variances add, so that the standard error is

    sqrt(s^2 / k  +  (p (1 - p) + q (1 - q)) / n)

with s the standard deviation of the k paired differences, p and q the mean accuracies, n the test images. This second
term takes the errors of both networks to be independent. They are not, as hard images are hard for both: where it is
known which images each network answers right, the second term is that of `sentei.answers.error_of_difference`. The
seeds' scatter on single images is in both terms, so that the interval is a little cautious. Degrees of freedom are
Satterthwaite's: k - 1 where seeds decide, many where images do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sentei.answers import Right, error_of_difference, unpacked

Answers = tuple[Sequence[Right], Sequence[Right]]
"""Of each seed of two methods."""
LEVEL = 0.95
"""Of the intervals; what is called significant has an adjusted p below the rest."""


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation of a figure over seeds."""

    mean: float
    deviation: float | None
    """None with one seed."""
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread | None:
        """None of no values.

        >>> Spread.of([1.0, 2.0, 3.0])
        Spread(mean=2.0, deviation=1.0, count=3)
        """
        if not values:
            return None
        deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
        return cls(float(np.mean(values)), deviation, len(values))


@dataclass(frozen=True)
class Difference:
    """A mean of paired differences with its interval, in units of the metric."""

    mean: float
    count: int
    """Seeds that both methods have finished."""
    low: float | None
    high: float | None
    """Ends of the 95 % interval; None with one seed."""
    p: float | None
    """Two-sided, of no difference at all; None with one seed."""
    seed_error: float | None
    """Standard error over seeds."""
    test_error: float | None
    """Standard error by the images of the test set; None where it is not known."""

    @property
    def error(self) -> float:
        """Standard error of the mean, as far as it is known."""
        return math.hypot(self.seed_error or 0.0, self.test_error or 0.0)


def binomial_error(share: float, images: int) -> float:
    """Standard error of a share of so many images.

    >>> round(binomial_error(0.9, 10_000), 6)
    0.003
    """
    return math.sqrt(max(share * (1 - share), 0.0) / images)


def paired(
    first: Sequence[float],
    second: Sequence[float],
    images: int | None = None,
    answers: Answers | None = None,
) -> Difference:
    """By how much the first is higher than the second, seed by seed; see the head of this module.

    >>> paired([0.90, 0.92, 0.91], [0.89, 0.90, 0.91]).mean
    0.01

    `images` are those of the test set where the figures are shares of them, `answers` say which of them were right,
    for each seed of both, where that is known. With neither the seeds alone speak, as in the paired t-test.
    ValueError for sequences that do not pair.
    """
    if len(first) != len(second) or not len(first):
        raise ValueError(f"{len(first)} and {len(second)} values; expected as many of both, 1 or more")
    gaps = np.asarray(first, np.float64) - np.asarray(second, np.float64)
    mean, count = round(float(gaps.mean()), 12), len(gaps)
    test = _by_images(first, second, images, answers)
    if count == 1:
        return Difference(mean, 1, None, None, None, None, test)
    seeds = float(gaps.std(ddof=1)) / math.sqrt(count)
    error = math.hypot(seeds, test or 0.0)
    freedom = (count - 1) * (error / seeds) ** 4 if seeds > error * 1e-6 else math.inf
    from scipy import stats  # takes a second, and most commands need none

    reach = error * float(stats.t.ppf((1 + LEVEL) / 2, freedom))
    return Difference(mean, count, mean - reach, mean + reach, _p(mean, error, freedom), seeds, test)


def answers_of(first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]]) -> Answers | None:
    """The answers of two methods, from what is told of each of their seeds; None unless all have "answers".

    >>> answers_of([{"answers": "3:oA=="}], [{"answers": None}])
    """
    if not all(result.get("answers") for result in (*first, *second)):
        return None
    return [unpacked(result["answers"]) for result in first], [unpacked(result["answers"]) for result in second]


def _by_images(
    first: Sequence[float], second: Sequence[float], images: int | None, answers: Answers | None
) -> float | None:
    if answers is not None:
        return error_of_difference(*answers)
    if images is None:
        return None
    return math.hypot(*(binomial_error(float(np.mean(values)), images) for values in (first, second)))


def _p(mean: float, error: float, freedom: float) -> float:
    if error == 0:
        return 1.0 if mean == 0 else 0.0
    from scipy import stats

    return float(2 * stats.t.sf(abs(mean) / error, freedom))


def holm(values: Sequence[float]) -> list[float]:
    """p values, each raised so that among all of them a false alarm is as rare as for one (Holm 1979).

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(values)), key=values.__getitem__)
    raised, least = [0.0] * len(values), 0.0
    for rank, i in enumerate(order):
        least = max(least, min(1.0, (len(values) - rank) * values[i]))
        raised[i] = least
    return raised
