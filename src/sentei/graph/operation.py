"""One aten operation as the rules see it."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

SIZES = ("aten.arange", "aten.linspace", "aten.logspace", "aten._local_scalar_dense")
"""Operations whose numbers say how many elements there are, rather than compute with."""
CONSTANT = 64
"""Elements of the largest constant tensor that counts as plain numbers."""


@functools.cache
def _number_places(func: Any) -> tuple[int, ...]:
    """Positions of the arguments that may be a plain number to compute with; -1 stands for a constant tensor."""
    name = str(func.overloadpacket)
    if name in SIZES:
        return ()
    if name == "aten.lift_fresh":
        return (-1,)
    kinds = ("Tensor", "number", "float", "Scalar")
    return tuple(
        i for i, a in enumerate(func._schema.arguments) if str(a.type).removeprefix("Optional[").startswith(kinds)
    )


@functools.cache
def _parameters(func: Any) -> dict[str, tuple[int, Any]]:
    """Position and default of each argument of an operation."""
    return {a.name: (i, a.default_value) for i, a in enumerate(func._schema.arguments)}


class Call:
    """One operation: its arguments by schema name and, once it has run, its output."""

    __slots__ = ("args", "func", "kwargs", "name", "out")

    def __init__(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        self.func, self.args, self.kwargs = func, tuple(args), kwargs
        self.name = str(func.overloadpacket)
        self.out: Any = None

    def __getitem__(self, name: str) -> Any:
        i, default = _parameters(self.func)[name]
        return self.args[i] if i < len(self.args) else self.kwargs.get(name, default)

    def has(self, name: str) -> bool:
        return name in _parameters(self.func)

    def tensors(self) -> Iterator[Tensor]:
        for a in (*self.args, *self.kwargs.values()):
            if isinstance(a, Tensor):
                yield a
            elif isinstance(a, (list, tuple)):
                yield from (b for b in a if isinstance(b, Tensor))

    def numbers(self) -> dict[int, Any]:
        """The plain numbers among its arguments by position; the values of a small constant tensor at -1."""
        out: dict[int, Any] = {}
        for i in _number_places(self.func):
            if i == -1:
                t = self.args[0]
                if not t.is_meta and t.numel() <= CONSTANT and (t.is_floating_point() or t.ndim == 0):  # no table
                    out[-1] = (tuple(t.shape), tuple(t.reshape(-1).tolist()))
            elif i < len(self.args) and isinstance(self.args[i], (int, float)):
                out[i] = self.args[i]
        return out

    def compute_with(self, numbers: Mapping[int, Any]) -> None:
        """Exchange plain numbers for others."""
        args = list(self.args)
        for i, value in numbers.items():
            if i == -1:
                shape, values = value
                args[0] = torch.tensor(values, dtype=args[0].dtype, device=args[0].device).reshape(shape)
            else:
                args[i] = value
        self.args = tuple(args)

    def outputs(self) -> list[Tensor]:
        return [o for o in (self.out if isinstance(self.out, (list, tuple)) else [self.out]) if isinstance(o, Tensor)]
