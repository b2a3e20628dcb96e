"""Which groups a search may narrow: all, or only those inside branches."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch

from sentei.errors import ConfigError
from sentei.graph import ChannelGraph

Genes = Literal["inner", "all"]


def inner_groups(graph: ChannelGraph) -> list[str]:
    """Names of the prunable groups that lie inside a branch: no addition joins two layers' outputs in them.

    >>> inner_groups(graph)  # of a residual network: the widths between the convolutions of each block
    ['layer1.0.conv1', 'layer1.1.conv1', ...]

    What is left out are residual streams, whose width is shared by every block that adds to them. A network without
    additions has inner groups only.
    """
    streams = _streams(graph)
    return [g.name for i, g in enumerate(graph.groups) if not g.frozen and i not in streams]


def searched_groups(graph: ChannelGraph, genes: Genes) -> list[str]:
    """The groups that `genes` names; ConfigError if there is none."""
    if genes not in ("inner", "all"):
        raise ConfigError(f"genes is {genes!r}; expected 'inner' or 'all'")
    names = inner_groups(graph) if genes == "inner" else [g.name for g in graph.groups if not g.frozen]
    if not names:
        why = sorted({g.why or "" for g in graph.groups if g.frozen})
        other = "; genes='all' searches residual streams too" if genes == "inner" else ""
        raise ConfigError(f"no group of this network can be searched: {'; '.join(why) or 'all are streams'}{other}")
    return names


def _streams(graph: ChannelGraph) -> set[int]:
    """Groups in which an addition joins what two layers have produced."""
    record, grouping = graph.trace_record, graph.grouping
    group_of = grouping.group_of[grouping.unit_of]
    produced = np.zeros(len(group_of), bool)
    if record.produced:
        labels = torch.cat(record.produced).numpy()
        produced[labels[labels >= 0]] = True
    streams: set[int] = set()
    for operands in record.sums:
        met: set[int] = set()
        for operand in operands:
            units = operand.numpy()
            found = set(group_of[units[(units >= 0) & produced[units]]].tolist())
            streams |= met & found
            met |= found
    return streams - {-1}
