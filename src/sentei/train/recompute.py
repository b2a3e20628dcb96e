"""Activation checkpointing: blocks whose inner activations are computed again in the backward pass, not kept.

Chen, Xu, Zhang, Guestrin: "Training Deep Nets with Sublinear Memory Cost" (arXiv 1604.06174).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.checkpoint import checkpoint

LISTS = (nn.Sequential, nn.ModuleList)
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


class Recomputed(AbstractContextManager["Recomputed"]):
    """While it is entered, the blocks of a model keep their inputs only.

    >>> with Recomputed(model):  # doctest: +SKIP
    ...     task.step(model, batch).backward()

    Gradients and BatchNorm statistics are those of the plain model; a step takes about a third longer.
    """

    def __init__(self, model: nn.Module) -> None:
        self.blocks = blocks(model)

    def __enter__(self) -> Recomputed:
        for block in self.blocks:
            block.forward = partial(
                checkpoint, block.forward, use_reentrant=False, context_fn=partial(_contexts, block)
            )
        return self

    def __exit__(self, *_: Any) -> None:
        for block in self.blocks:
            del block.forward


def blocks(model: nn.Module) -> list[nn.Module]:
    """The smallest members of lists of modules that have layers inside: residual blocks, mostly.

    >>> conv = nn.Conv2d(3, 3, 1)
    >>> len(blocks(nn.Sequential(nn.Sequential(conv, nn.ReLU()), nn.Sequential(nn.Sequential(conv), nn.ReLU()))))
    2
    """
    found: list[nn.Module] = []
    for child in model.children():
        parts = list(child.children())
        lists = isinstance(child, LISTS) and any(any(part.children()) for part in parts)
        if isinstance(model, LISTS) and parts and not lists:
            found.append(child)
        else:
            found += blocks(child)
    return found


def _contexts(block: nn.Module) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    return nullcontext(), _same_statistics(block)


@contextmanager
def _same_statistics(block: nn.Module) -> Iterator[None]:
    """A second forward pass must not move running statistics once more."""
    norms = [m for m in block.modules() if isinstance(m, _NormBase) and m.running_mean is not None]
    kept = [{name: norm._buffers[name] for name in STATISTICS} for norm in norms]
    for norm, buffers in zip(norms, kept, strict=True):
        norm._buffers.update({name: None if b is None else b.clone() for name, b in buffers.items()})
    try:
        yield
    finally:
        for norm, buffers in zip(norms, kept, strict=True):
            norm._buffers.update(buffers)
