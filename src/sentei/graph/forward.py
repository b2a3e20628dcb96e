"""One watched forward pass of a model: which module runs, what comes out, where it failed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from sentei.graph import labels as lab
from sentei.graph.inputs import Inputs
from sentei.graph.outputs import output_tensors
from sentei.graph.part import Forward
from sentei.graph.record import Seen
from sentei.graph.resize import is_layer
from sentei.graph.tracer import Failure, LabelMode, first_line
from sentei.graph.whole import kept_whole


@contextmanager
def tracking(mode: LabelMode, model: nn.Module) -> Iterator[Callable[..., Any]]:
    """Follow which module runs, and switch off kernels that would hide operations from the mode.

    Yields what follows the call of a function as if it were the forward of the module that it is called with.
    """
    names = {id(m): n for n, m in model.named_modules()}
    plain = nn.Module.__call__

    def watched(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return follow(plain, module, *args, **kwargs)

    def follow(call: Callable[..., Any], module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        name = names.get(id(module))
        if name is None:
            mode.strangers.add(id(module))
            name = mode.where
        note = mode.units is None and not is_layer(module)
        if note:
            _meet(mode, name, "in", (args, kwargs))
        mode.stack.append((name, module, mode.op))
        try:
            out = call(module, *args, **kwargs)
        except Exception as error:
            if mode.failed is None or mode.failed.error is not error:
                layers = tuple(x for t in output_tensors([args, kwargs]) for x in mode.layers(t))
                mode.failed = Failure(first_line(error), mode.where, layers, error, mode.at)
            raise
        finally:
            mode.stack.pop()
        if note:
            _meet(mode, name, "out", out)
        if mode.units is None:
            _meet(mode, mode.where, "own", out)
        return out

    fast = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast)
        torch.backends.mha.set_fastpath_enabled(False)
        stack.callback(setattr, nn.Module, "__call__", plain)
        nn.Module.__call__ = watched  # type: ignore[method-assign]
        stack.enter_context(kept_whole())
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(torch.no_grad())
        stack.enter_context(mode)
        yield follow


def run(mode: LabelMode, model: nn.Module, inputs: Inputs, forward: Forward | None = None) -> list[Tensor]:
    """One watched forward pass of a model, or of the part of it that `forward` runs.

    Returns the output tensors, whose units are frozen. Raises what the model raises.
    """
    args, kwargs = inputs.copied()
    try:
        with tracking(mode, model) as follow:
            out = model(*args, **kwargs) if forward is None else follow(forward, model, *args, **kwargs)
    except Exception as error:
        if mode.failed is None or mode.failed.error is not error:
            mode.failed = Failure(first_line(error), "", (), error, mode.at)
        raise
    tensors = output_tensors(out)
    for t in tensors:
        for layer in mode.layers(t):
            mode.freeze(layer, "reaches the network output")
    mode.lives.reach_the_end(tensors)
    mode.trace.output_shapes.extend(tuple(t.shape) for t in tensors)
    return tensors


def _meet(mode: LabelMode, name: str, role: str, x: Any) -> None:
    """Note the labels on tensors that enter or leave a module."""
    for t in [x] if isinstance(x, Tensor) else output_tensors(x):
        mode.trace.seen += [Seen(name, role, layer) for layer in mode.layers(t)]


def as_numpy(layers: Sequence[Tensor]) -> np.ndarray:
    """All labels of some layers, without -1."""
    parts = [lab.narrow(x, lab.varying(x)).reshape(-1) for x in layers]
    flat = torch.cat(parts).numpy() if parts else np.zeros(0, np.int64)
    return flat[flat >= 0]
