"""The proof of a cut: by structure (retrace) and by numbers (check)."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sentei.errors import SurgeryError, TraceError
from sentei.graph import ChannelGraph
from sentei.graph.forward import output_tensors, run
from sentei.graph.graph import HasKeep
from sentei.graph.inputs import Inputs, arguments, cast
from sentei.graph.record import tied_pairs
from sentei.graph.resize import carries_units, modes_kept, named_tensors
from sentei.graph.tracer import LabelMode
from sentei.graph.trial import mismatch

SINGLE, DOUBLE = 1e-4, 1e-9


@dataclass(frozen=True)
class CheckReport:
    """`max_error`: largest difference relative to the largest reference output. `approximate`: modules whose statistics
    run over removed units (layer norm, softmax over channels, ...): there, cutting changes what the trained network
    computes beyond dropping the units, and the reference takes its statistics over the kept ones."""

    max_error: float
    tolerance: float
    approximate: tuple[str, ...]
    rounding: float | None = None
    """Set if the proof took float64: the difference in the model's own precision, which was all rounding."""


def retrace(small: nn.Module, graph: ChannelGraph, plan: HasKeep, inputs: Inputs | None = None) -> None:
    """Prove the wiring of a cut model without data: wherever two channels meet, they are of one unit of the graph.

    Raises SurgeryError that names the module where channels no longer meet the channels they met before.
    """
    dtypes = {p.dtype for p in small.parameters() if p.is_floating_point()}
    if inputs is None and len(dtypes) == 1 and graph.inputs.to(*dtypes).spec() != graph.inputs.spec():
        inputs = graph.inputs.to(*dtypes)
    fault = mismatch(small, graph, plan, inputs)
    if fault is not None:
        where = f" in module {fault.where!r}" if fault.where else ""
        raise SurgeryError(f"the cut model is not wired like the original{where}: {fault.message}")


def reference(model: nn.Module, graph: ChannelGraph, plan: HasKeep, example_inputs: Any) -> list[Tensor]:
    """Outputs of the full model where nothing reads a removed unit: what every cut is held against.

    All consumers see zero in place of the removed units. Operations that mix channels take their statistics over the
    kept ones.
    """
    sources = {id(t): n for n, t in named_tensors(model).items() if carries_units(t) and t.ndim}
    mode = LabelMode(sources, units=graph.slot_units(), kept=torch.from_numpy(graph.kept_units(plan)))
    args, kwargs = arguments(example_inputs)
    with modes_kept(model):
        model.eval()
        try:
            outputs = run(mode, model, args, kwargs)
        except Exception as error:
            raise TraceError(
                f"the model's own forward failed on the example inputs {Inputs.of(example_inputs)} "
                f"(traced with {graph.inputs}): {type(error).__name__}: {error}"
            ) from error
    if len(tied_pairs(mode.trace)[0]):
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
    >>> report.max_error, report.approximate

    Both models run in eval mode. Tolerance defaults to 1e-4 (float32 and lower) or 1e-9 (float64), relative to the
    largest reference output; what exceeds it in float32 is compared again in float64. Raises SurgeryError if they
    differ by more.
    """
    graph.check_fits(model)
    given = Inputs.of(example_inputs)
    expected = reference(model, graph, plan, example_inputs)
    retrace(small, graph, plan, given if given.spec() != graph.inputs.spec() else None)
    if not all(bool(torch.isfinite(t).all()) for t in expected if t.is_floating_point()):
        raise SurgeryError("the original network's own output is not finite on these inputs: are its weights damaged?")
    error = _difference(small, expected, example_inputs)
    double = all(t.dtype == torch.float64 for t in expected if t.is_floating_point())
    limit = tolerance if tolerance is not None else DOUBLE if double else SINGLE
    if error <= limit:
        return CheckReport(error, limit, graph.mixing(plan))
    if tolerance is None and not double:
        exact = _difference_in_double(model, small, graph, plan, example_inputs)
        if exact <= DOUBLE:
            return CheckReport(exact, DOUBLE, graph.mixing(plan), rounding=error)
    raise SurgeryError(
        f"the cut model differs from the reference by {error:.2g} (relative), more than {limit:g}: "
        "do not use it, and please report this model"
    )


def _difference(small: nn.Module, expected: list[Tensor], example_inputs: Any) -> float:
    args, kwargs = arguments(example_inputs)
    with modes_kept(small), torch.no_grad():
        small.eval()
        found = output_tensors(small(*args, **kwargs))
    return max((relative_error(a, b) for a, b in zip(found, expected, strict=True)), default=0.0)


def _difference_in_double(
    model: nn.Module, small: nn.Module, graph: ChannelGraph, plan: HasKeep, example_inputs: Any
) -> float:
    """The same comparison in float64, which tells rounding in deep or badly scaled networks from a wrong cut."""
    args, kwargs = arguments(example_inputs)
    inputs = cast(kwargs if kwargs else args, torch.float64)
    try:
        expected = reference(copy.deepcopy(model).double(), graph, plan, inputs)
        return _difference(copy.deepcopy(small).double(), expected, inputs)
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
