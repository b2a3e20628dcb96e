"""What a method works with: a network, its data and task, a budget, and how to cut, train, store and tell."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from sentei.data import Data
from sentei.data.splits import WHOLE, Part
from sentei.distributed import part, processes
from sentei.errors import ConfigError
from sentei.graph import ChannelGraph, trace
from sentei.methods.common.hints import hints_of, variances
from sentei.methods.common.timing import clock
from sentei.plan import Budget, Constraints, Plan, criterion
from sentei.plan.criteria import Scores
from sentei.runs import Run
from sentei.speed.latency import LatencyTable, Timing
from sentei.surgery.check import check
from sentei.surgery.cut import cut
from sentei.tasks import Task
from sentei.tasks.task import loss_of
from sentei.train import Recipe, evaluate, fit, recalibrate
from sentei.train.evaluate import CLASSIFICATION
from sentei.train.hints import Hints
from sentei.train.optimizers import Factory
from sentei.train.passes import STATISTICS, at_once, evaluating
from sentei.train.reconstruct import Reconstruction
from sentei.train.training import refuse_teacher

Say = Callable[[str], None]

FINE_TUNE = Recipe(epochs=10, lr=0.02)
PHASES = ("search", "sparse", "supernet", "finetune")
"""What training is for: to judge structures in a search, to make scales sparse, to train a supernet, and to recover
from cuts, the last and any on the way. Passes without steps (recalibration, scores, measuring) are no training."""
SAMPLES = 64
"""From which the variance of features is taken."""
DEFAULT_CONSTRAINTS = Constraints(max_ratio=0.9)
"""No group loses more than nine tenths of its units, so that a global ranking cannot close a layer."""


def silent(line: str) -> None:
    """Tells nobody."""


@dataclass
class Pruning:
    """One run of one method; what takes long is stored by `run`, so that it can be called again after a kill."""

    name: str
    """The method's name, for the files."""
    base: nn.Module
    data: Data
    budget: Budget
    constraints: Constraints
    recipe: Recipe
    """The final fine-tuning; its seed decides everything random."""
    task: Task = CLASSIFICATION
    optimizer: Factory | None = None
    """In place of the recipe's own."""
    distill: bool = False
    images: int = 2048
    """Training images that recalibrate BatchNorm, and from which scores are computed."""
    total_images: int | None = None
    """Samples that may go through training steps in all; what the method leaves is for the fine-tuning, whose epochs
    follow from it."""
    run: Run = field(default_factory=lambda: Run(None))
    source: str | None = None
    say: Say = silent
    progress: bool = False
    seconds: dict[str, float] = field(default_factory=dict)
    timing: Timing = field(default_factory=Timing)
    """Where milliseconds are measured, if the budget limits them."""
    trained: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PHASES, 0))
    """Samples that went through training steps, by phase."""
    checkpoint_minutes: float | None = None
    """How often training is stored within an epoch."""
    reconstruct: bool = False
    """Give what is cut weights that make up for the inputs that were cut."""
    graph: ChannelGraph = field(init=False)
    table: LatencyTable | None = None

    def __post_init__(self) -> None:
        if self.images < 1:
            raise ConfigError(f"images is {self.images}; expected 1 or more")
        if self.total_images is not None and self.total_images < 1:
            raise ConfigError(f"total_images is {self.total_images}; expected 1 or more, or None")
        if self.distill:
            refuse_teacher(self.task)
        self.task.with_settings(self.recipe.label_smoothing, self.recipe.temperature)

    def trace(self, model: nn.Module | None = None) -> ChannelGraph:
        """The graph of the network, or of a cut one."""
        traced = self.base if model is None else model
        graph = trace(traced, self.task.example(traced, self.data), forward=self.task.part)
        return graph if self.table is None else graph.with_latency(self.table)

    def under(self, budget: Budget) -> Pruning:
        """The same run with another budget."""
        other = copy.copy(self)
        other.budget = budget
        return other

    @property
    def taught(self) -> bool:
        """Whether what is trained imitates the original network."""
        return self.distill and self.recipe.distill_weight > 0

    @property
    def teacher(self) -> nn.Module | None:
        return self.base if self.taught else None

    # -- one cut

    def cut(self, model: nn.Module, graph: ChannelGraph, plan: Plan, combined: Plan | None = None) -> dict[str, Any]:
        """Cut, check and recalibrate, and reconstruct in between where that is wanted: a record of what came out, to be
        stored by `run.once`.

        `graph` and `plan` are those of `model`; `combined` is the plan of the dense model where that is another.
        """
        seconds: dict[str, float] = {}
        combined = combined or plan
        with clock(seconds, "cut"):
            small = cut(model, graph, plan)
        with clock(seconds, "check"):
            report = check(model, small, graph, plan, self.sample(4))
        if self.reconstruct:
            with clock(seconds, "reconstruct"):
                Reconstruction(model, graph, self.calibration(model), self.task).apply(small, plan)
        with clock(seconds, "recalibrate"):
            self.recalibrate(small)
        with clock(seconds, "evaluate"):
            value = self.value(small)
        cost = self.graph.cost(combined)
        return {
            "plan": combined.to_json(),
            "model": {name: t.cpu() for name, t in small.state_dict().items()},
            "macs": cost.macs,
            "params": cost.params,
            "value": value,
            "max_error": report.max_error,
            "tolerance": report.tolerance,
            "approximate": list(report.approximate),
            "stale": list(report.stale),
            "seconds": seconds,
        }

    def sample(self, count: int) -> Any:
        """What the network is called with, of real data; where only a part is traced, the example of that part."""
        if self.task.part is not None:
            return self.task.example(self.base, self.data)
        return self.task.inputs(next(iter(self.data.train.batches(count, limit=count))))

    def tell_cut(self, done: Mapping[str, Any], after: str = "recalibration") -> None:
        full, reached, task = self.graph.cost(), done["value"], self.task
        value = "" if reached is None else f", validation {task.metric} {task.told(reached)} after {after}"
        self.say(
            f"Cut to {done['macs'] / max(full.macs, 1):.1%} of the MACs and {done['params'] / full.params:.1%} of the "
            f"parameters; checked: max error {done['max_error']:.1e}{value}"
        )
        for where in done["approximate"]:
            self.say(
                f"  {where or 'the model'} computes with the number of channels (statistics, a scale): there the cut "
                "changes what is computed"
            )

    # -- training and measuring

    def fit(
        self,
        model: nn.Module,
        recipe: Recipe,
        name: str,
        last_limit: int | None = None,
        plan: Plan | None = None,
    ) -> nn.Module:
        """Train a network in place. `plan` is how the dense one was cut to it: with a teacher, features are shared."""
        hints = None
        if self.taught and plan is not None and recipe.hint_weight > 0:
            hints = self._hints(plan, f"{name}-hints")
        found = fit(
            model, self.data, recipe, task=self.task, run_dir=self.run.folder, name=name, teacher=self.teacher,
            hints=hints, optimizer=self.optimizer, last_limit=last_limit,
            progress=self.progress, checkpoint_minutes=self.checkpoint_minutes,
        )  # fmt: skip
        self.seconds["finetune"] = self.seconds.get("finetune", 0.0) + found.seconds
        self.trained["finetune"] += found.images
        return found.model

    def _hints(self, plan: Plan, name: str) -> Hints | None:
        """The features that a cut network is to share with the dense one; None where only a part of it is known."""
        found = hints_of(self.base, self.graph, plan) if self.task.part is None else []
        if not found:
            return None
        named = self.run.once(name, lambda: {"variance": variances(self.base, found, self.sample(SAMPLES))})
        return Hints([replace(hint, variance=named["variance"][hint.module]) for hint in found])

    def overspent(self) -> str | None:
        """What is wrong where a method that does not say what it trains on has trained on more than there was."""
        spent = sum(self.trained.values())
        if self.total_images is None or spent <= self.total_images:
            return None
        return f"the method trained on {spent:,} images, {self.total_images:,} were allowed in all: no fine-tuning"

    def tuning(self) -> tuple[Recipe, int | None]:
        """The recipe of the final fine-tuning, and the samples of its last epoch where that is a part of one."""
        if self.total_images is None:
            return self.recipe, None
        size, limit = self.recipe.batch_size, self.recipe.limit
        left = max(self.total_images - sum(self.trained.values()), 0)
        whole, rest = divmod(left, self.data.epoch_images(size, limit))
        batch = self.data.batch_images(size)
        part = rest // batch * batch
        return replace(self.recipe, epochs=whole + (part > 0)), part or None

    def recalibrate(self, model: nn.Module) -> None:
        recalibrate(model, self.calibration(model, part()), self.task, shared=processes() > 1)

    def calibration(self, model: nn.Module, part: Part = WHOLE) -> Iterator[Any]:
        """Training batches, augmented as in training, of as many samples as fit into a pass of this network."""
        train, most = self.data.train, self.recipe.train_memory_mb
        batch = at_once(model, train, 256, self.task, most, STATISTICS)
        return train.batches(batch, train=True, limit=self.images, part=part)

    def value(self, model: nn.Module) -> float | None:
        """The metric on validation data; None where there are none."""
        if not len(self.data.val):
            return None
        return evaluate(model, self.data.val, task=self.task, memory_mb=self.recipe.train_memory_mb).value

    def rehearse(self) -> None:
        """TrainError, before any work, if the task has no loss for a training batch that could be minimised."""
        batch = next(iter(self.data.train.batches(2, limit=2)))
        with evaluating(self.base), torch.enable_grad():
            loss_of(self.task, self.base, batch)

    def step(self, model: nn.Module, batch: Any) -> Tensor:
        """The loss of a network on a batch, for scores."""
        return loss_of(self.task, model, batch)

    def scoring(self, images: int | None = None) -> Iterator[Any]:
        """Training batches from which scores are computed."""
        return self.data.train.batches(self.recipe.batch_size, limit=images or self.images)

    def scores(self, name: str, model: nn.Module, graph: ChannelGraph) -> Scores:
        """Scores of the units of a network, the original one or a cut one, by a criterion."""
        return criterion(name)(model, graph, batches=self.scoring(), step=self.step, seed=self.recipe.seed)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        with clock(self.seconds, name):
            yield
