"""By how much one way is ahead of another, and whether that may be chance."""

from __future__ import annotations

from collections.abc import Sequence

from ledger.book import Line
from sentei.comparison.statistics import Difference, answers_of, paired

TEST_IMAGES = 10_000


def difference(lines: Sequence[Line], reference: Sequence[Line]) -> str:
    """In points of test accuracy, over the seeds that both have."""
    by_seed = {line["row"]["seed"]: line for line in reference}
    pairs = [(line, by_seed[line["row"]["seed"]]) for line in lines if line["row"]["seed"] in by_seed]
    if not pairs:
        return ""
    own, others = ([pair[i] for pair in pairs] for i in (0, 1))
    values = [[line["test"] for line in side] for side in (own, others)]
    found = paired(*values, images=TEST_IMAGES, answers=answers_of(own, others))
    remarks = ["tie"] if abs(found.mean) < _doubtful(found) else []
    remarks += (
        [f"{found.count} seed{'s' if found.count > 1 else ''}"] if found.count < max(len(lines), len(reference)) else []
    )
    told = f" ({', '.join(remarks)})" if remarks else ""
    return f"{100 * found.mean:+.2f} ± {100 * found.error:.2f}{told}"


def _doubtful(found: Difference) -> float:
    """Below this a difference may be chance."""
    interval = found.high - found.mean if found.high is not None else 0.0
    return max(2 * found.error, interval)
