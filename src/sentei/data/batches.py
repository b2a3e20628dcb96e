"""Batches of any nesting: their tensors moved, counted, split and described."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor


def mapped(batch: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A batch with every tensor changed; tuples, lists and mappings keep their kind where it can be built again.

    >>> mapped({"x": torch.ones(2)}, lambda t: t + 1)
    {'x': tensor([2., 2.])}
    """
    if isinstance(batch, Tensor):
        return change(batch)
    if isinstance(batch, dict):
        return _same_kind(batch, {name: mapped(value, change) for name, value in batch.items()})
    if isinstance(batch, Mapping):
        return {name: mapped(value, change) for name, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(mapped(value, change) for value in batch))
    if isinstance(batch, (list, tuple)):
        return type(batch)([mapped(value, change) for value in batch])
    return batch


def _same_kind(batch: dict[Any, Any], values: dict[Any, Any]) -> Any:
    return values if type(batch) is dict else type(batch)(values)


def tensors_of(batch: Any) -> list[Tensor]:
    """The tensors of a batch, in order.

    >>> len(tensors_of((torch.ones(2), {"boxes": [torch.ones(1, 4)]})))
    2
    """
    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    mapped(batch, note)
    return found


def moved(batch: Any, device: torch.device) -> Any:
    """A batch on a device; objects that know how to move themselves do."""
    if not isinstance(batch, (Tensor, Mapping, list, tuple)) and hasattr(batch, "to"):
        return batch.to(device)
    return mapped(batch, lambda t: t.to(device, non_blocking=True))


def count_of(batch: Any) -> int:
    """How many samples a batch holds: the length of its first tensor, or of a list of samples that comes before it.

    >>> count_of((torch.ones(8, 3, 4, 4), torch.ones(8))), count_of([[torch.ones(3, 5, 5)] * 4, ["a"] * 4])
    (8, 4)
    """
    if isinstance(batch, Tensor):
        return len(batch) if batch.ndim else 1
    if isinstance(batch, Mapping):
        return next(map(count_of, batch.values()), 1)
    if isinstance(batch, (list, tuple)) and batch:
        first = batch[0]
        samples = isinstance(batch, list) and isinstance(first, Tensor) and first.ndim != 4 and _alike(batch)
        return len(batch) if samples else count_of(first)
    return 1


def pieces_of(batch: Any, pieces: int) -> list[Any]:
    """A batch cut into so many smaller ones, as `torch.tensor_split` cuts; what has another length goes into each."""
    return [batch] if pieces == 1 else [_piece(batch, count_of(batch), pieces, i) for i in range(pieces)]


def _piece(part: Any, count: int, pieces: int, i: int) -> Any:
    if isinstance(part, Tensor):
        return part.tensor_split(pieces)[i] if part.ndim and len(part) == count else part
    if isinstance(part, Mapping):
        return {name: _piece(value, count, pieces, i) for name, value in part.items()}
    if isinstance(part, list) and len(part) == count and _alike(part) and not any(_holds(v, count) for v in part):
        where = torch.arange(count).tensor_split(pieces)[i].tolist()
        return [part[j] for j in where]
    if isinstance(part, (list, tuple)):
        return type(part)([_piece(value, count, pieces, i) for value in part])
    return part


def _alike(values: list[Any]) -> bool:
    """Whether the elements of a list may be samples: a batch of inputs and labels has tensors of several ranks."""
    return len({v.ndim if isinstance(v, Tensor) else -1 for v in values}) < 2


def _holds(value: Any, count: int) -> bool:
    """Whether an element of a list is itself a batch of so many samples."""
    return isinstance(value, Tensor) and value.ndim == 4 and len(value) == count
