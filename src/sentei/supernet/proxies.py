"""What a trained supernet says about a candidate, without training it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sentei.data import Data, Split
from sentei.data.held import held
from sentei.supernet.training import SortedNet, Target, detached, full_pass, stage_losses
from sentei.train import recalibrate
from sentei.train.evaluate import measured
from sentei.train.passes import STATISTICS, at_once, device_of, evaluating
from sentei.train.recipe import bf16_supported

BATCH = 250
"""Images at once: enough for the statistics of a batch to stand for those of the data."""


@dataclass(eq=False)
class StageDistances:
    """How far each stage of a candidate is from the full one, on held-out images.

    >>> StageDistances.of(net, data, images=500)(widths).keys()
    dict_keys(['fitness', 'stage1', 'stage2', 'stage3'])

    Every stage gets the full network's features, so that one pass measures all of them and none depends on the widths
    of another. BatchNorm takes the statistics of each batch itself: recalibration without a second pass. Features of
    the full network are kept if they fit into `memory` bytes, otherwise computed again for each candidate.
    """

    net: SortedNet
    batches: Sequence[Any]
    memory: int = 2**30
    bf16: bool = False
    kept: dict[int, tuple[list[Target], Any]] = field(default_factory=dict)

    @classmethod
    def of(
        cls, net: SortedNet, data: Data, images: int, memory: int = 2**30, bf16: bool | None = None
    ) -> StageDistances:
        """`images` of the validation split; bfloat16 where the hardware has it unless told otherwise."""
        return cls(net, even_batches(data.val, images), memory, _bf16(data, bf16))

    @property
    def count(self) -> int:
        """Samples that distances are measured on."""
        return sum(map(self.net.task.count, self.batches))

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"fitness": "stage distances", "images": self.count, "bf16": self.bf16, **self.net.settings}

    @property
    def feature_bytes(self) -> int:
        """Memory of the full network's features for all images."""
        return self.net.stages.feature_bytes() * self.count

    def __call__(self, widths: np.ndarray, share: float = 1.0) -> dict[str, float]:
        net = self.net
        with torch.no_grad(), batch_statistics(net.model), computing(net.model, self.bf16):
            sums: Tensor | float = 0.0
            for i, batch in enumerate(self.batches):
                targets, outputs = self._full(i, batch)
                losses = torch.stack(stage_losses(net, widths, batch, targets, outputs))
                sums = sums + losses * net.task.count(batch)
        assert isinstance(sums, Tensor)
        found = (sums.double() / self.count).tolist()
        return {"fitness": -sum(found), **{f"stage{i + 1}": d for i, d in enumerate(found)}}

    def _full(self, i: int, batch: Any) -> tuple[list[Target], Any]:
        if i in self.kept:
            return self.kept[i]
        # Statistics of the full network are its own; this pass must not move them.
        with self.net.narrow(self.net.space.full) as full:
            targets, outputs = full_pass(full, self.net, batch)
        found = targets, detached(outputs)
        if self.feature_bytes <= self.memory:
            self.kept[i] = found
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "kept": {}}


@dataclass(eq=False)
class SubnetMetric:
    """The task's metric of a candidate with the supernet's weights, after its BatchNorm statistics were taken again.

    >>> SubnetMetric.of(net, data, images=2000, recalibrate=1000)(widths).keys()
    dict_keys(['fitness', 'val_accuracy', 'val_loss', 'val_majority'])
    """

    net: SortedNet
    calibration: Iterable[Any]
    batches: Iterable[Any]
    bf16: bool = False

    @classmethod
    def of(
        cls, net: SortedNet, data: Data, images: int, recalibrate: int, seed: int = 0, bf16: bool | None = None,
        memory_mb: int | None = None,
    ) -> SubnetMetric:  # fmt: skip
        """`recalibrate` training images, augmented as in training, and `images` of the validation split; passes have as
        many of them as `memory_mb` (1,024) holds."""
        batch = at_once(net.model, data.train, min(BATCH, recalibrate), net.task, memory_mb, STATISTICS)
        first = held(data.train, batch, train=True, seed=seed, limit=recalibrate)
        second = held(data.val, at_once(net.model, data.val, 500, net.task, memory_mb), limit=images)
        return cls(net, first, second, _bf16(data, bf16))

    @cached_property
    def settings(self) -> Mapping[str, Any]:
        parts = {"recalibrate": self.calibration, "images": self.batches}
        count = {name: sum(map(self.net.task.count, part)) for name, part in parts.items()}
        return {"fitness": "supernet metric", **count, "bf16": self.bf16, **self.net.settings}

    def __call__(self, widths: np.ndarray, share: float = 1.0) -> dict[str, float]:
        task = self.net.task
        with self.net.narrow(widths) as subnet:
            with computing(self.net.model, self.bf16):
                recalibrate(subnet, self.calibration, task)
            found = measured(subnet, self.batches, task, self.bf16)
        return {"fitness": task.fitness(found.value), **{f"val_{k}": v for k, v in found.figures.items()}}


def even_batches(split: Split, images: int) -> list[Any]:
    """Batches of nearly equal size, about BATCH: statistics of a small rest would say nothing."""
    count = min(images, len(split))
    return list(split.batches(-(-count // max(1, count // BATCH)), limit=images))


def computing(model: nn.Module, bf16: bool) -> torch.autocast:
    return torch.autocast(device_of(model).type, torch.bfloat16, enabled=bf16)


def _bf16(data: Data, given: bool | None) -> bool:
    return bf16_supported(data.device) if given is None else given


@contextmanager
def batch_statistics(model: nn.Module) -> Iterator[None]:
    """BatchNorm takes each batch's own statistics; everything else is in evaluation mode."""
    with evaluating(model):
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                module.training = True
        yield
