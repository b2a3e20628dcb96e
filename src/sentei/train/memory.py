"""How much memory training takes, known before it starts, and in how many pieces a batch must be computed to fit."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sentei.distributed import processes
from sentei.errors import TrainError
from sentei.tasks import Task
from sentei.tasks.task import run_part
from sentei.train.passes import MB, bytes_of, evaluating
from sentei.train.recipe import Recipe
from sentei.train.recompute import Recomputed, blocks


@dataclass(frozen=True)
class Memory:
    """Bytes of a training step: those of weights, gradients and the optimizer, and those that each sample adds.

    >>> Memory(fixed=100 * MB, each=10 * MB).pieces(batch=64, limit_mb=300)
    4
    """

    fixed: int
    each: int

    def bytes(self, samples: int) -> int:
        return self.fixed + samples * self.each

    def pieces(self, batch: int, limit_mb: int) -> int:
        """In how many pieces a batch fits; TrainError, with what to do, if not even one sample does."""
        fitting = (limit_mb * MB - self.fixed) // max(self.each, 1)
        if fitting < 1:
            raise TrainError(
                f"training takes {self.fixed / MB:,.0f} MB for weights, gradients and the optimizer, and "
                f"{self.each / MB:,.1f} MB for each sample; train_memory_mb is {limit_mb:,}. Allow more, or --recompute"
            )
        return math.ceil(batch / min(fitting, batch))

    def told(self, batch: int, pieces: int) -> str:
        at_once = math.ceil(batch / pieces)
        split = f", batches of {batch} in {pieces} pieces" if pieces > 1 else ""
        return f"about {self.bytes(at_once) / MB:,.0f} MB: {self.each / MB:,.2f} MB a sample, {at_once} at once{split}"


def memory_of(model: nn.Module, batch: Any, task: Task, recipe: Recipe, teacher: nn.Module | None = None) -> Memory:
    """What a step of training a model takes in this process, measured on a batch of a few samples.

    Weights, gradients, the optimizer's and the average's copies of them, what DistributedDataParallel gathers, and the
    activations that wait for the backward pass. What single operations need besides, and Python, are not counted.
    """
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    copies = 1 + (2 if recipe.optimizer == "adamw" else int(recipe.momentum > 0)) + int(processes() > 1)
    networks = bytes_of(model) * (1 + (recipe.ema_decay is not None)) + bytes_of(teacher)
    return Memory(networks + copies * trained, training_bytes(model, batch, task, recipe.recompute))


def training_bytes(model: nn.Module, batch: Any, task: Task, recompute: bool = False) -> int:
    """What one sample of a batch keeps in memory for the backward pass, measured in a forward pass.

    With `recompute` what blocks are given, and what the largest of them keeps while it is computed again.
    """
    plain = _Kept(model)
    with plain:
        run_part(task, model, task.inputs(batch))
    kept = sum(plain.by_block.values())
    if recompute:
        again = _Kept(model)
        with Recomputed(model), again:
            run_part(task, model, task.inputs(batch))
        kept = sum(again.by_block.values()) + max((n for b, n in plain.by_block.items() if b >= 0), default=0)
    return kept // max(task.count(batch), 1)


class _Kept:
    """Bytes that autograd keeps of what runs inside, by the number of the block that it belongs to; -1 is none."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.by_block, self.now = model, Counter[int](), -1
        self.seen = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def __enter__(self) -> None:
        self.inside = ExitStack()
        for i, block in enumerate(blocks(self.model)):
            for hook in (block.register_forward_pre_hook(self._entered(i)), block.register_forward_hook(self._left)):
                self.inside.callback(hook.remove)
        self.inside.enter_context(evaluating(self.model))
        self.inside.enter_context(torch.enable_grad())
        self.inside.enter_context(torch.autograd.graph.saved_tensors_hooks(self._pack, lambda t: t))

    def __exit__(self, *_: object) -> None:
        self.inside.close()

    def _entered(self, block: int) -> Callable[..., None]:
        def enter(*_: Any) -> None:
            self.now = block

        return enter

    def _left(self, *_: Any) -> None:
        self.now = -1

    def _pack(self, t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in self.seen:
            self.seen.add(storage.data_ptr())
            self.by_block[self.now] += storage.nbytes()
        return t
