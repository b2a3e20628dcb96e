"""Where a cut network is compared with the one that it was, and which of its channels are left there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from sentei.graph import ChannelGraph
from sentei.plan import Plan
from sentei.supernet.stages import feature_ends
from sentei.tasks.task import called
from sentei.train.hints import Hint, Hints
from sentei.train.passes import evaluating


def hints_of(model: nn.Module, graph: ChannelGraph, plan: Plan) -> list[Hint]:
    """The features at the end of each spatial size; none where the network has no single tensor anywhere.

    >>> [hint.module for hint in hints_of(resnet20, graph, plan)]
    ['layer1', 'layer2', 'layer3']
    """
    return [Hint(b.module, b.dim, b.kept(graph, plan)) for b in feature_ends(model, graph)]


def variances(teacher: nn.Module, hints: Sequence[Hint], inputs: Any) -> dict[str, float]:
    """Of what a teacher makes of some samples at each place, over the channels that are wanted."""
    with evaluating(teacher), torch.no_grad(), Hints(hints).of(teacher) as features:
        called(teacher, inputs)
    return {hint.module: float(hint.wanted(features[hint.module]).float().var()) for hint in hints}
