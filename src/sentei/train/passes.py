"""Forward passes that nothing is learned from: in evaluation mode, and no more samples at once than memory holds."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sentei.data import Split
from sentei.data.batches import tensors_of
from sentei.data.loaders import LoaderSplit
from sentei.tasks import Task
from sentei.tasks.task import called

MB = 2**20
ALLOWED = 1024
"""MB that a pass may take where nothing is said."""
SMALL = 16 * MB
"""Inputs of a batch that are not worth a measurement."""
STATISTICS = 8
"""Samples that statistics of a batch are taken from at least."""


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put every module in evaluation mode and afterwards back into the mode it had."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def device_of(model: nn.Module) -> torch.device:
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def bytes_of(model: nn.Module | None) -> int:
    """Of parameters and buffers."""
    return 0 if model is None else sum(t.nbytes for t in (*model.parameters(), *model.buffers()))


def at_once(
    model: nn.Module, split: Split, most: int, task: Task, memory_mb: int | None = None, least: int = 1
) -> int:
    """How many samples of a split one pass may have, from `least` to `most`, to stay within so many MB.

    >>> at_once(resnet50, data.val, 500, task, memory_mb=400)
    31

    Measured on one sample: the network, its inputs and the features that are alive at the same time. Small inputs are
    not measured unless a limit is given, and the batches of a user's own loaders stay as they are.
    """
    if isinstance(split, LoaderSplit) or len(split) == 0:
        return most
    batch = next(iter(split.batches(1, limit=1)))
    inputs = sum(t.nbytes for t in tensors_of(batch))
    if memory_mb is None and most * inputs <= SMALL:
        return most
    try:
        each = inputs + peak_bytes(model, task.inputs(batch))
    except Exception:  # what fails here fails in the pass itself, which says why
        return most
    allowed = (memory_mb or ALLOWED) * MB - bytes_of(model)
    return min(most, max(allowed // max(each, 1), least))


def peak_bytes(model: nn.Module, inputs: Any) -> int:
    """The most that is alive at once of what a pass on these inputs makes."""
    with evaluating(model), torch.no_grad(), _Live() as live:
        called(model, inputs)
    return live.peak


class _Live(TorchDispatchMode):
    """Adds up the bytes of the tensors that operations make, for as long as these are alive."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {t.untyped_storage() for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and (storage := tensor.untyped_storage()) not in given:
                self._note(storage)
        return out

    def _note(self, storage: torch.UntypedStorage) -> None:
        if storage not in self.known:
            self.known.add(storage)
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._freed, storage.nbytes())

    def _freed(self, size: int) -> None:
        self.now -= size
