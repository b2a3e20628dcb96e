"""Remove channels that are constant, or that nobody reads, without changing what the network computes.

Ye, Lu, Lin and Wang, "Rethinking the Smaller-Norm-Less-Informative Assumption in Channel Pruning of Convolution
Layers" (ICLR 2018, arXiv 1802.00124), section 4.3: a channel whose BatchNorm scale is zero is a constant image, and its
contribution to whatever reads it is a constant too.

Which channels are constant, and with what value, is measured at every place that reads them, whatever activation,
pooling or concatenation lies in between. To tell what is constant by construction from what merely did not vary on
these images (a ReLU that they leave dead), copies of the network with randomly scaled and signed weights, whose layers
read noise instead of each other, must agree.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from sentei.errors import ConfigError, SurgeryError
from sentei.graph import ChannelGraph
from sentei.graph.copying import rebuilt
from sentei.graph.inputs import Inputs, arguments, cast
from sentei.graph.outputs import output_tensors
from sentei.graph.part import Forward, part_of
from sentei.plan.plan import Plan
from sentei.surgery.absorb import Absorption, absorb
from sentei.surgery.check import DOUBLE, SINGLE, reference, relative_error
from sentei.surgery.readers import Reader, by_group, readers
from sentei.surgery.watch import CONVOLUTIONS, Reading, Watch, noise, noisy, watch

Mode = Literal["exact", "bias"]
SPREAD = 1e-9
"""Values that differ by less are one, relative to 1 or to their size: rounding of a mean over windows, for instance."""
PROBES = 2


@dataclass(frozen=True)
class FoldReport:
    """What was removed: `zero` units that were constantly zero, `folded` other constants, `unread` units that nothing
    reads; and what stayed of the constant units: `carried` units that stand in for others where zeros are padded, and
    `kept` ones."""

    zero: int
    folded: int
    unread: int
    carried: int
    kept: int
    """Constant where they arise, but all that is left of their group, or read by an operation that has no bias."""
    error: float
    """Largest difference of the outputs, relative to the largest output."""
    border_error: float | None
    """What that would be with `mode="bias"`; None where nothing is padded."""

    def __str__(self) -> str:
        border = "" if self.border_error is None else f"; with biases alone it would be {self.border_error:.1e}"
        return (
            f"{self.zero} zero channels and {self.unread} unread ones dropped, {self.folded} constants folded, "
            f"{self.carried} carriers and {self.kept} other constants kept; outputs moved by {self.error:.1e}{border}"
        )


@dataclass(frozen=True)
class Folded:
    """`model` has the shapes of the original and computes what it computes even without the units that `plan` removes:
    cut it with this plan."""

    model: nn.Module
    plan: Plan
    report: FoldReport


def fold(model: nn.Module, graph: ChannelGraph, inputs: Any, mode: Mode = "exact") -> Folded:
    """Find the constant and the unread channels, and move what they contribute into what remains.

    A channel whose BatchNorm scale is zero is a constant image, and what it adds to its readers is a constant too: Ye,
    Lu, Lin and Wang, "Rethinking the Smaller-Norm-Less-Informative Assumption in Channel Pruning of Convolution Layers"
    (ICLR 2018, arXiv 1802.00124), section 4.3.

    >>> with torch.no_grad():
    ...     model.layer1[0].bn1.weight[:8] = 0
    >>> folded = sentei.fold(model, graph, images)
    >>> small = sentei.cut(folded.model, graph, folded.plan)    # small(x) == model(x), up to rounding
    >>> print(folded.report)                                    # how many went, and why others did not

    Args:
        inputs: real inputs of the model, a few images [N, C, H, W] for instance.
        mode: "exact" also holds at borders. Where a reader pads with zeros, which are not the constant, one of the
            constant units of a group stays and its weights take the sum of all others' contributions; elsewhere the
            reader's bias takes it, or the running mean of the BatchNorm after it. "bias" does without carriers, as the
            paper, and is wrong in the ring that the padding reaches.

    Each group keeps at least one unit, and groups of a bundle (`graph.bundles`) all of theirs. The model itself stays
    as it is. Raises SurgeryError if the outputs move (mode "exact") or the model takes other paths on other inputs,
    PlanError if graph and model do not fit, ConfigError for another mode.
    """
    if mode not in ("exact", "bias"):
        raise ConfigError(f"mode is {mode!r}; expected 'exact' or 'bias'")
    graph.check_fits(model)
    precise, given = _in_double(model, graph.forward, inputs)
    found, units = _find(precise, graph, given)

    def result(carry: bool) -> tuple[Absorption, nn.Module, Plan, float]:
        done = absorb(precise, graph, found, units.readers, units.constant, units.removable, carry)
        plan, folded = _plan(graph, done.stay), _copy_with(model, done.tensors)
        return done, folded, plan, _moved(model, folded, graph, plan, inputs)

    done, folded, plan, error = result(carry=mode == "exact")
    _refuse_change(error, mode, inputs)
    border = None
    if done.padded:
        border = error if mode == "bias" else result(carry=False)[-1]
    return Folded(folded, plan, _report(units, done, error, border))


# -- which units


@dataclass(frozen=True, eq=False)
class Units:
    """What holds for each unit, as bool vectors in the numbering of the graph's units."""

    readers: list[Reader]
    constant: np.ndarray
    """Constant wherever it is read."""
    zero: np.ndarray
    removable: np.ndarray
    """Constant in a way that its readers can absorb, or unread."""
    unread: np.ndarray


def _find(model: nn.Module, graph: ChannelGraph, inputs: Any) -> tuple[Watch, Units]:
    found, steady = _measure(model, graph, inputs)
    n = len(graph.grouping.group_of)
    free = np.zeros(n, bool)
    bound = {i for bundle in graph.bundles for i in bundle}  # they keep the same share, whatever is constant in one
    for i, (group, own) in enumerate(zip(graph.groups, graph.grouping.units, strict=True)):
        free[own] = not group.frozen and i not in bound
    known = {r.weight: r for r in readers(model, graph, found)}
    varies, nonzero, stuck, read = (np.zeros(n, bool) for _ in range(4))
    for reading, fixed in zip(found.readings, steady, strict=True):
        reader = known.get(reading.weight or "")
        at, value = reading.units.numpy(), reading.value.numpy()
        seen = at >= 0 if reader is None else (at >= 0) & ~reader.passes.reshape(-1)
        read[at[seen]] = True
        varies[at[seen & ~fixed]] = True
        nonzero[at[seen & (value != 0)]] = True
        if not reading.sums:
            stuck[at[seen]] = True
        elif reader is None or not reader.alone:
            stuck[at[seen & (value != 0)]] = True
        else:  # a module that is called again must see the same constants
            stuck[at[seen & fixed & (reader.value.reshape(-1) != value)]] = True
    constant = free & read & ~varies
    unread = free & ~constant & _unread(found, list(known.values()), constant, ~free | stuck)
    return found, Units(list(known.values()), constant, constant & ~nonzero, (constant & ~stuck) | unread, unread)


def _measure(model: nn.Module, graph: ChannelGraph, inputs: Any) -> tuple[Watch, list[np.ndarray]]:
    """The readings on the inputs, and for each of them which indices are steady whatever inputs and weights are.

    In the probes every reader gets noise in place of what varies, so that nothing stays dead by chance.
    """
    spread = _spread(model)
    first = watch(model, graph, inputs)
    steady = _steady(first, watch(model, graph, noisy(inputs, 0)), spread)
    for seed in range(PROBES):
        probe = _probe(model, seed)
        one, two = (watch(probe, graph, noisy(inputs, s), _Noise(spread, s)) for s in (2 * seed, 2 * seed + 1))
        if {len(one.readings), len(two.readings)} != {len(first.readings)}:
            raise SurgeryError("the model takes different paths on different inputs, so nothing can be folded safely")
        steady = [a & b for a, b in zip(steady, _steady(one, two, spread), strict=True)]
    return first, steady


def _steady(a: Watch, b: Watch, spread: float) -> list[np.ndarray]:
    """For each reading, the indices at which two runs together show one value."""
    return [
        _one_value(torch.minimum(one.low, two.low), torch.maximum(one.high, two.high), spread).numpy()
        for one, two in zip(a.readings, b.readings, strict=True)
    ]


def _one_value(low: Tensor, high: Tensor, spread: float) -> Tensor:
    return (high - low) <= spread * torch.maximum(low.abs(), high.abs()).clamp_min(1)


class _Noise:
    """Answers a reader with strong noise where what it reads varies, and with the truth where it does not."""

    def __init__(self, spread: float, seed: int) -> None:
        self.spread, self.noise = spread, noise(seed)

    def __call__(self, number: int, t: Tensor, reading: Reading) -> Tensor:
        if reading.weight is None:
            return t
        steady = _one_value(reading.low, reading.high, self.spread).to(t.device)
        shape = [-1] + [1] * (t.ndim - 2) if reading.op in CONVOLUTIONS else [-1]
        return torch.where(steady.view(shape), t, self.noise(t))


def _spread(model: nn.Module) -> float:
    single = any(p.dtype != torch.float64 for p in model.parameters() if p.is_floating_point())
    return 1e-5 if single else SPREAD


def _unread(found: Watch, known: list[Reader], constant: np.ndarray, needed_always: np.ndarray) -> np.ndarray:
    """Units whose every reader gives them no weight, or feeds units that are constant or unread themselves."""
    needed_always = needed_always.copy()
    for reading in found.readings:
        if reading.weight is None:
            at = reading.units.numpy()
            needed_always[at[at >= 0]] = True
    weighs = [(by_group(r.module) != 0).any(3).numpy(force=True) for r in known]
    dead = constant.copy()
    while True:
        needed = needed_always.copy()
        for reader, weight in zip(known, weighs, strict=True):
            matters = (reader.outputs < 0) | ~dead[reader.outputs]
            used = np.einsum("go,goi->gi", matters, weight) & ~reader.passes & (reader.inputs >= 0)
            needed[reader.inputs[used]] = True
        unread = ~needed & ~constant
        if not (unread & ~dead).any():
            return unread
        dead |= unread


# -- the plan, the model, the proof


def _plan(graph: ChannelGraph, stay: np.ndarray) -> Plan:
    keep = {
        group.name: np.flatnonzero(stay[own])
        for group, own in zip(graph.groups, graph.grouping.units, strict=True)
        if not group.frozen
    }
    return Plan(keep, graph.structure)


def _copy_with(model: nn.Module, tensors: dict[str, Tensor]) -> nn.Module:
    """A deep copy with some parameters and buffers given new values."""
    new = copy.deepcopy(model)
    named = {**dict(new.named_parameters()), **dict(new.named_buffers())}
    with torch.no_grad():
        for name, value in tensors.items():
            named[name].copy_(value)
    return new


def _in_double(model: nn.Module, forward: Forward | None, inputs: Any) -> tuple[nn.Module, Any]:
    """Model and inputs in float64, in which constants are exact to far below float32; as they are if that fails."""
    args, kwargs = arguments(inputs)
    given = cast(kwargs if kwargs else args, torch.float64)
    try:
        double = copy.deepcopy(model).double().eval()
        args, kwargs = arguments(given)
        with torch.no_grad():
            part_of(double, forward)(*args, **kwargs)
    except Exception:
        return copy.deepcopy(model).eval(), inputs
    return double, given


def _probe(model: nn.Module, seed: int) -> nn.Module:
    """A copy whose parameters are scaled by 0.5 to 1.5 and signed at random. Zeros stay zeros, and the bias of an
    output that has no weight stays as it is; nothing else does."""
    generator = torch.Generator().manual_seed(seed)
    probe = copy.deepcopy(model)
    with torch.no_grad():
        for module in probe.modules():
            weight, bias = (module._parameters.get(name) for name in ("weight", "bias"))
            fixed = None
            if weight is not None and bias is not None and weight.shape[:1] == bias.shape:
                fixed = (weight.flatten(1) if weight.ndim > 1 else weight[:, None]).eq(0).all(1)
            for p in module._parameters.values():
                if p is not None and p.is_floating_point():
                    factor = torch.rand(p.shape, generator=generator, dtype=torch.float64) + 0.5
                    factor *= torch.randint(0, 2, p.shape, generator=generator) * 2 - 1
                    p.mul_(torch.where(fixed, 1, factor.to(p)) if p is bias and fixed is not None else factor.to(p))
    return probe


def _moved(model: nn.Module, folded: nn.Module, graph: ChannelGraph, plan: Plan, inputs: Any) -> float:
    """How far the outputs are from the original's once the plan's units are gone."""
    args, kwargs = Inputs.real(inputs).copied()
    with torch.no_grad():
        before = output_tensors(part_of(rebuilt(model, {}).eval(), graph.forward)(*args, **kwargs))
    after = reference(folded, graph, plan, inputs)
    return max(relative_error(a, b) for a, b in zip(after, before, strict=True))


def _refuse_change(error: float, mode: Mode, inputs: Any) -> None:
    tensors = output_tensors(inputs)
    limit = DOUBLE if all(t.dtype == torch.float64 for t in tensors if t.is_floating_point()) else SINGLE
    if mode == "exact" and not error <= limit:
        raise SurgeryError(
            f"folding constant channels moved the outputs by {error:.2g} (relative), more than {limit:g}: "
            "do not use the result, and please report this model"
        )


def _report(units: Units, done: Absorption, error: float, border: float | None) -> FoldReport:
    gone = units.removable & ~done.stay
    return FoldReport(
        zero=int((gone & units.zero).sum()),
        folded=int((gone & units.constant & ~units.zero).sum()),
        unread=int((gone & units.unread).sum()),
        carried=int(done.carriers.sum()),
        kept=int((~gone & units.constant & ~done.carriers).sum()),
        error=error,
        border_error=border,
    )
