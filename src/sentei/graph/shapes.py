"""Outputs on meta tensors for frequent operations whose own meta kernels run as many Python operations.

Only the plain cases are answered here: same dtype, and an operand that already has the shape and layout of the result.
For all others the function returns None and the operation's own kernel runs, which also raises its own errors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

UNARY = [
    "relu", "sigmoid", "silu", "gelu", "tanh", "hardtanh", "hardswish", "hardsigmoid",
    "relu6", "elu", "celu", "selu", "mish", "leaky_relu", "softplus", "exp",
    "sqrt", "rsqrt", "neg", "abs",
]  # fmt: skip
BINARY = ["add", "sub", "mul", "div"]


def like(x: Tensor) -> Tensor:
    """As torch.empty_like, which is Python code on meta tensors."""
    return torch.empty(x.shape, dtype=x.dtype, device=x.device) if x.is_contiguous() else torch.empty_like(x)


def _like(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    return like(args[0]) if args[0].is_floating_point() else None


def _in_place(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    return args[0] if args[0].is_floating_point() else None


def _fits(small: Tensor, big: Tensor) -> bool:
    """Whether `small` broadcasts to exactly the shape of `big`."""
    lead = big.ndim - small.ndim
    return lead >= 0 and all(n in (1, big.shape[lead + d]) for d, n in enumerate(small.shape))


def _binary(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    a, b = args[0], args[1]
    if not isinstance(b, Tensor) or a.dtype != b.dtype or "rounding_mode" in kwargs or not a.is_floating_point():
        return None
    full = a if _fits(b, a) else b if _fits(a, b) else None
    return None if full is None or 0 in full.stride() else like(full)


def _binary_in_place(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    a, b = args[0], args[1]
    return a if isinstance(b, Tensor) and a.dtype == b.dtype and _fits(b, a) else None


def _mean(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    x, dims = args[0], args[1] if len(args) > 1 else None
    if not dims or kwargs.get("dtype") is not None or not x.is_floating_point():
        return None
    gone = {d % x.ndim for d in dims}
    keepdim = len(args) > 2 and args[2]
    sizes = [1 if d in gone else n for d, n in enumerate(x.shape) if keepdim or d not in gone]
    return torch.empty(sizes, dtype=x.dtype, device=x.device)


def _product(a: Tensor, b: Tensor) -> Tensor | None:
    if a.dtype != b.dtype or a.shape[-1] != b.shape[-2] or a.shape[:-2] != b.shape[:-2]:
        return None
    return torch.empty((*a.shape[:-1], b.shape[-1]), dtype=a.dtype, device=a.device)


def _mm(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    return _product(args[0], args[1])


def _addmm(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    out = _product(args[1], args[2])
    return out if out is not None and out.dtype == args[0].dtype and _fits(args[0], out) else None


SHAPES: dict[str, Callable[[tuple[Any, ...], dict[str, Any]], Any]] = {
    **{f"aten.{name}": _like for name in UNARY},
    **{f"aten.{name}_": _in_place for name in UNARY},
    **{f"aten.{name}": _binary for name in BINARY},
    **{f"aten.{name}_": _binary_in_place for name in BINARY},
    "aten.mean": _mean,
    "aten.mm": _mm,
    "aten.bmm": _mm,
    "aten.addmm": _addmm,
}
"""Functions of (args, kwargs) by operation; a result of None means: not a plain case."""
MIXED: set[str] = set()
"""Operations whose function here also takes real tensors (lengths, index tables) beside meta tensors."""
