"""Forward passes that nothing is learned from: in evaluation mode, and no more samples at once than memory holds."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from sentei.data import Split
from sentei.data.batches import tensors_of
from sentei.data.loaders import LoaderSplit
from sentei.graph.outputs import output_tensors
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
    there = (*model.parameters(), *model.buffers(), *tensors_of(inputs))
    with evaluating(model), torch.no_grad(), Alive(t.untyped_storage()._cdata for t in there) as alive:
        called(model, inputs)
    return alive.peak


class Alive(TorchDispatchMode):
    """Counts the bytes of `inputs` and of all storages that operations make until nothing holds them any more; the
    `known` ones count nothing."""

    def __init__(self, known: Iterable[int], inputs: Any = ()) -> None:
        super().__init__()
        self._sizes: dict[int, int] = dict.fromkeys(known, 0)
        self.now = self.peak = 0
        self._see(inputs)

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        self._see(out)
        return out

    def _see(self, made: Any) -> None:
        for tensor in output_tensors(made):
            self._count(tensor)
        self.peak = max(self.peak, self.now)

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self.now += storage.nbytes()
            weakref.finalize(storage, self._gone, key)

    def _gone(self, key: int) -> None:
        self.now -= self._sizes.pop(key, 0)
