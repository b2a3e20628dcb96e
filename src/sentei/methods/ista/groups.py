"""Which groups zero BatchNorm scales can remove, and why others stay whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from sentei.errors import ConfigError
from sentei.graph import ChannelGraph
from sentei.methods.common.genes import Genes, searched_groups
from sentei.plan import Constraints
from sentei.surgery.scales import scales_of, unsilenced


def shrinking(
    model: nn.Module, graph: ChannelGraph, genes: Genes, keep: Sequence[str], inputs: Any
) -> tuple[list[str], dict[str, str]]:
    """Groups that zero scales can remove, and those that they cannot, each with the reason.

    ConfigError if there is none.
    """
    floor = Constraints(keep=tuple(keep)).ladder(graph).floor
    names = [n for n in searched_groups(graph, genes) if floor[graph.index(n)] < graph.group(n).width]
    left = {n: why for n in names if (why := _unusable(model, graph, n))}
    usable = [n for n in names if n not in left]
    seen = unsilenced(model, graph, usable, inputs) if usable else {}
    left |= {n: f"it varies where {where} reads it even if its scales are zero" for n, where in seen.items()}
    usable = [n for n in usable if n not in seen]
    if not usable:
        name, why = next(iter(left.items()), ("the network", "no group may shrink"))
        raise ConfigError(
            f"ista needs groups that BatchNorm scales can silence, and found none: {name}, for instance: {why}. "
            "Methods that need no BatchNorm: taylor, l1, uniform; retrain with BatchNorm (affine=True) to use ista"
        )
    return usable, left


def _unusable(model: nn.Module, graph: ChannelGraph, name: str) -> str | None:
    if any(graph.index(name) in bundle for bundle in graph.bundles):
        return "it must keep the same share as other groups"
    scales = scales_of(model, graph.group(name))
    if not scales:
        return "no BatchNorm with a scale (gamma) normalises it"
    frozen = [s.norm for s in scales if not model.get_parameter(s.gamma).requires_grad]
    return f"the scale of {frozen[0]} is frozen (requires_grad=False)" if frozen else None
