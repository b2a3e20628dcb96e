"""Gradients of a batch: whole, in pieces that fit into memory, or shared by several processes."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sentei.data.batches import pieces_of
from sentei.distributed import average_gradients, processes, summed
from sentei.errors import ConfigError
from sentei.tasks import Task
from sentei.train.passes import evaluating
from sentei.train.recipe import Recipe
from sentei.train.recompute import Recomputed, blocks
from sentei.train.synced import SyncedNorms

Loss = Callable[[Any], Tensor]
Own = Callable[[nn.Module, Any], Tensor]
"""What computes gradients by itself: adds those of a batch and returns the loss to be shown."""


class Gradients:
    """Adds the gradients of one batch to the parameters of a model; returns the batch's loss, detached.

    The batch is this process's part of a global one: gradients end as those of the global batch's mean loss, the same
    on every process. `own` is an objective with a backward pass of its own; otherwise `loss` is differentiated, in so
    many `pieces`.
    """

    def __init__(self, model: nn.Module, task: Task, recipe: Recipe, bf16: bool, loss: Loss, own: Own | None) -> None:
        self.model, self.task, self.recipe, self.bf16, self.own = model, task, recipe, bf16, own
        self.device, self.pieces = next(model.parameters()).device, recipe.accumulate
        self.loss: nn.Module = _Loss(model, loss)
        if recipe.recompute and own is None and not blocks(model):
            raise ConfigError(
                f"recompute computes blocks again, members of nn.Sequential or nn.ModuleList with layers inside; "
                f"{type(model).__name__} has none: leave --recompute out"
            )

    def __call__(self, batch: Any) -> Tensor:
        if processes() > 1 and self.own is None and not isinstance(self.loss, DistributedDataParallel):
            self.loss = _parallel(self.loss, self._leaves_out(batch))
        count = self.task.count(batch)
        weight = self._weight(count)
        with SyncedNorms() if self.recipe.sync_norm and processes() > 1 else nullcontext():
            if self.own is None:
                with Recomputed(self.model) if self.recipe.recompute else nullcontext():
                    return weight * self._in_pieces(batch, count, weight)
            with self._computing():
                loss = self.own(self.model, batch).detach()
            average_gradients(self.model.parameters(), weight)
            return weight * loss

    def _in_pieces(self, batch: Any, count: int, weight: float | Tensor) -> Tensor:
        pieces = pieces_of(batch, min(self.pieces, count))
        total = torch.zeros((), device=self.device)
        for number, piece in enumerate(pieces, start=1):
            share = 1.0 if len(pieces) == 1 else self.task.count(piece) / count
            waits = isinstance(self.loss, DistributedDataParallel) and number < len(pieces)
            with self.loss.no_sync() if waits else nullcontext():  # type: ignore[operator]
                with self._computing():
                    loss = self.loss(piece)
                _scaled(loss, share, weight).backward()
            total += loss.detach() * share
        return total

    def _weight(self, count: int) -> float | Tensor:
        """What this process's mean loss counts in the mean over processes."""
        if processes() == 1:
            return 1.0
        mine = torch.tensor(float(count), device=self.device)
        return mine * processes() / summed(mine.clone())

    def _leaves_out(self, batch: Any) -> bool:
        """Whether some parameter has no gradient, that of an auxiliary head, say; tried on a sample, without traces."""
        sample = pieces_of(batch, self.task.count(batch))[0]
        with evaluating(self.model), torch.random.fork_rng(), self._computing():
            self.loss(sample).backward()
        trained = [p for p in self.model.parameters() if p.requires_grad]
        found = any(p.grad is None for p in trained)
        for parameter in trained:
            parameter.grad = None
        return bool(summed(torch.tensor(float(found))))

    def _computing(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)


def _scaled(loss: Tensor, share: float, weight: float | Tensor) -> Tensor:
    loss = loss if share == 1.0 else loss * share
    return loss * weight if isinstance(weight, Tensor) else loss


class _Loss(nn.Module):
    """A loss as a module, so that whatever a task does with a model is the forward pass of what is wrapped."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, batch: Any) -> Tensor:
        return self.loss(batch)


def _parallel(loss: nn.Module, leaves_out: bool) -> DistributedDataParallel:
    """Statistics stay each process's own during an epoch."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the successor of broadcast_buffers is newer than what we need
        return DistributedDataParallel(loss, broadcast_buffers=False, find_unused_parameters=leaves_out)
