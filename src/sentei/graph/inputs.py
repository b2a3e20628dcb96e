"""Example inputs: what a forward pass is called with, as meta tensors and as a JSON description."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sentei.errors import TraceError


@dataclass(frozen=True, eq=False)
class Inputs:
    """Positional and keyword arguments of a model: `of` keeps only the shapes (meta tensors), `real` the values."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @classmethod
    def of(cls, example: Any) -> Inputs:
        """Tensor | tuple (positional) | dict (keywords) -> Inputs."""
        args, kwargs = arguments(example)
        return cls(tuple(_meta(a) for a in args), {k: _meta(v) for k, v in kwargs.items()})

    @classmethod
    def real(cls, example: Any) -> Inputs:
        """As `of`, with the tensors as they are."""
        return cls(*arguments(example))

    def __str__(self) -> str:
        shapes = [_short(a) for a in self.args] + [f"{k}={_short(v)}" for k, v in self.kwargs.items()]
        return f"({', '.join(shapes)})"

    def to(self, dtype: torch.dtype) -> Inputs:
        """The same inputs with floating tensors of another dtype."""
        return Inputs(cast(self.args, dtype), cast(dict(self.kwargs), dtype))

    def copied(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments that a forward pass may write into."""
        return _map(self.args, _copied), _map(dict(self.kwargs), _copied)

    def filled(self, device: torch.device | str = "cpu", seed: int = 0) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Real arguments of these shapes: normal numbers where floating, zeros elsewhere."""
        generator = torch.Generator().manual_seed(seed)

        def fill(t: Tensor) -> Tensor:
            if t.is_floating_point():
                return torch.randn(t.shape, generator=generator).to(device, t.dtype)
            return torch.zeros(t.shape, dtype=t.dtype, device=device)

        return _map(self.args, fill), _map(dict(self.kwargs), fill)

    def spec(self) -> Any:
        return [_describe(list(self.args)), _describe(dict(self.kwargs))]

    @classmethod
    def from_spec(cls, spec: Any) -> Inputs:
        try:
            return cls(tuple(_build(spec[0])), _build(spec[1]))
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise TraceError(f"inputs of this description cannot be made: {error}") from error


def arguments(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """How example inputs are passed to the model: a tensor or tuple by position, a dict by keyword."""
    if isinstance(example, Tensor):
        return (example,), {}
    if isinstance(example, (tuple, list)) and example and all(isinstance(n, int) for n in example):
        raise TraceError(f"example_inputs is a shape, {tuple(example)}; give a tensor: torch.zeros{tuple(example)}")
    if isinstance(example, (tuple, list)):
        return tuple(example), {}
    if isinstance(example, Mapping):
        return (), dict(example)
    raise TraceError(
        f"example_inputs is a {type(example).__name__}; give a tensor, a tuple (positional) or a dict (keywords)"
    )


def _copied(t: Tensor) -> Tensor:
    if t.is_meta:
        return torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="meta")
    return t.detach().clone()


def _short(x: Any) -> str:
    return "x".join(map(str, x.shape)) or "scalar" if isinstance(x, Tensor) else type(x).__name__


def _map(x: Any, fn: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(x, Tensor):
        return fn(x)
    if isinstance(x, Mapping):
        return {k: _map(v, fn) for k, v in x.items()}
    if isinstance(x, (list, tuple)):
        parts = [_map(v, fn) for v in x]
        return type(x)(*parts) if hasattr(x, "_fields") else type(x)(parts)
    return x


def _meta(x: Any) -> Any:
    return _map(x, lambda t: torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="meta"))


def cast(x: Any, dtype: torch.dtype) -> Any:
    """Nested inputs with floating tensors of another dtype."""
    return _map(x, lambda t: t.to(dtype) if t.is_floating_point() else t)


def _describe(x: Any) -> Any:
    if isinstance(x, Tensor):
        return {"tensor": list(x.shape), "dtype": str(x.dtype).removeprefix("torch.")}
    if isinstance(x, Mapping):
        return {"dict": {str(k): _describe(v) for k, v in x.items()}}
    if isinstance(x, (list, tuple)):
        return {"tuple" if isinstance(x, tuple) else "list": [_describe(v) for v in x]}
    if x is None or isinstance(x, (str, int, float, bool)):
        return {"value": x}
    return {"opaque": repr(type(x))}


def _build(spec: Any) -> Any:
    if "tensor" in spec:
        return torch.empty(spec["tensor"], dtype=getattr(torch, spec["dtype"]), device="meta")
    if "dict" in spec:
        return {k: _build(v) for k, v in spec["dict"].items()}
    if "tuple" in spec or "list" in spec:
        items = [_build(v) for v in spec.get("tuple", spec.get("list"))]
        return tuple(items) if "tuple" in spec else items
    if "value" in spec:
        return spec["value"]
    raise TraceError(f"the example inputs hold a {spec.get('opaque', 'value')} that a file cannot describe")
