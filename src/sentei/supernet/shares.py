"""The widths that a supernet is trained for: a short grid of shares of each group."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sentei.errors import ConfigError
from sentei.graph import ChannelGraph
from sentei.plan import Constraints
from sentei.search import Space


def shares(graph: ChannelGraph, names: Sequence[str], constraints: Constraints, levels: int = 10) -> Space:
    """Shares 1/levels, 2/levels, ..., 1 of the width of each named group, rounded to what the constraints allow.

    >>> shares(graph, ["layer1.0.conv1"], Constraints()).choices[0]
    array([ 4,  8, 12, 16])

    ConfigError if the constraints leave nothing to choose.
    """
    if levels < 2:
        raise ConfigError(f"levels is {levels}; expected 2 or more widths a group")
    ladder = constraints.ladder(graph)
    genes = np.array([graph.index(name) for name in names], np.int64)
    full, step, floor = ladder.full[genes, None], ladder.step[genes, None], ladder.floor[genes, None]
    widths = np.floor(np.arange(1, levels + 1) / levels * full / step + 0.5).astype(np.int64) * step
    widths[:, -1:] = full
    rows = [np.unique(row) for row in np.clip(widths, np.maximum(floor, 1), full)]
    used = [i for i, row in enumerate(rows) if len(row) > 1]
    if not used:
        raise ConfigError(
            f"the constraints leave nothing to search in the {len(rows)} groups that may shrink between stage "
            f"boundaries: {constraints!r}; loosen them, or search stage interfaces too"
        )
    return Space(
        tuple(names[i] for i in used), tuple(rows[i] for i in used), genes[used], np.asarray(ladder.full).copy()
    )
