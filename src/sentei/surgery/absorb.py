"""Move what constant units contribute to their readers into biases, running means and carriers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvTransposeNd

from sentei.graph import ChannelGraph
from sentei.surgery.readers import Reader, by_group
from sentei.surgery.watch import Watch

FAINT = 0.1
"""A carrier's constant is at least this share of the largest, so that its weights do not become large."""


@dataclass(frozen=True)
class Absorption:
    """New values of parameters and buffers by name, and which units stay (bool, in the numbering of the units)."""

    tensors: dict[str, Tensor]
    stay: np.ndarray
    carriers: np.ndarray
    """Constant units that stay for others' sake."""
    padded: bool
    """Whether some reader pads zeros around constants that are not zero."""


def absorb(
    model: nn.Module,
    graph: ChannelGraph,
    found: Watch,
    readers: Sequence[Reader],
    constant: np.ndarray,
    removable: np.ndarray,
    carry: bool,
) -> Absorption:
    """Make the removable units superfluous; those that are not `constant` are read by nothing that matters.

    With `carry`, readers that pad get carriers instead of a bias; those without bias and running mean always do.
    """
    moved = constant & removable
    adds = {r.weight: r.contribution(moved).numpy() != 0 for r in readers}
    sinks = {r.weight: _sink(model, found, r) for r in readers}
    asking = [r for r in readers if adds[r.weight].any()]
    stay, needy = _with_a_last_one(graph, ~removable, constant), [r for r in asking if sinks[r.weight] is None]
    while True:  # a unit that stays may be an output that needs a carrier before it
        matters = {r.weight: bool((adds[r.weight] & ((r.outputs < 0) | stay[r.outputs])).any()) for r in asking}
        more = [r for r in asking if r not in needy and carry and r.padded and matters[r.weight]]
        needy += more
        carriers = _choose(graph, needy, moved)
        before, stay = stay, _with_a_last_one(graph, ~removable | carriers, constant)
        if not more and np.array_equal(before, stay):
            break
    padded = any(r.padded and matters[r.weight] for r in asking)
    tensors = {r.weight: _carried(graph, r, moved & ~stay, carriers) for r in needy}
    for reader in asking:
        sink = sinks[reader.weight]
        if reader.weight not in tensors and sink is not None:
            name, sign = sink
            path, _, leaf = name.rpartition(".")
            old = tensors.get(name, getattr(model.get_submodule(path), leaf).detach())
            tensors[name] = old + sign * reader.contribution(moved & ~stay).reshape(-1).to(old)
    return Absorption(tensors, stay, carriers, padded)


def _sink(model: nn.Module, found: Watch, reader: Reader) -> tuple[str, int] | None:
    """Where a constant contribution can go: the bias (+), or the running mean of the only BatchNorm behind it (-)."""
    if isinstance(reader.module, _ConvTransposeNd):
        return None
    if isinstance(getattr(reader.module, "bias", None), nn.Parameter):
        return f"{reader.where}.bias", 1
    norm = found.only_norm(reader.where)
    behind = None if norm is None else model.get_submodule(norm)
    if isinstance(behind, _BatchNorm) and behind.running_mean is not None:
        return f"{norm}.running_mean", -1
    return None


def _with_a_last_one(graph: ChannelGraph, stay: np.ndarray, constant: np.ndarray) -> np.ndarray:
    """Every group keeps one unit: a constant one, if it has any."""
    stay = stay.copy()
    for own in graph.grouping.units:
        if not stay[own].any():
            stay[own[np.argmax(constant[own])]] = True
    return stay


def _choose(graph: ChannelGraph, readers: Sequence[Reader], units: np.ndarray) -> np.ndarray:
    """Carriers: in each group as few units as give every reader, at each of its positions, a constant to scale."""
    carriers = np.zeros(len(units), bool)
    for own in graph.grouping.units:
        needs = [need for r in readers if (need := _strength(r, own, units[own])) is not None]
        if not needs:
            continue
        strength = np.concatenate(needs, 1)
        unmet = np.ones(strength.shape[1], bool)
        while unmet.any():
            best = int(np.argmax((strength[:, unmet] > FAINT).sum(1) + strength[:, unmet].mean(1)))
            carriers[own[best]] = True
            unmet &= strength[best] <= FAINT
    return carriers


def _strength(reader: Reader, own: np.ndarray, units: np.ndarray) -> np.ndarray | None:
    """|constant| of each unit over the largest of its group, [units, positions], at positions where one is not zero."""
    places = reader.places(own)
    if places is None or reader.passes.reshape(-1)[places].any():
        return None
    values = np.abs(reader.value.reshape(-1)[places]) * units[:, None]
    largest = values.max(0)
    return values[:, largest > 0] / largest[largest > 0] if (largest > 0).any() else None


def _carried(graph: ChannelGraph, reader: Reader, gone: np.ndarray, carriers: np.ndarray) -> Tensor:
    """The reader's weight with what the gone constants contribute moved onto the carriers' columns."""
    weight = reader.module.get_parameter("weight").detach().clone()
    before, view = by_group(reader.module), by_group(reader.module, weight)
    wide, values = view.shape[2], reader.value.reshape(-1)
    for own in graph.grouping.units:
        places = reader.places(own) if gone[own].any() and carriers[own].any() else None
        for column in () if places is None else places.T:  # more than one in grouped convolutions only
            chief = int(np.argmax(np.abs(values[column]) * carriers[own]))
            if values[column[chief]] != 0:
                share = torch.from_numpy(np.where(gone[own], values[column], 0) / values[column[chief]]).to(weight)
                g, columns = int(column[0]) // wide, torch.from_numpy(column % wide).to(weight.device)
                view[g, :, int(columns[chief])] += torch.einsum("oik,i->ok", before[g][:, columns], share)
    return weight
