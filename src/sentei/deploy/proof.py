"""That a file computes what the network computes."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sentei.deploy.axes import Axes, filled, others
from sentei.deploy.plain import Plain, named_outputs
from sentei.errors import ExportError
from sentei.graph.inputs import cast

SEEDS = (0, 1, 2)
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}
SAYS_LITTLE = 1e-3
"""Variation below which a comparison of outputs says little."""
LOW = 5e-2
"""Largest relative difference in half precision."""

Run = Callable[[Sequence[Tensor]], Sequence[Tensor]]


@dataclass(frozen=True)
class Case:
    """Inputs, what the network makes of them, and the largest difference of an output, relative to the output."""

    told: str
    inputs: list[Tensor]
    outputs: dict[str, Tensor]

    def error(self, found: Sequence[Tensor]) -> float:
        """max|a - b| / max|b| over the outputs; ExportError for outputs of other shapes."""
        shapes = [[tuple(t.shape) for t in side] for side in (found, self.outputs.values())]
        if shapes[0] != shapes[1]:
            raise ExportError(f"the file returns shapes {shapes[0]} on {self.told}, the network {shapes[1]}")
        return max(map(_relative, found, self.outputs.values()))


def cases_of(plain: Plain, tensors: Sequence[Tensor], axes: Axes) -> list[Case]:
    """Three seeded inputs, another batch and another image size where those are free."""
    found = []
    for told, inputs in _inputs(tensors, axes):
        with torch.no_grad():
            out = named_outputs(plain(*[t.clone() for t in inputs]))
        if not all(bool(torch.isfinite(t).all()) for t in out.values() if t.is_floating_point()):
            raise ExportError(f"the network's own outputs are not finite on {told}: nothing can be compared")
        found.append(Case(told, inputs, {k: t.clone() for k, t in out.items()}))
    return found


def _inputs(tensors: Sequence[Tensor], axes: Axes) -> Iterator[tuple[str, list[Tensor]]]:
    for seed in SEEDS:
        yield f"random inputs (seed {seed})", filled(tensors, seed)
    for told, inputs in others(tensors, axes):
        yield told, filled(inputs, len(SEEDS))


def proven(run: Run, cases: Sequence[Case], plain: Plain, most: float | None = None) -> dict[str, float]:
    """Error of each case; ExportError with the figure if one is above `most`, by default what rounding explains."""
    most = TOLERANCE.get(dtype_of(plain), LOW) if most is None else most
    errors = {case.told: case.error(run(case.inputs)) for case in cases}
    worst = max(cases, key=lambda case: errors[case.told])
    if not errors[worst.told] <= most:
        raise ExportError(
            f"the file does not compute what the network computes: on {worst.told} its outputs differ by "
            f"{errors[worst.told]:.2g} (relative) where at most {most:g} is rounding{_own(plain, worst)}. Nothing was "
            "written"
        )
    return errors


def _own(plain: Plain, case: Case) -> str:
    """How far the network itself is from what it computes in float64, where it can be asked."""
    if dtype_of(plain) != torch.float32:
        return ""
    try:
        twin = copy.deepcopy(plain.whole).double()
        args, kwargs = plain.arguments(case.inputs)
        exact = Plain(twin, args or kwargs, plain.part, plain.wanted)
        with torch.no_grad():
            out = named_outputs(exact(*cast(case.inputs, torch.float64)))
        error = Case(case.told, case.inputs, out).error(list(case.outputs.values()))
    except Exception:  # the network's own code may raise anything in another precision
        return ""
    return f"; the network itself is {error:.2g} off what it computes in float64 (a larger `tolerance` accepts that)"


def variation(cases: Sequence[Case]) -> float:
    """How much the network's own outputs differ from one random input to the next, as errors are counted.

    Where that is next to nothing, as in some networks with random weights, equal outputs prove little.
    """
    first, second = cases[0], cases[1]
    return first.error(list(second.outputs.values()))


def dtype_of(plain: Plain) -> torch.dtype:
    """The precision that decides what rounding is: the lowest that parameters have."""
    kinds: list[Any] = [p.dtype for p in plain.parameters() if p.is_floating_point()]
    return min(kinds, key=lambda kind: torch.finfo(kind).bits, default=torch.float32)


def _relative(a: Tensor, b: Tensor) -> float:
    if b.numel() == 0 or torch.equal(a, b):
        return 0.0
    error = float((a.double() - b.double()).abs().max() / b.double().abs().max())
    return error if not math.isnan(error) else math.inf
