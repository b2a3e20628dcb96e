"""Remove the units that a plan drops: a physically smaller module of the same class."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from sentei.errors import PlanError
from sentei.graph import ChannelGraph
from sentei.graph.copying import rebuilt, refreshed
from sentei.graph.graph import HasKeep
from sentei.graph.resize import named_tensors
from sentei.surgery.history import cut_once_more
from sentei.surgery.stale import remember_cut
from sentei.surgery.tensors import laid_out, sliced


def cut(model: nn.Module, graph: ChannelGraph, plan: HasKeep) -> nn.Module:
    """A new model without the units that `plan` removes. The original is untouched.

    >>> small = sentei.cut(model, graph, sentei.uniform(graph, sentei.Budget(macs=0.5)))

    Same Python class, same forward code, same state_dict names; parameters are sliced and attributes (in_channels,
    groups, num_features, normalized_shape, ...) follow. An optimizer keeps the parameters that it was given, those of
    `model`: `carry_optimizer` makes the one of `small`. Raises PlanError if plan, graph and model do not fit.
    """
    graph.check_fits(model)
    keep = graph.bind(plan.keep)
    named, cuts = named_tensors(model), graph.cuts(plan)
    with torch.no_grad():
        changed = sliced(graph, named, cuts)
    replaced = {id(named[name]): _like(named[name], t.detach()) for name, t in changed.items()}
    new = refreshed(rebuilt(model, replaced, graph.attributes(model, plan, cuts)))
    remember_cut(named.values(), new)
    return cut_once_more(new, graph.structure, keep)


def permute(model: nn.Module, graph: ChannelGraph, order: Mapping[str, ArrayLike]) -> nn.Module:
    """A new model that computes the same function with the units of some groups in another order.

    >>> best_first = sentei.permute(model, graph, {"layer1.0.conv1": np.argsort(-score)})

    `order[name]` is a permutation of the group's units: unit order[i] moves to place i. Sorted once by importance, the
    first k units are the best k, and the slices of `slim` become views. Frozen groups cannot be permuted.
    """
    graph.check_fits(model)
    places: dict[tuple[str, int], np.ndarray] = {}
    for name, units in order.items():
        group, new = graph.group(name), np.asarray(units, np.int64)
        if group.frozen or not np.array_equal(np.sort(new), np.arange(group.width)):
            raise PlanError(
                f"cannot permute group {name}: "
                + (group.why or f"the order is not a permutation of 0..{group.width - 1}")
            )
        if graph.ordered(name):
            raise PlanError(
                f"cannot permute group {name}: a convolution slides over its channels, so their order matters"
            )
        for m in group.members:
            key = (m.param, m.dim)
            if key not in places:
                places[key] = np.arange(_size(graph, key))
            places[key][m.indices] = m.indices[new]
    moved = {}
    for name, t in named_tensors(model).items():
        out = t.detach()
        for (param, dim), idx in places.items():
            if param == name:
                out = out.index_select(dim, torch.from_numpy(idx).to(t.device))
        if out.data_ptr() != t.data_ptr():
            moved[id(t)] = _like(t, out)
    return refreshed(rebuilt(model, moved))


def _size(graph: ChannelGraph, key: tuple[str, int]) -> int:
    record = graph.trace_record
    return record.sizes[record.slots[key]]


def _like(old: Tensor, new: Tensor) -> Tensor:
    shared = new.untyped_storage().data_ptr() == old.untyped_storage().data_ptr()
    new = laid_out(new, old, copy=shared)
    return nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
