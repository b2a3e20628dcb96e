"""The proof of a cut: by structure (retrace) and by numbers (check)."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from sentei.errors import SurgeryError, TraceError
from sentei.graph import ChannelGraph
from sentei.graph.copying import rebuilt
from sentei.graph.dispatch import Dispatcher
from sentei.graph.forward import run
from sentei.graph.graph import HasKeep
from sentei.graph.inputs import Inputs, arguments, cast
from sentei.graph.outputs import output_tensors
from sentei.graph.part import Forward, part_of, whose
from sentei.graph.record import Numbers, Occurrence, tied_pairs
from sentei.graph.rehearsal import no_garbage_collection, rehearse
from sentei.graph.resize import carries_units, named_tensors
from sentei.graph.trial import mismatch

SINGLE, DOUBLE = 1e-4, 1e-9


@dataclass(frozen=True)
class CheckReport:
    """`max_error`: largest difference relative to the largest reference output. `approximate`: modules that compute
    with the number of channels, by statistics over removed units (layer norm, softmax over channels, ...) or a scale
    made of the running width: there, cutting changes what the trained network computes beyond dropping the units,
    and the reference computes with the kept ones. `stale`: plain numbers of modules that may still speak of an old
    width: the forward pass computes with them, or they may mean several widths, so a cut leaves them alone."""

    max_error: float
    tolerance: float
    approximate: tuple[str, ...]
    rounding: float | None = None
    """Set if the proof took float64: the difference in the model's own precision, which was all rounding."""
    stale: tuple[str, ...] = ()


def retrace(small: nn.Module, graph: ChannelGraph, plan: HasKeep, inputs: Inputs | None = None) -> None:
    """Prove the wiring of a cut model without data: wherever two channels meet, they are of one unit of the graph.

    Raises SurgeryError that names the module where channels no longer meet the channels they met before.
    """
    _retraced(graph.without_memory(small), graph, plan, inputs)


def _retraced(small: nn.Module, graph: ChannelGraph, plan: HasKeep, inputs: Inputs | None) -> dict[Occurrence, Numbers]:
    """As `retrace`; returns the plain numbers that the cut model computes with."""
    dtypes = {p.dtype for p in small.parameters() if p.is_floating_point()}
    if inputs is None and len(dtypes) == 1 and graph.inputs.to(*dtypes).spec() != graph.inputs.spec():
        inputs = graph.inputs.to(*dtypes)
    numbers: dict[Occurrence, Numbers] = {}
    with no_garbage_collection():
        fault = mismatch(small, graph, plan, inputs, numbers=numbers)
    if fault is not None:
        where = f" in module {fault.where!r}" if fault.where else ""
        raise SurgeryError(f"the cut model is not wired like the original{where}: {fault.message}")
    return numbers


def reference(
    model: nn.Module,
    graph: ChannelGraph,
    plan: HasKeep,
    example_inputs: Any,
    numbers: Mapping[Occurrence, Numbers] | None = None,
) -> list[Tensor]:
    """Outputs of the full model where nothing reads a removed unit: what every cut is held against.

    All consumers see zero in place of the removed units. Operations that mix channels take their statistics over the
    kept ones. `numbers` are plain numbers to compute with in place of the model's own, by operation: those that the
    cut model derives from its widths. The model itself stays as it is, a copy runs.
    """
    actor = rebuilt(graph.without_memory(model), {})
    sources = {id(t): n for n, t in named_tensors(actor).items() if carries_units(t) and t.ndim}
    kept = torch.from_numpy(graph.kept_units(plan))
    mode = Dispatcher(sources, units=graph.slot_units(), kept=kept, numbers=numbers)
    actor.eval()
    try:
        outputs = run(mode, actor, Inputs.real(example_inputs), graph.forward)
    except Exception as error:
        raise TraceError(
            f"{whose(graph.forward)} failed on the example inputs {Inputs.of(example_inputs)} "
            f"(traced with {graph.inputs}): {type(error).__name__}: {error}"
        ) from error
    a, b, _ = tied_pairs(mode.trace)
    if not bool(kept[a].all() and kept[b].all()):  # what stays anyway may meet anything
        raise SurgeryError(
            "on these inputs the model takes another path than when it was traced: use inputs like those"
        )
    return outputs


def check(
    model: nn.Module, small: nn.Module, graph: ChannelGraph, plan: HasKeep, example_inputs: Any,
    tolerance: float | None = None,
) -> CheckReport:  # fmt: skip
    """Prove a cut: wiring by `retrace`, then outputs of `small` against the reference on the example inputs.

    >>> report = sentei.check(model, small, graph, plan, torch.randn(2, 3, 224, 224))
    >>> report.max_error, report.approximate, report.stale

    Copies of both models run in eval mode. Tolerance defaults to 1e-4 (float32 and lower) or 1e-9 (float64), relative
    to the largest reference output; what exceeds it in float32 or less is compared again in float64. Raises
    SurgeryError if they differ by more, and where there is nothing to compare.
    """
    graph.check_fits(model)
    model, small = graph.without_memory(model), graph.without_memory(small)
    given = Inputs.of(example_inputs)
    other = given if given.spec() != graph.inputs.spec() else None
    numbers = _changed(_own_numbers(model, graph, other), _retraced(small, graph, plan, other))
    approximate = tuple(dict.fromkeys((*graph.mixing(plan), *(at.where for at in numbers))))
    expected = reference(model, graph, plan, example_inputs, numbers)
    if not any(t.numel() for t in expected):
        raise SurgeryError(
            "the model returns no values on these inputs, so there is nothing to compare: use inputs on which it does"
        )
    if not all(bool(torch.isfinite(t).all()) for t in expected if t.is_floating_point()):
        raise SurgeryError("the original network's own output is not finite on these inputs: are its weights damaged?")
    error = _difference(small, graph.forward, expected, example_inputs)
    double = all(t.dtype == torch.float64 for t in expected if t.is_floating_point())
    limit = tolerance if tolerance is not None else DOUBLE if double else SINGLE
    report = CheckReport(error, limit, approximate, stale=graph.stale(plan))
    if error <= limit:
        return report
    if tolerance is None and not double:
        exact = _difference_in_double(model, small, graph, plan, example_inputs, numbers)
        if exact <= DOUBLE:
            return replace(report, max_error=exact, tolerance=DOUBLE, rounding=error)
    raise SurgeryError(
        f"the cut model differs from the reference by {error:.2g} (relative), more than {limit:g}: "
        "do not use it, and please report this model"
    )


def _own_numbers(model: nn.Module, graph: ChannelGraph, inputs: Inputs | None) -> Mapping[Occurrence, Numbers]:
    """The plain numbers that the full model computes with on inputs like these."""
    if inputs is None:
        return graph.trace_record.numbers
    mode = Dispatcher({}, units=graph.slot_units())
    with no_garbage_collection(), suppress(Exception):  # what fails here fails again, and is told, with values
        rehearse(mode, model, inputs, forward=graph.forward)
    return mode.trace.numbers


def _changed(own: Mapping[Occurrence, Numbers], cut: Mapping[Occurrence, Numbers]) -> dict[Occurrence, Numbers]:
    """Where the cut model computes with other plain numbers than the full one, and with which."""
    found = {at: cut[at] for at, n in own.items() if at in cut and cut[at] != n}
    return {at: n for at, n in found.items() if -1 not in n or -1 not in own[at] or n[-1][0] == own[at][-1][0]}


def _difference(small: nn.Module, forward: Forward | None, expected: list[Tensor], example_inputs: Any) -> float:
    """Largest relative error of a copy of the cut model."""
    actor = rebuilt(small, {}).eval()
    args, kwargs = Inputs.real(example_inputs).copied()
    with torch.no_grad():
        found = output_tensors(part_of(actor, forward)(*args, **kwargs))
    if len(found) != len(expected):
        return float("inf")
    return max(relative_error(a, b) for a, b in zip(found, expected, strict=True))


def _difference_in_double(
    model: nn.Module, small: nn.Module, graph: ChannelGraph, plan: HasKeep, example_inputs: Any,
    numbers: Mapping[Occurrence, Numbers],
) -> float:  # fmt: skip
    """The same comparison in float64, which tells rounding in deep or badly scaled networks from a wrong cut."""
    args, kwargs = arguments(example_inputs)
    inputs = cast(kwargs if kwargs else args, torch.float64)
    try:
        expected = reference(rebuilt(model, {}).double(), graph, plan, inputs, numbers)
        return _difference(rebuilt(small, {}).double(), graph.forward, expected, inputs)
    except Exception:  # not every model runs in float64; the first comparison stands
        return float("inf")


def relative_error(a: Tensor, b: Tensor) -> float:
    """max |a - b| / max |b|; infinite if shapes differ or only one side is finite."""
    if a.shape != b.shape:
        return float("inf")
    if a.numel() == 0 or torch.equal(a, b):
        return 0.0
    a, b = a.double(), b.double()
    return float((a - b).abs().max() / b.abs().max().clamp_min(1e-30))
