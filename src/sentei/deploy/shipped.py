"""An exported file in the place of its network, and what a task measures of it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sentei.bars import live_bar
from sentei.data import Data, Split
from sentei.data.batches import tensors_of
from sentei.deploy.axes import Axes, free_sizes
from sentei.deploy.detectors import Inside, why_not_inside
from sentei.deploy.plain import Plain, like
from sentei.deploy.proof import Run
from sentei.errors import ExportError
from sentei.tasks import Task
from sentei.train import Evaluation, evaluate

BATCH = 32
ROUNDING = 1e-3
"""Largest difference of a metric that is taken for rounding, where it is more than one sample."""


class Shipped(nn.Module):
    """A network that answers with an exported file.

    A file of a fixed batch is given as many samples as it takes; the last ones are repeated to fill it.
    """

    def __init__(self, plain: Plain, run: Run, example: Sequence[Tensor], batch: int | None, device: torch.device):
        super().__init__()
        self.plain = [plain]  # in a list: its parameters are not those of the file
        self.run, self.batch = run, batch
        self.place = nn.Parameter(torch.empty(0, device=device), requires_grad=False)
        with torch.no_grad():
            self.structure = plain(*example)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        tensors = self.plain[0].tensors_of(args, kwargs)
        count = tensors[0].shape[0]
        pieces = [self.run(piece) for piece in self._pieces(tensors, count)]
        outputs = [torch.cat(parts)[:count] if self.batch else parts[0] for parts in zip(*pieces, strict=True)]
        return like(self.structure, [t.to(self.place.device) for t in outputs])

    def _pieces(self, tensors: Sequence[Tensor], count: int) -> Iterator[list[Tensor]]:
        if self.batch is None:
            yield list(tensors)
            return
        for start in range(0, count, self.batch):
            places = torch.arange(start, start + self.batch).clamp(max=count - 1)
            yield [t[places.to(t.device)] if t.ndim and t.shape[0] == count else t for t in tensors]


@dataclass(frozen=True)
class Accuracy:
    """What a task measures of the file and of the network, on the same validation samples."""

    task: Task
    file: Evaluation
    network: Evaluation

    def record(self) -> dict[str, Any]:
        return {
            "task": self.task.name, "metric": self.task.metric, "percent": self.task.percent, "split": "val",
            "images": self.file.images, "file": self.file.figures, "network": self.network.figures,
        }  # fmt: skip

    def check(self) -> None:
        """ExportError if the file is not as good, or not as bad, as the network."""
        a, b = self.file.value, self.network.value
        if not abs(a - b) <= max(1 / self.file.images, ROUNDING * max(abs(b), 1.0)):
            name, told = self.task.metric, self.task.told
            raise ExportError(
                f"the file reaches a validation {name} of {told(a)}, the network {told(b)}, on the same "
                f"{self.file.images:,} samples, although their outputs agree on random inputs. Nothing was written"
            )


def measured_on(
    data: Data, task: Task, shipped: Shipped, network: nn.Module, images: int | None, progress: bool
) -> Accuracy:
    """Measure a file and its network on validation data; `images` limits how many, evenly spaced."""
    network = network.to(data.device)
    try:
        theirs = evaluate(network, data.val, task=task, batch_size=BATCH, limit=images)
    finally:
        network.cpu()
    total = math.ceil(theirs.images / BATCH)
    with live_bar(progress, counted=True) as bar:
        step = bar.add_task("measuring the file", total=total)
        whole = Inside(network, shipped) if shipped.plain[0].part is not None else shipped
        whole.register_forward_hook(lambda *_: bar.advance(step))
        ours = evaluate(whole, data.val, task=task, batch_size=BATCH, limit=images)
    return Accuracy(task, ours, theirs)


def why_not(plain: Plain, task: Task, split: Split, example: Sequence[Tensor], axes: Axes) -> str:
    """Why a file cannot be measured on a split; empty if it can."""
    if not len(split):
        return "there are no validation samples"
    if plain.part is not None:
        return why_not_inside(plain.whole, axes.image)
    given = tensors_of(task.inputs(next(iter(split.batches(1, limit=1)))))
    for theirs, ours, free in zip(given, example, free_sizes(example, axes), strict=False):
        fixed = [d for d in range(1, ours.ndim) if d not in free]
        if theirs.ndim != ours.ndim or any(theirs.shape[d] != ours.shape[d] for d in fixed):
            shown = ["x".join(map(str, t.shape[1:])) for t in (ours, theirs)]
            return f"the file takes {shown[0]}, the data are {shown[1]}"
    return ""
