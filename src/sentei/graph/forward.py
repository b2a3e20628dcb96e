"""One watched forward pass of a model: which module runs, what comes out, where it failed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from sentei.graph import labels as lab
from sentei.graph.tracer import Failure, LabelMode, first_line
from sentei.graph.whole import kept_whole


@contextmanager
def tracking(mode: LabelMode, model: nn.Module) -> Iterator[None]:
    """Follow which module runs, and switch off kernels that would hide operations from the mode."""
    names = {id(m): n for n, m in model.named_modules()}
    call = nn.Module.__call__

    def watched(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        mode.stack.append((names.get(id(module), mode.where), module, mode.op))
        try:
            return call(module, *args, **kwargs)
        except Exception as error:
            if mode.failed is None or mode.failed.error is not error:
                layers = tuple(x for t in output_tensors([args, kwargs]) for x in mode.layers(t))
                mode.failed = Failure(first_line(error), mode.where, layers, error)
            raise
        finally:
            mode.stack.pop()

    fast = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast)
        torch.backends.mha.set_fastpath_enabled(False)
        stack.callback(setattr, nn.Module, "__call__", call)
        nn.Module.__call__ = watched  # type: ignore[method-assign]
        stack.enter_context(kept_whole())
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(torch.no_grad())
        stack.enter_context(mode)
        yield


def output_tensors(out: Any) -> list[Tensor]:
    """All tensors in a model's output: tensors, sequences, mappings, dataclasses, objects with attributes."""
    if isinstance(out, Tensor):
        return [out]
    if isinstance(out, Mapping):
        return [t for v in out.values() for t in output_tensors(v)]
    if isinstance(out, (list, tuple, set)):
        return [t for v in out for t in output_tensors(v)]
    if out is None or isinstance(out, (str, bytes, int, float, bool)):
        return []
    return [t for v in getattr(out, "__dict__", {}).values() for t in output_tensors(v)]


def run(mode: LabelMode, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """One watched forward pass. Returns the output tensors, whose units are frozen. Raises what the model raises."""
    try:
        with tracking(mode, model):
            out = model(*args, **kwargs)
    except Exception as error:
        if mode.failed is None or mode.failed.error is not error:
            mode.failed = Failure(first_line(error), "", (), error)
        raise
    tensors = output_tensors(out)
    for t in tensors:
        for layer in mode.layers(t):
            mode.freeze(layer, "reaches the network output")
    mode.trace.output_shapes.extend(tuple(t.shape) for t in tensors)
    return tensors


def as_numpy(layers: Sequence[Tensor]) -> np.ndarray:
    """All labels of some layers, without -1."""
    parts = [lab.narrow(x, lab.varying(x)).reshape(-1) for x in layers]
    flat = torch.cat(parts).numpy() if parts else np.zeros(0, np.int64)
    return flat[flat >= 0]
