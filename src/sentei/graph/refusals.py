"""Models that cannot be traced, each with one sentence that says what to do instead."""

from __future__ import annotations

import inspect
import linecache
import os
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule
from torch.nn.parameter import is_lazy

from sentei.errors import TraceError

QUANTIZED = ("torch.ao.nn.quantiz", "torch.ao.nn.qat", "torch.ao.nn.intrinsic.q", "torch.ao.quantization.", "torchao.")
STUBS = ("QuantStub", "DeQuantStub", "QuantWrapper")
PARALLEL = ("DistributedDataParallel", "DataParallel", "FullyShardedDataParallel")
VALUELESS = (
    "cannot be called on meta tensors",
    "Cannot copy out of meta tensor",
    "can't convert meta device type tensor",
    "data-independent implementation",
    "data-dependent",
    "Tensor on device meta is not on the expected device",
    "no fake impl",
    "meta tensor without",
    "torch._custom_ops.get_ctx",
)
OPERATIONS = ("<", os.path.join("torchvision", "ops"), os.path.join("torchvision", "_"))
"""Files that only implement an operation: whoever calls it is at fault."""
NOWHERE = os.path.dirname(os.path.abspath(torch.__file__)), os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def refuse(model: Any) -> None:
    """TraceError if the model is of a kind that cannot be traced and cut."""
    if isinstance(model, torch.export.ExportedProgram):
        raise TraceError(_exported("the model"))
    if not isinstance(model, nn.Module):
        raise TraceError(f"expected a model (an nn.Module), got {model!r}: call the function that builds it")
    for name, module in model.named_modules():
        why = _fault(module, f"the module {name!r}" if name else "the model")
        if why is not None:
            raise TraceError(why)
    if inspect.isgeneratorfunction(type(model).forward) or inspect.iscoroutinefunction(type(model).forward):
        raise TraceError(
            "the model's forward is a generator or coroutine (it yields instead of returning): "
            "give a module whose forward returns its outputs, as a list for instance"
        )


def _fault(module: nn.Module, it: str) -> str | None:
    kind = type(module)
    if isinstance(module, torch.jit.ScriptModule):
        return (
            f"{it} is scripted or traced by torch.jit, so its code cannot be followed: "
            "trace and cut the Python module that it was made from, then script the cut one"
        )
    if "_orig_mod" in module._modules:
        return f"{it} is compiled: trace and cut the original module (model._orig_mod), then compile the cut one"
    if isinstance(module, GraphModule) and "eval" in vars(module):
        return _exported(it)
    if kind.__module__.startswith(QUANTIZED) and kind.__name__ not in STUBS:
        return (
            f"{it} is quantized or prepared for quantization ({kind.__name__}): "
            "trace and cut the float model, then quantize the cut one"
        )
    if kind.__module__.startswith("torch.") and kind.__name__ in PARALLEL:
        return f"{it} is wrapped in {kind.__name__}: trace and cut what it wraps (model.module), then wrap the cut one"
    for tensor in (*module._parameters.values(), *module._buffers.values()):
        if tensor is not None and is_lazy(tensor):
            return f"{it} has parameters without a shape yet ({kind.__name__}): run the model once on real inputs first"
    return None


def _exported(it: str) -> str:
    return (
        f"{it} is exported (torch.export), a fixed program of fixed sizes: "
        "trace and cut the Python module that it was made from, then export the cut one"
    )


def untraceable(error: BaseException, module: str, what: str = "the model") -> str:
    """Why a model whose forward runs on real inputs does not run on meta tensors, with the line of the user's code."""
    where = f" in module {module!r}" if module else ""
    line = _line(error)
    at = f", at {line}" if line else ""
    said = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"[:200]
    if any(part in str(error) for part in VALUELESS):
        return (
            f"{what} cannot be traced{where}{at}: its path or a size depends on values of the input or of tensors "
            f"computed from it, and tensors have none while tracing ({said}). "
            "Trace the part without that, or replace the value by a constant"
        )
    return f"{what} cannot be traced{where}{at}, where tensors have no values: {said}"


def _line(error: BaseException) -> str | None:
    """The innermost line of code that belongs neither to PyTorch nor to sentei, nor implements an operation."""
    found = None
    tb = error.__traceback__
    while tb is not None:
        file = tb.tb_frame.f_code.co_filename
        own = os.path.abspath(file).startswith(tuple(p + os.sep for p in NOWHERE))
        if not own and not any(part in file for part in OPERATIONS):
            found = (file, tb.tb_lineno)
        tb = tb.tb_next
    if found is None:
        return None
    source = linecache.getline(*found).strip()
    return f"{os.path.basename(found[0])}:{found[1]}" + (f" ({source})" if source else "")
