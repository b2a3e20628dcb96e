"""Convolutions and linear layers as readers of units: which unit is at each of their inputs and outputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from sentei.graph import ChannelGraph
from sentei.surgery.watch import Watch


def by_group(module: nn.Module, weight: Tensor | None = None) -> Tensor:
    """A view of a convolution's or linear layer's weight (or of another like it) as [groups, outputs, inputs, kernel].

    What is written into the view is written into the weight.
    """
    data = module.get_parameter("weight").detach() if weight is None else weight
    groups = int(getattr(module, "groups", 1))
    view = data.view(groups, -1, data.shape[1], data[0, 0].numel())
    return view.transpose(1, 2) if isinstance(module, _ConvTransposeNd) else view


@dataclass(frozen=True, eq=False)
class Reader:
    """One weight that reads units, with what its input is where that does not vary."""

    where: str
    weight: str
    module: nn.Module
    padded: bool
    inputs: np.ndarray
    """Unit (or -1) at each input, [groups, inputs]."""
    outputs: np.ndarray
    """Unit (or -1) of each output, [groups, outputs]."""
    passes: np.ndarray
    """Inputs whose outputs are all of their own unit (depthwise convolutions), [groups, inputs]: they go together."""
    value: np.ndarray
    """Middle of the range of each input, [groups, inputs]."""
    alone: bool
    """Whether its weight is read in one module only."""

    def contribution(self, units: np.ndarray) -> Tensor:
        """What these units add to each output where no zero is padded, [groups, outputs], float64.

        Ye et al. 2018, section 4.3: sum over the units of value times the sum of the kernel.
        """
        view = by_group(self.module).double().cpu()
        values = np.where((self.inputs >= 0) & units[self.inputs] & ~self.passes, self.value, 0)
        return torch.einsum("goik,gi->go", view, torch.from_numpy(values))

    def places(self, own: np.ndarray) -> np.ndarray | None:
        """Flat indices [units, times] at which the units of a group are read; None if they are not."""
        at = self.inputs.reshape(-1)
        rank = np.full(int(max(at.max(initial=0), own.max(initial=0))) + 2, -1)
        rank[own] = np.arange(len(own))
        found = np.flatnonzero(rank[at] >= 0)
        if not len(found):
            return None
        return found[np.argsort(rank[at[found]], kind="stable")].reshape(len(own), -1)


def readers(model: nn.Module, graph: ChannelGraph, found: Watch) -> list[Reader]:
    """One for each weight that reads units, in the order of the forward pass."""
    slots = graph.slot_units()
    where: dict[str, set[str]] = {}
    for r in found.readings:
        if r.weight is not None:
            where.setdefault(r.weight, set()).add(r.where)
    out: dict[str, Reader] = {}
    for r in found.readings:
        if r.weight is None or r.weight in out:
            continue
        module = model.get_submodule(r.where)
        groups, outputs = by_group(module).shape[:2]
        inputs = r.units.numpy().reshape(groups, -1)
        outs = _outputs(module, r.weight, inputs, (groups, outputs), slots)
        passes = np.zeros(inputs.shape, bool)
        if groups > 1:
            passes = (inputs[:, :, None] == outs[:, None, :]).all(2) & (inputs >= 0)
        value = r.value.numpy().reshape(groups, -1)
        out[r.weight] = Reader(
            r.where, r.weight, module, r.padded, inputs, outs, passes, value, len(where[r.weight]) == 1
        )
    return list(out.values())


def _outputs(
    module: nn.Module,
    weight: str,
    inputs: np.ndarray,
    shape: tuple[int, int],
    slots: Mapping[tuple[str, int], np.ndarray],
) -> np.ndarray:
    groups, outputs = shape
    if not isinstance(module, _ConvTransposeNd):
        own = slots.get((weight, 0))
        return np.full(shape, -1) if own is None else own.reshape(shape)
    own = slots.get((weight, 1))
    if own is not None and (own >= 0).any():
        return np.tile(own, (groups, 1))
    passed_on = groups > 1 and bool((inputs == inputs[:, :1]).all())
    return np.repeat(inputs[:, :1], outputs, axis=1) if passed_on else np.full(shape, -1)
