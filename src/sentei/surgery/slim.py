"""Run the full model at reduced width without cutting it: every traced model is a weight-shared supernet."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from sentei.graph import ChannelGraph
from sentei.graph.graph import HasKeep
from sentei.graph.resize import named_tensors, swapped
from sentei.surgery.tensors import laid_out, sliced


@contextmanager
def slim(model: nn.Module, graph: ChannelGraph, plan: HasKeep) -> Iterator[nn.Module]:
    """Within the context the model computes what `cut(model, graph, plan)` would, on slices of its own parameters.

    >>> with sentei.slim(model, graph, plan) as subnet:
    ...     loss = criterion(subnet(x), y)
    ...     loss.backward()          # gradients arrive in the full parameters

    It computes the same bits. Slices of runs of neighbouring units are views where that leaves them contiguous; others
    are gathered. Buffers (BatchNorm statistics) are copies: what the subnet does to them is gone afterwards and never
    touches the full model's. Not for use from several threads.
    """
    graph.check_fits(model)
    graph.bind(plan.keep)
    cuts = graph.cuts(plan)
    named = named_tensors(model)
    changed = {name: laid_out(t, named[name]) for name, t in sliced(graph, named, cuts).items()}
    tensors = {id(named[name]): t for name, t in changed.items()}
    for name, t in named.items():
        if not isinstance(t, nn.Parameter):
            tensors[id(t)] = changed.get(name, t).clone()
    with swapped(model, tensors, graph.attributes(model, plan, cuts)):
        yield model
