"""The first pass over a model: what its forward tells by itself, before anything is tried."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from sentei.errors import SenteiError, SurgeryError, TraceError
from sentei.graph.copying import rebuilt
from sentei.graph.dispatch import Dispatcher
from sentei.graph.inputs import Inputs, arguments
from sentei.graph.outputs import output_tensors
from sentei.graph.part import Forward, name_of, part_of, whose
from sentei.graph.record import Trace
from sentei.graph.refusals import untraceable
from sentei.graph.rehearsal import rehearse
from sentei.graph.tracer import LabelMode


def first_pass(
    model: nn.Module,
    named: Mapping[str, Tensor],
    inputs: Inputs,
    choices: Mapping[int, int],
    forward: Forward | None = None,
    example: Any = None,
) -> Trace:
    """The record of a forward pass in which each index of each parameter has a label of its own.

    `choices` are the axes along which splits shrink (see `Split`). TraceError if the model cannot be run so, or if
    there is nothing that could be pruned or proven.
    """
    mode = Dispatcher({}, _labelled_dims(model, named), choices)
    try:
        rehearse(mode, model, inputs, forward=forward)
    except SurgeryError as error:
        raise TraceError(str(error)) from error
    except SenteiError:  # a given forward that knows what it cannot run
        raise
    except Exception as error:
        _check_own_modules(model, mode, forward)
        raise _refusal(model, inputs, forward, example, mode, error) from error
    _check_own_modules(model, mode, forward)
    if not mode.trace.output_shapes:
        source = "the model's output" if forward is None else f"the output of {whose(forward)}"
        raise TraceError(
            f"{source} holds no tensor, so nothing could be proven of a cut: return tensors, or a container "
            "or object that holds them (not a function, a generator or the model itself)"
        )
    if not mode.trace.contractions:
        raise TraceError(f"nothing to prune: {whose(forward)} runs no convolution, matrix product or recurrent layer")
    if not mode.trace.slots:
        raise TraceError(f"nothing to prune: {whose(forward)} reads no channels of the model's parameters")
    return mode.trace


def _check_own_modules(model: nn.Module, mode: LabelMode, forward: Forward | None) -> None:
    """TraceError if a given forward runs the model that it knows from elsewhere, not the copy that it is given."""
    name = next((n for n, m in model.named_modules() if id(m) in mode.strangers), None)
    if forward is not None and name is not None:
        raise TraceError(
            f"{whose(forward)} runs {f'module {name!r} of ' if name else ''}the model that was given to trace: it has "
            "to use its first argument, because copies of the model run"
        )


def _labelled_dims(model: nn.Module, named: Mapping[str, Tensor]) -> set[tuple[str, int]]:
    """Dimensions that may hold units: all but the kernel dimensions of convolutions."""
    kernels = {
        id(t)
        for m in model.modules()
        if isinstance(m, _ConvNd)
        for part in m.modules()
        for t in part._parameters.values()
        if t is not None
    }
    return {(n, d) for n, t in named.items() for d in range(min(t.ndim, 2) if id(t) in kernels else t.ndim)}


def _refusal(
    model: nn.Module, inputs: Inputs, forward: Forward | None, example: Any, mode: LabelMode, error: Exception
) -> TraceError:
    where = f" in module {mode.failed.where!r}" if mode.failed and mode.failed.where else ""
    own = _own_failure(model, forward, example)
    if own is None:
        what = "the model" if forward is None else f"the part of the model that {name_of(forward)!r} runs"
        return TraceError(untraceable(error, mode.failed.where if mode.failed else "", what))
    return TraceError(f"{whose(forward)} failed on the example inputs {inputs}{where}: {type(own).__name__}: {own}")


def _own_failure(model: nn.Module, forward: Forward | None, example: Any) -> Exception | None:
    """What a copy of the model raises on real example inputs, without any tracing."""
    if example is None or isinstance(example, Inputs):
        return None
    args, kwargs = arguments(example)
    tensors = output_tensors([args, kwargs])
    if not tensors or any(t.is_meta for t in tensors):
        return None
    try:
        with torch.no_grad():
            part_of(rebuilt(model, {}).eval(), forward)(*args, **kwargs)
    except Exception as error:
        return error
    return None
