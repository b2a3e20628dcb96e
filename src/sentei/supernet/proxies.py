"""What a trained supernet says about a candidate, without training it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sentei.supernet.training import Supernet, Target, full_pass, stage_losses
from sentei.data import Data
from sentei.train import recalibrate
from sentei.train.evaluate import evaluating, logits
from sentei.train.recipe import bf16_supported
from sentei.data.splits import Split

Batch = tuple[Tensor, Tensor]
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

    net: Supernet
    batches: Sequence[Batch]
    memory: int = 2**30
    bf16: bool = False
    kept: dict[int, tuple[list[Target], Tensor]] = field(default_factory=dict)

    @classmethod
    def of(
        cls, net: Supernet, data: Data, images: int, memory: int = 2**30, bf16: bool | None = None
    ) -> StageDistances:
        """`images` of the validation split; bfloat16 where the hardware has it unless told otherwise."""
        return cls(net, even_batches(data.val, images), memory, _bf16(data, bf16))

    @property
    def settings(self) -> Mapping[str, Any]:
        count = sum(len(y) for _, y in self.batches)
        return {"fitness": "stage distances", "images": count, "bf16": self.bf16, **self.net.settings}

    @property
    def feature_bytes(self) -> int:
        """Memory of the full network's features for all images."""
        return self.net.stages.feature_bytes() * sum(len(y) for _, y in self.batches)

    def __call__(self, widths: np.ndarray, share: float = 1.0) -> dict[str, float]:
        with torch.no_grad(), batch_statistics(self.net.model), computing(self.batches, self.bf16):
            sums: Tensor | float = 0.0
            for i, (x, _) in enumerate(self.batches):
                targets, scores = self._full(i, x)
                sums = sums + torch.stack(stage_losses(self.net, widths, x, targets, scores)) * len(x)
        assert isinstance(sums, Tensor)
        found = (sums.double() / sum(len(y) for _, y in self.batches)).tolist()
        return {"fitness": -sum(found), **{f"stage{i + 1}": d for i, d in enumerate(found)}}

    def _full(self, i: int, x: Tensor) -> tuple[list[Target], Tensor]:
        if i in self.kept:
            return self.kept[i]
        # Statistics of the full network are its own; this pass must not move them.
        with self.net.narrow(self.net.space.full) as full:
            found = full_pass(full, self.net.stages, x)
        if self.feature_bytes <= self.memory:
            self.kept[i] = found
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "kept": {}}


@dataclass(eq=False)
class SubnetAccuracy:
    """Accuracy of a candidate with the supernet's weights, after its BatchNorm statistics were taken again.

    >>> SubnetAccuracy.of(net, data, images=2000, recalibrate=1000)(widths).keys()
    dict_keys(['fitness', 'accuracy', 'loss'])
    """

    net: Supernet
    calibration: Sequence[Batch]
    batches: Sequence[Batch]
    bf16: bool = False

    @classmethod
    def of(
        cls, net: Supernet, data: Data, images: int, recalibrate: int, seed: int = 0, bf16: bool | None = None
    ) -> SubnetAccuracy:
        """`recalibrate` training images, augmented as in training, and `images` of the validation split."""
        first = data.train.batches(min(BATCH, recalibrate), train=True, seed=seed, limit=recalibrate)
        return cls(net, list(first), list(data.val.batches(500, limit=images)), _bf16(data, bf16))

    @property
    def settings(self) -> Mapping[str, Any]:
        count = {name: sum(len(y) for _, y in part) for name, part in
                 (("recalibrate", self.calibration), ("images", self.batches))}  # fmt: skip
        return {"fitness": "supernet accuracy", **count, "bf16": self.bf16, **self.net.settings}

    def __call__(self, widths: np.ndarray, share: float = 1.0) -> dict[str, float]:
        right, loss, images = 0, 0.0, 0
        with self.net.narrow(widths) as subnet, computing(self.batches, self.bf16):
            recalibrate(subnet, self.calibration)
            with evaluating(subnet), torch.inference_mode():
                for x, y in self.batches:
                    scores = logits(subnet(x)).float()
                    right += int((scores.argmax(1) == y).sum())
                    loss += float(F.cross_entropy(scores, y, reduction="sum"))
                    images += len(y)
        return {"fitness": right / images, "accuracy": right / images, "loss": loss / images}


def even_batches(split: Split, images: int) -> list[Batch]:
    """Batches of nearly equal size, about BATCH: statistics of a small rest would say nothing."""
    count = min(images, len(split))
    return list(split.batches(-(-count // max(1, count // BATCH)), limit=images))


def computing(batches: Sequence[Batch], bf16: bool) -> torch.autocast:
    return torch.autocast(batches[0][0].device.type, torch.bfloat16, enabled=bf16)


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
