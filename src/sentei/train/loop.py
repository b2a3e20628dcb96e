"""Train a network by its task: resumable to the bit, journalled, with nothing hidden."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from sentei.data import Data
from sentei.distributed import is_leader
from sentei.tasks import Task
from sentei.train.evaluate import CLASSIFICATION
from sentei.train.hints import Hints
from sentei.train.optimizers import Factory
from sentei.train.progress import Progress
from sentei.train.recipe import Recipe
from sentei.train.stored import Record
from sentei.train.training import AfterStep, Objective, Stateful, Training


@dataclass(frozen=True)
class FitResult:
    model: nn.Module
    """The model that was given, trained in place (its averaged weights where the recipe averages)."""
    history: list[Record]
    """One record an epoch: epoch, loss, lr, the task's metric and its other figures, images, seconds,
    images_per_second."""
    value: float | None
    """The metric on validation data after the last epoch, in the recipe's precision; None if there was none."""
    best: float | None
    seconds: float
    """Training time over all sessions, validation included."""
    images_per_second: float
    images: int
    """Samples that went through steps, over all epochs."""

    @classmethod
    def of(cls, run: Training) -> FitResult:
        history, key = run.history, run.task.key
        values = [r[key] for r in history if key in r]
        best = min if run.task.lower_is_better else max
        speeds = [r["images_per_second"] for r in history]
        return cls(
            run.model,
            history,
            values[-1] if values else None,
            best(values, default=None),
            sum(r["seconds"] for r in history),
            len(speeds) / sum(1 / s for s in speeds) if speeds else 0.0,
            sum(r.get("images", 0) for r in history),
        )


def fit(
    model: nn.Module,
    data: Data,
    recipe: Recipe,
    *,
    task: Task = CLASSIFICATION,
    run_dir: Path | None = None,
    name: str = "train",
    teacher: nn.Module | None = None,
    hints: Hints | None = None,
    after_step: AfterStep | None = None,
    plain: Sequence[str] = (),
    objective: Objective | None = None,
    optimizer: Factory | None = None,
    last_limit: int | None = None,
    on_epoch: Callable[[Record], None] | None = None,
    checkpoint_minutes: float | None = None,
    beside: Stateful | None = None,
    journal: bool = True,
    progress: bool = True,
) -> FitResult:
    """Train a model in place on ``data.train``, measuring on ``data.val``; ``data.test`` is never touched.

    >>> fit(model, data, Recipe(epochs=10), run_dir=Path("runs/x")).value  # doctest: +SKIP
    0.91

    With a ``run_dir`` each epoch ends in a checkpoint ``NAME.ckpt`` and a line in ``journal.jsonl``. Called
    again with the same model, data and recipe it goes on after the last complete epoch, and ends with the
    very weights of a run that was never stopped: the random numbers of an epoch depend on the seed and its
    number only. A finished run returns at once. Before the first step one validation batch is measured, so that what
    the task cannot measure is found before work is lost. Several processes share each batch, and the first of them
    writes (see `sentei.distributed`).

    Args:
        task: what the network is for: its loss and its figures; image classification unless given.
        teacher: dense network to distil from, weighted by ``recipe.distill_weight``.
        hints: features that the model is to share with the teacher, weighted by ``recipe.hint_weight``.
        after_step: called with the model and the learning rate after each optimizer step (a proximal step,
            for instance).
        plain: names of parameters that take plain gradient steps, without momentum and weight decay.
        objective: replaces the loss, its backward pass included; it knows what it needs of the recipe.
        optimizer: makes an optimizer of parameter groups, ``lambda groups: torch.optim.RAdam(groups, lr=1e-3)`` for
            instance, in place of the recipe's own; its learning rates follow the recipe's schedule in proportion.
        last_limit: samples of the last epoch, where only a part of it is wanted.
        on_epoch: called with the record of each epoch as it completes.
        checkpoint_minutes: store the state within an epoch too, so often; where long epochs would be lost.
        beside: what ``after_step`` or the objective keeps from step to step; it is stored and put back with the rest.
        journal: note each epoch in ``journal.jsonl``.

    Raises:
        TrainError: the loss is no longer finite (the text names epoch, step and the last good checkpoint), or
            the model does not fit the data.
        CheckpointError: the checkpoint in ``run_dir`` is damaged or belongs to another model or recipe.
    """
    run = Training(
        model, data, recipe, task, name, run_dir, teacher, after_step, tuple(plain), objective, optimizer, last_limit,
        checkpoint_minutes, beside, journal, hints,
    )  # fmt: skip
    run.resume()
    run.rehearse()
    shown = progress and is_leader()
    run.fit_into_memory(shown)
    with Progress(name, recipe.epochs, run.steps, len(run.history), task, shown) as bar:
        for epoch in range(len(run.history), recipe.epochs):
            record = run.epoch(epoch, bar)
            run.save(record)
            bar.epoch_done(record)
            if on_epoch is not None:
                on_epoch(record)
    run.ended()
    return FitResult.of(run)
