"""Where a cut network is compared with the one that it was, and which of its channels are left there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from sentei.graph import ChannelGraph
from sentei.plan import Plan
from sentei.supernet.stages import Boundary, feature_ends
from sentei.tasks.task import called
from sentei.train.evaluate import evaluating
from sentei.train.hints import Hint, Hints


def hints_of(model: nn.Module, graph: ChannelGraph, plan: Plan) -> list[Hint]:
    """The features at the end of each spatial size; none where the network has no single tensor anywhere.

    >>> [hint.module for hint in hints_of(resnet20, graph, plan)]
    ['layer1', 'layer2', 'layer3']
    """
    return [Hint(b.module, b.dim, _kept(graph, b, plan)) for b in feature_ends(model, graph)]


def variances(teacher: nn.Module, hints: Sequence[Hint], inputs: Any) -> dict[str, float]:
    """Of what a teacher makes of some samples at each place, over the channels that are wanted."""
    with evaluating(teacher), torch.no_grad(), Hints(hints).of(teacher) as features:
        called(teacher, inputs)
    return {hint.module: float(hint.wanted(features[hint.module]).float().var()) for hint in hints}


def _kept(graph: ChannelGraph, boundary: Boundary, plan: Plan) -> torch.Tensor | None:
    """Channels of the full network's tensor that the cut one's has; those that belong to no unit stay."""
    gone = np.zeros(len(graph.grouping.group_of), bool)
    for name, keep in plan.keep.items():
        gone[np.delete(graph.grouping.units[graph.index(name)], keep)] = True
    kept = ~((boundary.units >= 0) & gone[boundary.units])
    return None if kept.all() else torch.from_numpy(np.flatnonzero(kept))
