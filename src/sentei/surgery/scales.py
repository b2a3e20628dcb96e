"""The BatchNorm scales (gamma) and shifts (beta) that each unit of a group passes through, and their rescaling.

Ye, Lu, Lin and Wang (ICLR 2018, arXiv 1802.00124), section 4.2: scaling gamma by alpha, and the weights of whatever
reads the channel by 1/alpha, leaves the function as it is, but a gradient step moves gamma further and those weights
less far. For that beta has to be scaled too, and nothing in between may tell a large input from a small one.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sentei.errors import SurgeryError
from sentei.graph import ChannelGraph, Group
from sentei.graph.inputs import arguments, cast
from sentei.graph.outputs import output_tensors
from sentei.graph.part import Forward, part_of
from sentei.graph.resize import named_tensors
from sentei.surgery.check import relative_error
from sentei.surgery.readers import Reader, by_group, readers
from sentei.surgery.watch import CONVOLUTIONS, Answer, Reading, noise, noisy, watch


@dataclass(frozen=True, eq=False)
class Scale:
    """Where the units of a group meet one BatchNorm: unit u has the elements `indices[u]` of gamma and beta."""

    norm: str
    indices: Tensor
    """int64 [width, times]"""

    @property
    def gamma(self) -> str:
        return f"{self.norm}.weight"

    @property
    def beta(self) -> str:
        return f"{self.norm}.bias"


def scales_of(model: nn.Module, group: Group) -> tuple[Scale, ...]:
    """The places of a group in BatchNorm layers that have a gamma."""
    found = []
    for member in group.members:
        norm, _, leaf = member.param.rpartition(".")
        if leaf == "weight" and isinstance(model.get_submodule(norm), _BatchNorm):
            found.append(Scale(norm, torch.from_numpy(member.indices)))
    return tuple(found)


def unsilenced(model: nn.Module, graph: ChannelGraph, names: Sequence[str], inputs: Any) -> dict[str, str]:
    """Groups whose units would still vary if all their gammas were zero, each with the module that sees it.

    One run tells it for all groups at once: every reader gets noise, so that a silent group silences no other.
    """
    probe = copy.deepcopy(model)
    with torch.no_grad():
        for name in names:
            for scale in scales_of(probe, graph.group(name)):
                probe.get_parameter(scale.gamma).index_fill_(0, scale.indices.reshape(-1).to(_device(probe)), 0)
    found = watch(probe, graph, inputs, _noise(0))
    passes = {r.weight: r.passes.reshape(-1) for r in readers(probe, graph, found)}
    where: dict[int, str] = {}
    for reading in found.readings:
        varies = (reading.high - reading.low > 1e-5 * reading.high.abs().clamp_min(1)).numpy()
        seen = varies & ~passes.get(reading.weight or "", np.zeros(1, bool))
        where |= dict.fromkeys(reading.units.numpy()[seen].tolist(), reading.where)
    out = {}
    for name in names:
        own = graph.grouping.units[graph.index(name)].tolist()
        seen_by = next((where[u] for u in own if u in where), None)
        if seen_by is not None:
            out[name] = seen_by
    return out


@dataclass(frozen=True, eq=False)
class Rescaling:
    """What `rescale` multiplied: a factor for each element of some parameters."""

    alpha: float
    factors: dict[str, Tensor]
    refused: dict[str, str]
    """Groups that stay as they are, each with the reason."""

    def apply(self, model: nn.Module) -> None:
        """Scale in place."""
        with torch.no_grad():
            for name, factor in self.factors.items():
                model.get_parameter(name).mul_(factor.to(_device(model)))

    def undo(self, model: nn.Module) -> None:
        """Divide in place by what `apply` multiplied."""
        with torch.no_grad():
            for name, factor in self.factors.items():
                model.get_parameter(name).div_(factor.to(_device(model)))


def rescale(model: nn.Module, graph: ChannelGraph, names: Sequence[str], alpha: float, inputs: Any) -> Rescaling:
    """Find out which groups can be scaled by `alpha` at their BatchNorm layers and by 1/alpha where they are read.

    >>> scaling = rescale(model, graph, inner_groups(graph), 0.1, images)
    >>> scaling.apply(model)         # the same function
    >>> scaling.refused
    {'blocks.1.conv.0': 'what blocks.1.conv.3 reads does not scale with it: ...'}

    It is tried: with gamma and beta scaled, every reader must see alpha times what it saw, or the same where no
    BatchNorm lies before it; strong noise makes activations that clip or bend show it. The model is not changed.
    Raises SurgeryError if the function changes all the same.
    """
    precise, given = copy.deepcopy(model).double().eval(), cast(inputs, torch.float64)
    trial = copy.deepcopy(precise)
    factors = {n: torch.ones_like(p) for n, p in precise.named_parameters()}
    for name in names:
        _scale(factors, precise, graph.group(name), alpha)
    Rescaling(alpha, factors, {}).apply(trial)
    scaled, refused = _compare(precise, trial, graph, names, alpha, noisy(given, 0))
    own = {n: torch.ones_like(p) for n, p in precise.named_parameters()}
    for name in names:
        if name not in refused:
            _scale(own, model, graph.group(name), alpha)
    for reader, units in scaled:
        legal = np.isin(reader.inputs, [u for n in names if n not in refused for u in _units(graph, n)]) & units
        view = by_group(reader.module, own[reader.weight])
        view /= torch.from_numpy(np.where(legal, alpha, 1.0)).to(view)[:, None, :, None]
    done = Rescaling(alpha, {n: f for n, f in own.items() if bool((f != 1).any())}, refused)
    _prove(precise, graph.forward, done, given)
    return done


def _scale(factors: dict[str, Tensor], model: nn.Module, group: Group, alpha: float) -> None:
    for scale in scales_of(model, group):
        for name in (scale.gamma, scale.beta):
            factors[name].index_fill_(0, scale.indices.reshape(-1).to(factors[name].device), alpha)


def _compare(
    model: nn.Module, trial: nn.Module, graph: ChannelGraph, names: Sequence[str], alpha: float, inputs: Any
) -> tuple[list[tuple[Reader, np.ndarray]], dict[str, str]]:
    """Readers with the inputs that come scaled, and the groups that cannot be scaled."""
    stored: list[tuple[Tensor, Tensor]] = []
    answer = _noise(1)

    def store(number: int, t: Tensor, reading: Reading) -> Tensor:
        stored.append((t, answer(number, t, reading)))
        return stored[-1][1]

    seen: list[Tensor] = []

    def compare(number: int, t: Tensor, reading: Reading) -> Tensor:
        seen.append(t)
        return stored[len(seen) - 1][1]

    found = watch(model, graph, inputs, store)
    watch(trial, graph, inputs, compare)
    known = {r.weight: r for r in readers(model, graph, found)}
    group_of = {u: name for name in names for u in _units(graph, name)}
    scaled: list[tuple[Reader, np.ndarray]] = []
    refused: dict[str, str] = {}
    pairs = iter(zip(stored, seen, strict=True))
    for reading in found.readings:
        at = reading.units.numpy()
        groups = sorted({group_of[u] for u in set(at.tolist()) if u in group_of})
        pair = next(pairs) if reading.sums else None
        comes = np.zeros(len(at), bool)
        for name in groups:
            mine = np.isin(at, _units(graph, name))
            how = "other" if pair is None else _how(pair[0][0], pair[1], reading, mine, alpha)
            reader = known.get(reading.weight or "")
            if how == "scaled" and reader is not None and reader.alone:
                comes |= mine
            elif how != "same":
                refused.setdefault(name, _why(reading, how))
        if comes.any() and reading.weight is not None:
            reader = known[reading.weight]
            scaled.append((reader, comes.reshape(reader.inputs.shape)))
    firsts = {r.weight: (r, comes) for r, comes in reversed(scaled)}
    return list(firsts.values()), refused


def _how(before: Tensor, after: Tensor, reading: Reading, mine: np.ndarray, alpha: float) -> str:
    dim = 1 if reading.op in CONVOLUTIONS else before.ndim - 1
    if before.shape[dim] != len(mine):
        return "other"
    index = torch.from_numpy(np.flatnonzero(mine)).to(before.device)
    a, b = before.index_select(dim, index), after.index_select(dim, index)
    if relative_error(b, a * alpha) < 1e-6:
        return "scaled"
    return "same" if relative_error(b, a) < 1e-9 else "bent"


def _why(reading: Reading, how: str) -> str:
    if how == "bent":
        return (
            f"what {reading.where} reads does not scale with it: an activation that bends or clips (ReLU6, SiLU, ...), "
            "or a sum with something that is not scaled, lies between"
        )
    return f"{reading.op.removeprefix('aten.')} in {reading.where} reads it, which has no weights of its own to scale"


def _prove(model: nn.Module, forward: Forward | None, done: Rescaling, inputs: Any) -> None:
    trial = copy.deepcopy(model)
    done.apply(trial)
    args, kwargs = arguments(inputs)
    with torch.no_grad():
        before, after = (output_tensors(part_of(m, forward)(*args, **kwargs)) for m in (model, trial))
    error = max(relative_error(a, b) for a, b in zip(after, before, strict=True))
    if not error <= 1e-9:
        raise SurgeryError(f"scaling gamma by {done.alpha:g} moved the outputs by {error:.2g} (relative); use alpha=1")


def _noise(seed: int) -> Answer:
    like = noise(seed)
    return lambda number, t, reading: like(t) if reading.weight is not None else t


def _units(graph: ChannelGraph, name: str) -> list[int]:
    units: list[int] = graph.grouping.units[graph.index(name)].tolist()
    return units


def _device(model: nn.Module) -> torch.device:
    return next(iter(named_tensors(model).values())).device
