"""The tensors in any object: outputs of a model, arguments of a module, what a module keeps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
from typing import Any

import torch
from torch import Tensor, nn

_LEAVES = (str, bytes, bytearray, int, float, complex, bool, type(None), type, torch.dtype, torch.device, torch.Size)


def output_tensors(out: Any) -> list[Tensor]:
    """All tensors in an object, in a fixed order: in sequences, mappings, sets, dataclasses, slots and attributes."""
    return list(_search(out, set()))


def _search(x: Any, seen: set[int]) -> Iterator[Tensor]:
    if isinstance(x, Tensor):
        yield x
        return
    if isinstance(x, (*_LEAVES, nn.Module, Iterator)) or callable(x) or id(x) in seen:
        return
    seen.add(id(x))
    if isinstance(x, Mapping):
        parts = list(x.values())
    elif isinstance(x, Set):
        parts = sorted(x, key=_content)
    elif isinstance(x, Iterable):
        parts = list(x)
    else:
        parts = []
    parts += _attributes(x)
    for part in parts:
        yield from _search(part, seen)


def _content(x: Any) -> tuple[str, float]:
    """An order of the members of a set that does not depend on where they lie in memory."""
    if isinstance(x, Tensor):
        return str(tuple(x.shape)), 0.0 if x.is_meta else float(x.detach().double().sum())
    return repr(type(x)), 0.0


def _attributes(x: Any) -> list[Any]:
    slots = [n for kind in type(x).__mro__ for n in _names(kind.__dict__.get("__slots__", ()))]
    held = [getattr(x, n) for n in dict.fromkeys(slots) if n not in ("__dict__", "__weakref__") and hasattr(x, n)]
    return held + list(getattr(x, "__dict__", {}).values())


def _names(slots: Any) -> tuple[str, ...]:
    return (slots,) if isinstance(slots, str) else tuple(slots)
