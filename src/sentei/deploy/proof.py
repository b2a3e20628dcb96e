"""That a file computes what the network computes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sentei.deploy.axes import Axes, filled, others
from sentei.deploy.plain import Plain, named_outputs
from sentei.errors import ExportError

SEEDS = (0, 1, 2)
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}
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


def proven(run: Run, cases: Sequence[Case], dtype: torch.dtype) -> dict[str, float]:
    """Error of each case; ExportError with the figure if one is above what rounding explains."""
    most = TOLERANCE.get(dtype, LOW)
    errors = {case.told: case.error(run(case.inputs)) for case in cases}
    told, worst = max(errors.items(), key=lambda item: item[1])
    if not worst <= most:
        raise ExportError(
            f"the file does not compute what the network computes: on {told} its outputs differ by {worst:.2g} "
            f"(relative) where at most {most:g} is rounding. Nothing was written"
        )
    return errors


def dtype_of(plain: Plain) -> torch.dtype:
    """The precision that decides what rounding is: the lowest that parameters have."""
    kinds: list[Any] = [p.dtype for p in plain.parameters() if p.is_floating_point()]
    return min(kinds, key=lambda kind: torch.finfo(kind).bits, default=torch.float32)


def _relative(a: Tensor, b: Tensor) -> float:
    if b.numel() == 0 or torch.equal(a, b):
        return 0.0
    error = float((a.double() - b.double()).abs().max() / b.double().abs().max())
    return error if not math.isnan(error) else math.inf
