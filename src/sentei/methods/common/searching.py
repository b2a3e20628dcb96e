"""What the methods that search widths have in common: a space, an evaluator, workers, and the cut of the winner."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, Self, get_args

import numpy as np

from sentei.data import Data
from sentei.distributed import decided
from sentei.errors import ConfigError
from sentei.graph import ChannelGraph
from sentei.methods.common.genes import Genes, searched_groups
from sentei.methods.common.method import WHETHER, Found, InWorkers, Method
from sentei.methods.common.pruning import Pruning, Say
from sentei.methods.common.starts import starting_points
from sentei.methods.common.timing import clock
from sentei.plan import Budget, Constraints, Plan, note_on_use, rescaler
from sentei.search import (
    MEASURES,
    Evaluator,
    Inheritance,
    Recalibrate,
    Search,
    SearchResult,
    Space,
    Store,
    Strategy,
    Train,
    budgeted,
    open_executor,
)
from sentei.search.inherit import Inherit
from sentei.search.jobs import Where
from sentei.search.space import Levels
from sentei.search.steady import SteadySearch
from sentei.search.view import SearchView
from sentei.surgery import cut
from sentei.train import Recipe
from sentei.train.journal import Journal

Fitness = Literal["reconstruct", "recalibrate", "train"]
RANKINGS = ("l1", "taylor")
"""Criteria whose structures a search begins with."""


@dataclass(frozen=True, kw_only=True)
class WidthSearch(InWorkers):
    """Settings of a width search. A method adds its strategy."""

    evaluations: int = 200
    """Structures to evaluate."""
    genes: Genes | None = None
    """Groups whose width is searched: all, or only those inside branches, which leaves residual streams whole (inner).
    Unless given all, with --paper inner."""
    fitness: Fitness | None = None
    """The metric on validation data after inheriting weights and fresh BatchNorm statistics (recalibrate, seconds a
    structure), the same with weights that make up for the inputs that were cut, by least squares (reconstruct), or
    after a short training (train, as in the ABCPruner paper). Unless given recalibrate, with --paper or halving
    train."""
    fitness_epochs: int = 2
    """Epochs of that training."""
    fitness_lr: float = 0.01
    """Its learning rate, constant."""
    fitness_images: int | None = None
    """Train on only so many images an epoch."""
    halving: int = 1
    """Rounds of successive halving: a batch starts with 1/2^(N-1) of the epochs, and the better half goes on."""
    inherit: Inherit | None = None
    """Units of the trained network that a structure takes over: those with the largest weights (l1) or BatchNorm scales
    (bn_scale), or random ones. Unless given l1, with --paper random."""
    calibration_images: int = 1000
    """Training images for the BatchNorm statistics of a structure."""
    validation_images: int = 2000
    """Validation images on which a structure is measured after recalibration."""
    warm: bool = True
    """Begin with the structures of uniform, l1 and taylor beside random ones, not with random ones alone. With --paper
    it has no effect."""
    pending: int | None = field(default=None, metadata=WHETHER)
    """Propose a structure as soon as one returns, with so many out at any time, instead of batch by batch: no worker
    waits for another. The result then depends on the order of answers, which the run keeps. A resumed run may have
    another number, but not none."""

    def __post_init__(self) -> None:
        whole_numbers(self, "evaluations", "fitness_epochs", "halving", "calibration_images", "validation_images",
                      "fitness_images", "pending")  # fmt: skip
        choices = {"fitness": Fitness, "executor": Where, "genes": Genes, "inherit": Inherit}
        for name, allowed in choices.items():
            if getattr(self, name) not in (None, *get_args(allowed)):
                expected = " or ".join(map(repr, get_args(allowed)))
                raise ConfigError(f"{name} is {getattr(self, name)!r}; expected {expected}")
        if not self.fitness_lr > 0:
            raise ConfigError(f"fitness_lr is {self.fitness_lr}; expected more than 0")
        if self.fitness_epochs % 2 ** (self.halving - 1):
            raise ConfigError(
                f"halving={self.halving} starts with 1/{2 ** (self.halving - 1)} of the epochs, and fitness_epochs="
                f"{self.fitness_epochs} leaves no whole number; raise fitness_epochs or lower halving"
            )
        if self.halving > 1 and self.fitness in MEASURES:
            raise ConfigError("halving shares out epochs of training: it needs fitness='train'")
        if self.halving > 1 and self.pending is not None:
            raise ConfigError("halving picks the better half of a batch, and with pending there are no batches")
        _ = self.crew

    def defaults(self) -> dict[str, Any]:
        """What holds for settings that were left at None."""
        return {
            "genes": "all",
            "fitness": "train" if self.halving > 1 else "recalibrate",
            "inherit": "l1",
        }

    def resolved(self) -> Self:
        return replace(self, **{name: v for name, v in self.defaults().items() if getattr(self, name) is None})

    @abstractmethod
    def strategy(self, space: Space, seed: int) -> Strategy:
        """The strategy, fresh."""

    def space(self, graph: ChannelGraph, budget: Budget, constraints: Constraints) -> Space:
        """The structures that the search may propose."""
        return budgeted(graph, searched_groups(graph, self.genes or "all"), budget, constraints)

    def trains_on(self, data: Data, recipe: Recipe) -> dict[str, int]:
        """Every structure is trained, with halving in rounds, and the best once more to be handed over."""
        if self.fitness != "train":
            return {}
        rounds = sum(self.fitness_epochs // 2**left for left in range(self.halving))
        epochs = self.most() * rounds + self.fitness_epochs
        return {"evaluations": epochs * data.epoch_images(recipe.batch_size, self.fitness_images)}

    def judges_on(self, held: int) -> int:
        each = min(self.validation_images, held)
        return self.most() * (each + (self.calibration_images if self.fitness != "train" else 0))

    def find(self, pruning: Pruning) -> Found:
        """Search, cut the winner, and hand it over with the weights that its fitness was measured with."""
        space = self.space(pruning.graph, pruning.budget, pruning.constraints)
        evaluator = self.evaluator(pruning)
        pruning.say(
            f"Searching {len(space)} genes ({space.size:.1e} structures before the budget) by "
            f"{self.fitness} fitness on {_images(evaluator, pruning):,} validation images ..."
        )
        told = pruning.task.told_fitness
        how = pruning.recipe.seed, pruning.run.journal, told, pruning.progress
        starts = self.starts(pruning, space)
        found = decided(lambda: self.search(space, evaluator, *how, starts))
        best = f"Best of {found.report['evaluations']} structures: {told(found.fitness)} on the images of the search"
        pruning.say(best)
        self.tell_exhausted(found, pruning.graph, pruning.constraints, pruning.say)
        done = pruning.run.once("cut1", lambda: self._cut(pruning, evaluator, found.widths))
        network = cut(pruning.base, pruning.graph, plan := Plan.from_json(done["plan"]))
        network.load_state_dict(done["model"])
        pruning.tell_cut(done, "its short training" if self.fitness == "train" else "recalibration")
        pruning.seconds["search"] = found.report["seconds"] / self.workers
        pruning.trained["search"] += found.images + done.get("images", 0)
        report = {"search": self._report(space, found)}
        again = partial(self._again, pruning, evaluator, found.widths, report)
        return Found(network, plan, [done], report, again=again)

    def _again(
        self, pruning: Pruning, evaluator: Recalibrate | Train, widths: np.ndarray, report: dict[str, Any],
        budget: Budget, name: str,
    ) -> Found:  # fmt: skip
        """The best structure in the same proportions under another budget."""
        other = pruning.under(budget)
        constraints = pruning.constraints.restricted(searched_groups(pruning.graph, self.genes or "all"))
        near = rescaler(pruning.graph, budget, constraints)(widths)
        done = pruning.run.once(name, lambda: self._cut(other, evaluator, near))
        pruning.trained["search"] += done.get("images", 0)
        small = cut(pruning.base, pruning.graph, plan := Plan.from_json(done["plan"]))
        small.load_state_dict(done["model"])
        pruning.tell_cut(done)
        return Found(small, plan, [done], report, again=partial(self._again, pruning, evaluator, widths, report))

    def search(
        self,
        space: Space,
        evaluator: Evaluator,
        seed: int,
        journal: Journal | None,
        told: Callable[[float], str],
        progress: bool,
        starts: Sequence[Levels] = (),
    ) -> SearchResult:
        """Search the space with this evaluator, from `starts` on. `told` shows a fitness."""
        view = SearchView(self.expected(), progress, told)
        strategy = self.strategy(space, seed)
        strategy.begin_with(starts)
        return run_search(strategy, evaluator, journal, self, view, self.halving, self.pending)

    def starts(self, pruning: Pruning, space: Space) -> list[Levels]:
        """Structures to begin with; none where the search has no budget, or they are not wanted."""
        if not self.warm or space.onto_budget is None:
            return []
        found = pruning.run.once("starts", lambda: self._ranked(pruning, space))
        pruning.seconds["score"] = found["seconds"]["score"]
        pruning.say(f"  Beginning with the structures of uniform, {' and '.join(RANKINGS)}, and with random ones")
        return [tuple(levels) for levels in found["levels"]]

    def _ranked(self, pruning: Pruning, space: Space) -> dict[str, Any]:
        seconds: dict[str, float] = {}
        with clock(seconds, "score"):
            scores = (pruning.scores(name, pruning.base, pruning.graph) for name in RANKINGS)
            levels = starting_points(space, pruning.graph, pruning.budget, pruning.constraints, scores)
        return {"levels": levels, "seconds": seconds}

    def tell_exhausted(self, found: SearchResult, graph: ChannelGraph, constraints: Constraints, say: Say) -> None:
        """Say so if there were fewer structures than evaluations."""
        if found.report["exhausted"] and found.report["evaluations"] < self.evaluations:
            coarsest = int(constraints.ladder(graph).step.max()) if self.budgeted else 1
            finer = "" if coarsest == 1 else "; widths in smaller steps (--round-to 1) give more"
            say(f"  Every structure within reach was tried, {found.report['evaluations']} of at most "
                f"{self.evaluations}{finer}")  # fmt: skip

    def plan(self, graph: ChannelGraph, budget: Budget, inheritance: Inheritance, widths: np.ndarray) -> Plan:
        """The plan of a structure, with a note on what it leaves of the budget."""
        plan = inheritance.plan(widths)
        return replace(plan, note=note_on_use(graph, budget, widths)) if self.budgeted else plan

    def evaluator(self, pruning: Pruning) -> Recalibrate | Train:
        base, graph, data, seed = pruning.base, pruning.graph, pruning.data, pruning.recipe.seed
        if self.fitness == "train":
            return Train(
                base, graph, data, self._short_recipe(pruning.recipe), task=pruning.task,
                inherit=self.inherit or "l1", seed=seed, optimizer=pruning.optimizer,
            )  # fmt: skip
        return MEASURES[self.fitness or "recalibrate"](
            base, graph, data, task=pruning.task, inherit=self.inherit or "l1",
            calibration_images=self.calibration_images, validation_images=self.validation_images,
            bf16=pruning.recipe.bf16, memory_mb=pruning.recipe.train_memory_mb, seed=seed,
        )  # fmt: skip

    def expected(self) -> int:
        """Evaluations to expect, for the time left."""
        return self.evaluations

    def most(self) -> int:
        """Evaluations at most."""
        return self.evaluations

    def _short_recipe(self, recipe: Recipe) -> Recipe:
        return Recipe(
            epochs=self.fitness_epochs, lr=self.fitness_lr, schedule="constant", warmup_epochs=0,
            batch_size=recipe.batch_size, limit=self.fitness_images, seed=recipe.seed, bf16=recipe.bf16,
            optimizer=recipe.optimizer,
        )  # fmt: skip

    def _cut(self, pruning: Pruning, evaluator: Recalibrate | Train, widths: np.ndarray) -> dict[str, Any]:
        plan = self.plan(pruning.graph, pruning.budget, evaluator.inheritance, widths)
        done = pruning.cut(pruning.base, pruning.graph, plan)
        if isinstance(evaluator, Train):
            with clock(done["seconds"], "search"):
                again = evaluator.trained(widths)
            done |= {"model": {name: t.cpu() for name, t in again.model.state_dict().items()}}
            done |= {"value": pruning.value(again.model), "images": again.images}
        return done

    def _report(self, space: Space, found: SearchResult) -> dict[str, Any]:
        where: dict[str, Any] = {"executor": self.executor, "workers": self.workers}
        where |= {} if self.pending is None else {"pending": self.pending}
        return {"genes": len(space), "structures": space.size, **where, **found.report}


def run_search(
    strategy: Strategy,
    evaluator: Evaluator,
    journal: Journal | None,
    where: InWorkers,
    view: SearchView,
    rounds: int = 1,
    pending: int | None = None,
) -> SearchResult:
    """Every search of whole structures runs here: journalled, in the workers of a method."""
    store = Store(evaluator.settings, journal)
    with open_executor(where.crew, evaluator) as executor, view:
        if pending is None:
            return Search(strategy, store, executor, view, rounds).run()
        return SteadySearch(strategy, store, executor, view, pending=pending).run()


def _images(evaluator: Recalibrate | Train, pruning: Pruning) -> int:
    if isinstance(evaluator, Train):
        return len(evaluator.data.val)
    return sum(map(pruning.task.count, evaluator.validation))


def whole_numbers(method: Method, *names: str, least: int = 1) -> None:
    """ConfigError if a setting is neither None nor a whole number from `least` up."""
    for name in names:
        value = getattr(method, name)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
            raise ConfigError(f"{name} is {value!r}; expected a whole number of {least} or more")
