"""The Lasso on BatchNorm scales: what a unit costs, its penalty, and the proximal step that ends in exact zeros.

Ye, Lu, Lin and Wang (ICLR 2018, arXiv 1802.00124), section 4.1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from sentei.errors import ConfigError
from sentei.graph import ChannelGraph
from sentei.graph.graph import HasKeep
from sentei.graph.resize import cut_shape
from sentei.plan import Plan
from sentei.surgery.scales import Scale, scales_of

CostKind = Literal["memory", "macs", "params"]


@dataclass(frozen=True, eq=False)
class Penalised:
    """A group whose units are penalised: all gammas of a unit form one vector, mostly of length one."""

    name: str
    width: int
    scales: tuple[Scale, ...]
    least: int = 1
    """Units that stay alive, whatever the penalty."""

    def norms(self, model: nn.Module) -> Tensor:
        """Euclidean norm of each unit's gammas, [width]; |gamma| where there is one."""
        gammas = torch.cat([model.get_parameter(s.gamma).detach()[s.indices] for s in self.scales], 1)
        return gammas[:, 0].abs() if gammas.shape[1] == 1 else gammas.square().sum(1).sqrt()

    def multiply(self, model: nn.Module, factor: Tensor) -> None:
        """Scale each unit's gammas in place."""
        for s in self.scales:
            gamma = model.get_parameter(s.gamma).detach()
            gamma[s.indices] = gamma[s.indices] * factor[:, None].to(gamma.device)


def penalised(model: nn.Module, graph: ChannelGraph, names: Sequence[str], least: Sequence[int]) -> list[Penalised]:
    return [
        Penalised(name, graph.group(name).width, scales_of(model, graph.group(name)), floor)
        for name, floor in zip(names, least, strict=True)
    ]


def costs_of_units(
    graph: ChannelGraph, names: Sequence[str], plan: HasKeep | None = None, kind: CostKind = "memory"
) -> np.ndarray:
    """lambda: what one unit of each group costs in the network that `plan` leaves, float64 [names].

    memory (Ye et al. 2018, section 4.1): weights that produce or read a unit, and elements of the feature maps that it
    occupies, over the pixels of an input:

        lambda = (k_w k_h c_in + sum over readers of k_w' k_h' c_out' + I_w I_h) / (I_w_in I_h_in)

    `macs` and `params` count what removing a unit saves of those, scaled so that the mean over all units is that of
    `memory`, and rho means the same.
    """
    if kind not in ("memory", "macs", "params"):
        raise ConfigError(f"cost is {kind!r}; expected 'memory', 'macs' or 'params'")
    where = [graph.index(name) for name in names]
    widths = graph.widths(plan)
    before, without = graph.costs(widths), graph.costs(widths - np.eye(len(widths), dtype=int))
    images, pixels, itemsize = _input(graph)
    maps = (before.activation_bytes - without.activation_bytes)[where] / itemsize / images
    memory = (_weights(graph, names, plan) + maps) / pixels
    if kind == "memory":
        return memory
    other = (getattr(before, kind) - getattr(without, kind))[where]
    units = widths[where]
    return other * (memory @ units) / max(float(other @ units), 1e-30)


def _weights(graph: ChannelGraph, names: Sequence[str], plan: HasKeep | None) -> np.ndarray:
    """Elements of weights (not of norms and biases) that belong to one unit of each group."""
    cuts = {} if plan is None else graph.cuts(plan)
    out = []
    for name in names:
        total = 0.0
        for member in graph.group(name).members:
            shape = graph.params.get(member.param, ())
            if len(shape) > 1:
                live = cut_shape(shape, cuts.get(member.param, ()))
                total += math.prod(live) / live[member.dim] * member.indices.shape[1]
        out.append(total)
    return np.array(out)


def _input(graph: ChannelGraph) -> tuple[int, int, int]:
    """Images and pixels of the inputs that were traced, and the bytes of an element."""
    shape = next(t.shape for t in (*graph.inputs.args, *graph.inputs.kwargs.values()) if isinstance(t, Tensor))
    return shape[0], math.prod(shape[2:]), graph.trace_record.contractions[0].itemsize


def live_plan(model: nn.Module, graph: ChannelGraph, groups: Sequence[Penalised]) -> Plan:
    """The units whose gammas are not all zero; every group keeps one."""
    keep = {}
    for g in groups:
        norms = g.norms(model).cpu().numpy()
        keep[g.name] = np.flatnonzero(norms) if norms.any() else np.array([0])
    return Plan(keep, graph.structure)


@dataclass
class Proximal:
    """The proximal step of ISTA on the gammas, to be called after each step of the optimizer.

    gamma <- max(1 - mu rho lambda / ||gamma||, 0) gamma with the step's learning rate mu: the soft threshold for a
    single gamma. Zeros are exact and negative gammas stay negative. The largest `least` units of a group are spared
    where it would close. Once the live network is within `limits`, the penalty ends and zeros are held; a step that
    would close more than that needs spares the largest.
    """

    graph: ChannelGraph
    groups: Sequence[Penalised]
    penalties: Sequence[float]
    """rho * lambda of each group"""
    limits: dict[str, float]
    steps: int = 0
    reached: int | None = None
    """The step after which the limits held."""
    held: list[Tensor] = field(default_factory=list)
    """Then: for each group 1 for the units that stay, 0 for those whose zeros are held."""

    def __call__(self, model: nn.Module, lr: float) -> None:
        self.steps += 1
        if self.reached is not None:
            self._hold(model)
            return
        norms, factors = [], []
        for group, penalty in zip(self.groups, self.penalties, strict=True):
            norm = group.norms(model)
            factor = (1 - lr * penalty / norm.clamp_min(1e-16)).clamp_min(0) * (norm > 0)
            if int((factor > 0).sum()) < group.least:
                factor[norm.topk(group.least).indices] = 1
            norms.append(norm)
            factors.append(factor)
        if self.limits and self._within(model, [f > 0 for f in factors]):
            factors = self._spared(model, norms, factors)
            self.reached, self.held = self.steps, [(f > 0).float() for f in factors]
        for group, factor in zip(self.groups, factors, strict=True):
            group.multiply(model, factor)

    def _within(self, model: nn.Module, live: Sequence[Tensor]) -> bool:
        return live_within(model, self.graph, self.groups, live, self.limits)

    def _spared(self, model: nn.Module, norms: list[Tensor], factors: list[Tensor]) -> list[Tensor]:
        """Of the units that this step closes, as many of the largest stay as the budget allows."""
        closing = torch.cat([n * (f == 0) for n, f in zip(norms, factors, strict=True)])
        order = closing.argsort(descending=True, stable=True)[: int((closing > 0).sum())]
        flat, widths = torch.cat(factors), [len(f) for f in factors]
        low, high = 0, len(order)  # the largest number that fits lies in [low, high]
        while low < high:
            middle = (low + high + 1) // 2
            trial = flat.clone()
            trial[order[:middle]] = 1
            low, high = (middle, high) if self._within(model, list((trial > 0).split(widths))) else (low, middle - 1)
        flat[order[:low]] = 1
        return list(flat.split(widths))

    def _hold(self, model: nn.Module) -> None:
        for group, live in zip(self.groups, self.held, strict=True):
            group.multiply(model, live)


def lasso(model: nn.Module, groups: Sequence[Penalised], penalties: Sequence[float]) -> float:
    """The regulariser: sum of rho lambda ||gamma|| over all units."""
    return sum(p * float(g.norms(model).sum()) for g, p in zip(groups, penalties, strict=True))


def live_within(
    model: nn.Module, graph: ChannelGraph, groups: Sequence[Penalised], live: Sequence[Tensor], limits: dict[str, float]
) -> bool:
    """Whether the network of these live units (bool) is small enough, with a carrier in each group that loses constants
    above zero."""
    widths = graph.widths()
    for g, stays in zip(groups, live, strict=True):
        beta = model.get_parameter(g.scales[-1].beta).detach()[g.scales[-1].indices[:, 0]]
        widths[graph.index(g.name)] = int(stays.sum()) + int(bool((~stays & (beta > 0)).any()))
    cost = graph.costs(np.maximum(widths, 1))
    return all(float(getattr(cost, name)) <= limit for name, limit in limits.items())
