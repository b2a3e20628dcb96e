"""What a network measures on a split, by its task."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from sentei.answers import Right
from sentei.data import Split
from sentei.data.batches import tensors_of
from sentei.data.loaders import LoaderSplit
from sentei.distributed import agreed, part, processes, sharing, total
from sentei.errors import DataError, TrainError
from sentei.tasks import Classification, Task
from sentei.tasks.task import Figures, checked_figures, checked_right, plainly
from sentei.train.passes import at_once, device_of, evaluating

CLASSIFICATION = Classification()
LARGEST = 500
"""Samples of a batch at most."""


@dataclass(frozen=True)
class Evaluation:
    """Figures of a network over so many samples; `value` is the one that decides."""

    figures: Figures
    metric: str
    images: int
    right: Right | None = field(default=None, compare=False, repr=False)
    """Which samples were answered right, in their order, where the task tells."""

    @property
    def value(self) -> float:
        return self.figures[self.metric]


def evaluate(
    model: nn.Module,
    split: Split,
    *,
    task: Task = CLASSIFICATION,
    batch_size: int | None = None,
    memory_mb: int | None = None,
    bf16: bool = False,
    limit: int | None = None,
    finite: bool = True,
) -> Evaluation:
    """Measure a network; it keeps its modes, weights and statistics.

    >>> evaluate(model, data.test).value  # doctest: +SKIP
    0.9173

    Several processes share the samples where the task allows it. The model must already be where the split's batches
    are. ``limit`` measures only so many samples, evenly spaced
    where the split can. Batches have as many samples as `memory_mb` (1,024) holds, up to 500, unless `batch_size` says
    how many. Raises DataError for an empty split, TrainError if the task's `measure` fails, or returns no
    finite metric (with ``finite=False`` the metric only has to be there).
    """
    if len(split) == 0:
        raise DataError("Cannot evaluate on an empty split. Load the data with a validation split (val above 0).")
    batch_size = batch_size or at_once(model, split, LARGEST, task, memory_mb)
    if processes() == 1:
        return measured(model, split.batches(batch_size, limit=limit), task, bf16, finite)
    if not (task.measures_parts and _divisible(split, batch_size, limit)):
        return agreed(measured(model, split.batches(batch_size, limit=limit), task, bf16, finite))
    with sharing():
        return agreed(measured(model, split.batches(batch_size, limit=limit, part=part()), task, bf16, finite))


def _divisible(split: Split, batch_size: int, limit: int | None) -> bool:
    """Whether there is something to measure for every process."""
    pieces = split.number if isinstance(split, LoaderSplit) else len(split)
    return min(pieces, pieces if limit is None else limit) >= processes()


def measured(
    model: nn.Module, batches: Iterable[Any], task: Task, bf16: bool = False, finite: bool = True
) -> Evaluation:
    """As `evaluate`, on batches that are at hand."""
    seen = _Seen(model, task)
    computing = torch.autocast(device_of(model).type, torch.bfloat16) if bf16 else nullcontext()
    with evaluating(model), torch.no_grad(), computing, plainly(task, "measure"):
        figures = task.measure(model, seen.passing(batches))
    count = int(total(torch.tensor(seen.count)))
    plain = checked_figures(task, figures, finite)
    return Evaluation(plain, task.metric, count, checked_right(task, figures, count))


class _Seen:
    """Counts the samples of batches on their way."""

    def __init__(self, model: nn.Module, task: Task) -> None:
        self.model, self.task, self.count = model, task, 0

    def passing(self, batches: Iterable[Any]) -> Iterator[Any]:
        for batch in batches:
            if self.count == 0:
                check_device(self.model, self.task, batch)
            self.count += self.task.count(batch)
            yield batch


def check_device(model: nn.Module, task: Task, batch: Any) -> None:
    """TrainError if model and batch are not in the same place."""
    with plainly(task, "inputs"):
        found = {t.device for t in tensors_of(task.inputs(batch))}
    if found and device_of(model) not in found:
        raise TrainError(
            f"the model is on {device_of(model)}, its inputs on {', '.join(map(str, found))}: move the model, or give "
            "the data's device (Data.of(..., device=...), load_data(..., device=...))"
        )
