"""What a network is for: what it is called with, what a step minimises, what is measured and which figure decides."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn

from sentei.answers import Right
from sentei.data import Data
from sentei.data.batches import count_of, pieces_of
from sentei.errors import ConfigError, TrainError
from sentei.graph.inputs import arguments
from sentei.models.user_file import code_of_class

Figures = dict[str, float]
RIGHT = "right"
"""What `Task.measure` calls the tensor that says which samples were answered right."""
Forward = Callable[..., Any]


class Task(ABC):
    """What a network is for. All that methods, scores, searches, supernets and summaries know of a job.

    >>> class Depth(sentei.Task):
    ...     metric, lower_is_better = "rmse", True
    ...
    ...     def inputs(self, batch):
    ...         return batch["left"], batch["right"]  # the model is called with both
    ...
    ...     def loss(self, output, batch):
    ...         return F.l1_loss(output, batch["depth"])
    ...
    ...     def measure(self, model, batches):
    ...         squares = [(model(*self.inputs(b)) - b["depth"]).square().mean() for b in batches]
    ...         return {"rmse": torch.stack(squares).mean().sqrt().item()}

    `metric`, `loss` and `measure` have to be written, `inputs` where a batch is not a pair that begins with them. The
    rest has defaults. A batch is whatever the data gives: tensors in any nesting, already on the data's device.
    """

    metric: str
    """Name of the figure that decides, among those that `measure` returns."""
    lower_is_better: bool = False
    percent: bool = False
    """Whether the metric is a share of one, to be shown as a percentage."""
    shares: bool = False
    """Whether `measure` passes what it counts through `sentei.distributed.total` (or `every`), so that several
    processes can each measure a part; otherwise each measures all."""

    # -- what has to be written

    def inputs(self, batch: Any) -> Any:
        """What the model is called with: a tensor or tuple by position, a dict by keyword."""
        return batch[0] if isinstance(batch, (tuple, list)) else batch

    @abstractmethod
    def loss(self, output: Any, batch: Any) -> Tensor:
        """What training minimises, a scalar, from what the model returned."""

    @abstractmethod
    def measure(self, model: nn.Module, batches: Iterable[Any]) -> Mapping[str, Any]:
        """Plain figures over some batches, `metric` among them. The model is in evaluation mode, without gradients.

        Where the metric is the share of samples that are answered right, "right" may say which: a tensor, bool N, in
        the order of the samples. Two networks are then compared sample by sample, which tells them apart sooner.
        """

    # -- what may be written

    def step(self, model: nn.Module, batch: Any) -> Tensor:
        """The loss of one batch. Written anew for models that return their own losses."""
        return self.loss(called(model, self.inputs(batch)), batch)

    def imitate(self, output: Any, teacher: Any, batch: Any) -> Tensor:
        """How far an output is from a teacher's, a scalar: distillation. A task without it refuses to distil."""
        raise ConfigError(f"task {self.name} does not say how to imitate a teacher; leave distillation out")

    def forward(self, model: nn.Module, *inputs: Any, **named: Any) -> Any:
        """The part of the model that is traced, run on its inputs."""
        return model(*inputs, **named)

    def count(self, batch: Any) -> int:
        """Samples in a batch."""
        return count_of(self.inputs(batch))

    def classes(self, data: Data) -> int | None:
        """Classes that a model for these data is built with."""
        return data.num_classes

    def needed(self, data: Data) -> int:
        """Validation samples below which a figure says nothing."""
        return 1

    def collapsed(self, now: float, before: float) -> bool:
        """Whether a network that measured `before` is destroyed, now that it measures `now`."""
        fall = self.fitness(before) - self.fitness(now)
        return fall > abs(before) * (3 if self.lower_is_better else 0.5)

    def doubt(self, figures: Mapping[str, float], count: int) -> str | None:
        """Why the figures of a network, over `count` samples, look like those of one that is not trained; or None."""
        return None

    def guessing(self, data: Data) -> float | None:
        """The training loss of a network that knows nothing, where that is known."""
        return None

    def with_settings(self, label_smoothing: float, temperature: float) -> Self:
        """This task with what a recipe says about losses."""
        if label_smoothing:
            raise ConfigError(f"task {self.name} knows no label smoothing; leave label_smoothing at 0")
        return self

    def example(self, model: nn.Module, data: Data) -> Any:
        """What the model is traced on: one sample."""
        if data.example is not None:
            return data.example
        if data.input_shape is not None:
            return torch.zeros(1, *data.input_shape, device=data.device)
        batch = next(iter(data.train.batches(1, limit=1)))
        with plainly(self, "inputs"):
            return pieces_of(self.inputs(batch), max(self.count(batch), 1))[0]

    # -- what follows

    @property
    def measures_parts(self) -> bool:
        """Whether `measure`, as it was last written, is that of a class which says that it `shares`."""
        writer = next(kind for kind in type(self).__mro__ if "measure" in vars(kind))
        return bool(vars(writer).get("shares", False))

    @property
    def name(self) -> str:
        """Under which name summaries know it."""
        return type(self).__name__.lower()

    @property
    def settings(self) -> dict[str, Any]:
        """What tells it from others, as plain values: name, metric, plain attributes, and a checksum of its code."""
        plain = {k: v for k, v in vars(self).items() if isinstance(v, (str, int, float, bool, type(None)))}
        code = code_of_class(type(self))
        own = {} if code is None else {"code": code}
        return {"name": self.name, "metric": self.metric, "lower_is_better": self.lower_is_better, **plain, **own}

    @property
    def part(self) -> Forward | None:
        """`forward`, where it is not the whole model."""
        return None if type(self).forward is Task.forward else self.forward

    @property
    def key(self) -> str:
        """Where an epoch's record has the metric on validation data; "loss" is that of training."""
        return "val_loss" if self.metric == "loss" else self.metric

    @property
    def imitates(self) -> bool:
        return type(self).imitate is not Task.imitate

    @property
    def steps_itself(self) -> bool:
        """Whether the model returns losses, so that there is no output to compare."""
        return type(self).step is not Task.step

    def fitness(self, value: float) -> float:
        """A value of the metric so that higher is better, and back."""
        return -value if self.lower_is_better else value

    def told(self, value: float | None) -> str:
        """A value of the metric as it is shown.

        >>> Classification().told(0.9173), Classification().told(None)
        ('91.73%', '-')
        """
        return shown(value, self.percent)

    def told_fitness(self, fitness: float) -> str:
        return self.told(self.fitness(fitness))


def shown(value: float | None, percent: bool) -> str:
    """A figure as text: a percentage, or four digits."""
    if value is None:
        return "-"
    return f"{value:.2%}" if percent else f"{value:.4g}"


def called(model: Callable[..., Any], inputs: Any) -> Any:
    """What a model returns on what `Task.inputs` gave."""
    args, named = arguments(inputs)
    return model(*args, **named)


def checked_loss(task: Task, loss: Any) -> Tensor:
    """A loss that can be minimised; TrainError if it is no scalar with a gradient."""
    if isinstance(loss, Tensor) and loss.numel() == 1 and loss.requires_grad:
        return loss
    given = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
    if isinstance(loss, Tensor) and loss.numel() == 1:
        given = "a scalar without a gradient"
    raise TrainError(f"the loss of task {task.name} is {given}; expected a scalar with a gradient")


def loss_of(task: Task, model: nn.Module, batch: Any) -> Tensor:
    """`Task.step`, with what may go wrong in it as one sentence."""
    with plainly(task, "the loss"):
        loss = task.step(model, batch)
    return checked_loss(task, loss)


def pair_of(task: Task, batch: Any) -> tuple[Any, Any]:
    """The two parts of a batch; TrainError, with what to do, if it is no (inputs, targets)."""
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return batch[0], batch[1]
    given = f"a dict with the keys {', '.join(map(str, batch))}" if isinstance(batch, Mapping) else type(batch).__name__
    raise TrainError(
        f"a batch is {given}; task {task.name} takes (inputs, targets). Say what your batches are for with a task of "
        "your own: task=Mine(), --task FILE.py:CLASS (see docs/tasks.md)"
    )


def run_part(task: Task, model: nn.Module, inputs: Any) -> Any:
    """What leaves the traced part of a model on what `Task.inputs` gave."""
    args, named = arguments(inputs)
    return task.forward(model, *args, **named)


def checked_figures(task: Task, figures: Any, finite: bool = True) -> Figures:
    """What `measure` returned, as plain numbers; TrainError if the metric is missing or no number."""
    if not isinstance(figures, Mapping):
        raise TrainError(
            f"measure of task {task.name} returned a {type(figures).__name__}; expected a dict of figures with "
            f"{task.metric!r}"
        )
    if task.metric not in figures:
        raise TrainError(
            f"measure of task {task.name} returned {', '.join(map(repr, figures)) or 'nothing'}; expected the metric "
            f"{task.metric!r} among them. Return it, or name another one as `metric`"
        )
    try:
        plain = {str(name): float(value) for name, value in _figures(figures).items()}
    except (TypeError, ValueError, RuntimeError) as error:
        raise TrainError(f"measure of task {task.name} returned what is no plain number: {error}") from error
    if finite and not math.isfinite(plain[task.metric]):
        raise TrainError(
            f"measure of task {task.name} returned {task.metric} = {plain[task.metric]}; expected a finite number. The "
            "network's outputs are not finite, or the figure is not defined on these batches"
        )
    return plain


def _figures(told: Mapping[str, Any]) -> dict[str, Any]:
    """Without what says which samples were right; a plain number of that name is a figure like any other."""
    return {name: value for name, value in told.items() if name != RIGHT or getattr(value, "ndim", 0) == 0}


def checked_right(task: Task, figures: Mapping[str, Any], count: int) -> Right | None:
    """Which of so many samples were answered right, if `measure` has told; TrainError if that is no bool for each."""
    if RIGHT not in figures or RIGHT in _figures(figures):
        return None
    right = torch.as_tensor(figures[RIGHT])
    if right.dtype != torch.bool or right.shape != (count,):
        raise TrainError(
            f"measure of task {task.name} returned {right.dtype} {tuple(right.shape)} as {RIGHT!r}; expected {count} "
            "bools, one for each sample in their order"
        )
    found: Right = right.cpu().numpy()
    return found


@contextmanager
def plainly(task: Task, what: str) -> Any:
    """Errors of a user's task as one sentence: which part of it failed, and on what."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, RuntimeError) as error:
        raise TrainError(f"{what} of task {task.name} failed: {type(error).__name__}: {error}") from error
