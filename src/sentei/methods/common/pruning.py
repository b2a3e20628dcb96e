"""One pruning run: a method finds and cuts, then everything is fine-tuned, saved and measured alike.

Validation data decides everything that is decided; the test set is read once, at the end, for the original and for
the pruned network.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from sentei.errors import ConfigError
from sentei.graph import ChannelGraph, trace
from sentei.methods.common.method import Found, Method, deciding
from sentei.methods.common.summary import machine
from sentei.methods.common.timing import clock
from sentei.models.user_file import code_of
from sentei.plan import Budget, Constraints, Plan
from sentei.runs import Run
from sentei.surgery import check, cut, save
from sentei.data import Data
from sentei.train import Evaluation, Recipe, evaluate, fit, recalibrate
from sentei.train.checkpoint import digest
from sentei.data.splits import Split
from sentei.threads import computed_on

Say = Callable[[str], None]

FINE_TUNE = Recipe(epochs=10, lr=0.02)
DEFAULT_CONSTRAINTS = Constraints(max_ratio=0.9)
"""No group loses more than nine tenths of its units, so that a global ranking cannot close a layer."""


UNTRAINED = (
    "before any cut the network is right on {:.2%} of the validation images, no better than guessing: its weights are "
    "not trained, or not for these images (--normalize, the order of classes)"
)


@dataclass(frozen=True)
class PruneResult:
    """A pruned network: `model`, the `plan` of the dense model's `graph` that leads to it, and the `summary`."""

    model: nn.Module
    plan: Plan
    graph: ChannelGraph
    summary: dict[str, Any]


@dataclass
class Pruning:
    """A run, phase by phase; each phase is stored, so that `result` can be called again after a kill."""

    name: str
    """The method's name, for the files."""
    base: nn.Module
    data: Data
    budget: Budget
    constraints: Constraints
    recipe: Recipe
    """The final fine-tuning; its seed decides everything random."""
    distill: bool
    images: int
    """Training images that recalibrate BatchNorm, and from which scores are computed."""
    run: Run
    source: str | None
    say: Say
    progress: bool
    seconds: dict[str, float] = field(default_factory=dict)
    graph: ChannelGraph = field(init=False)

    def __post_init__(self) -> None:
        if self.images < 1:
            raise ConfigError(f"images is {self.images}; expected 1 or more")

    def settings(self, method: Method) -> dict[str, Any]:
        """Everything that decides the result, apart from model and data."""
        given = self.constraints
        ratio = dict(given.max_ratio) if isinstance(given.max_ratio, Mapping) else given.max_ratio
        only = {} if given.only is None else {"only": sorted(given.only)}
        return {
            "method": self.name,
            **deciding(method),
            "budget": self.budget.limits,
            "distill": self.distill,
            "images": self.images,
            "constraints": {
                "round_to": given.round_to, "min_width": given.min_width, "max_ratio": ratio, "keep": list(given.keep),
                **only,
            },
            "recipe": self.recipe.to_dict(),
        }

    def identity(self, method: Method) -> dict[str, Any]:
        """What makes a run this one and no other; it does not depend on where model and data lie."""
        workers = {} if method.worker_threads is None else {"worker_threads": method.worker_threads}
        return {
            "task": "prune",
            "base_sha256": digest(self.base),
            "code": code_of(self.source),
            "data": self.data.identity,
            **self.settings(method),
            **method.identity(),
            **computed_on(self.data.device),
            **workers,
        }

    def result(self, method: Method) -> PruneResult:
        with self.timed("trace"):
            self.graph = trace(self.base, torch.zeros(1, *self.data.input_shape, device=self.data.device))
        self.say(f"Traced {self.source or type(self.base).__name__}: {self.graph}")
        before = self.before()
        for warning in before["warnings"]:
            self.say(f"Warning: {warning}.")
        found = method.find(self)
        tuned = self.fit(found.model, self.recipe, "finetune", found.teacher)
        if self.run.folder is not None:
            save(tuned, found.plan, self.run.folder, source=self.source)
        final = self.run.once("final", lambda: self.measure(tuned))
        summary = self.summary(method, found, {**final, "base_val": before["accuracy"]}, before["warnings"])
        self.run.finish(summary)
        return PruneResult(tuned, found.plan, self.graph, summary)

    # -- one cut

    def cut(self, model: nn.Module, graph: ChannelGraph, plan: Plan, combined: Plan | None = None) -> dict[str, Any]:
        """Cut, check and recalibrate: a record of what came out, to be stored by `run.once`.

        `graph` and `plan` are those of `model`; `combined` is the plan of the dense model where that is another.
        """
        seconds: dict[str, float] = {}
        combined = combined or plan
        with clock(seconds, "cut"):
            small = cut(model, graph, plan)
        with clock(seconds, "check"):
            report = check(model, small, graph, plan, next(self.data.train.batches(4, limit=4))[0])
        with clock(seconds, "recalibrate"):
            recalibrate(small, self.data.train.batches(256, train=True, limit=self.images))
        with clock(seconds, "evaluate"):
            accuracy = accuracy_of(small, self.data.val)
        cost = self.graph.cost(combined)
        return {
            "plan": combined.to_json(),
            "model": {name: t.cpu() for name, t in small.state_dict().items()},
            "macs": cost.macs,
            "params": cost.params,
            "val_accuracy": accuracy,
            "max_error": report.max_error,
            "tolerance": report.tolerance,
            "approximate": list(report.approximate),
            "stale": list(report.stale),
            "seconds": seconds,
        }

    def tell_cut(self, done: Mapping[str, Any], after: str = "recalibration") -> None:
        full, reached = self.graph.cost(), done["val_accuracy"]
        accuracy = "" if reached is None else f", validation accuracy {reached:.2%} after {after}"
        self.say(
            f"Cut to {done['macs'] / max(full.macs, 1):.1%} of the MACs and {done['params'] / full.params:.1%} of the "
            f"parameters; checked: max error {done['max_error']:.1e}{accuracy}"
        )
        for where in done["approximate"]:
            self.say(
                f"  {where or 'the model'} computes with the number of channels (statistics, a scale): there the cut "
                "changes what is computed"
            )

    # -- training and measuring

    def fit(self, model: nn.Module, recipe: Recipe, name: str, teacher: nn.Module | None = None) -> nn.Module:
        teacher = self.base if self.distill else teacher
        found = fit(
            model, self.data, recipe, run_dir=self.run.folder, name=name, teacher=teacher, progress=self.progress
        )
        self.seconds["finetune"] = self.seconds.get("finetune", 0.0) + found.seconds
        return found.model

    def before(self) -> dict[str, Any]:
        """The original network's accuracy on validation images, and whether it is worth pruning. Not stored, so that a
        budget that is refused after it leaves nothing."""
        if not len(self.data.val):
            return {"accuracy": None, "warnings": []}
        found = evaluate(self.base, self.data.val)
        return {"accuracy": found.accuracy, "warnings": [UNTRAINED.format(found.accuracy)] if at_chance(found) else []}

    def measure(self, tuned: nn.Module) -> dict[str, Any]:
        """The only place where the test set is read."""
        seconds: dict[str, float] = {}
        self.say(f"Measuring both networks on {len(self.data.test):,} test images ...")
        with clock(seconds, "evaluate"):
            found = {
                "base_test": accuracy_of(self.base, self.data.test),
                "pruned_val": accuracy_of(tuned, self.data.val),
                "pruned_test": accuracy_of(tuned, self.data.test),
            }
        return {**found, "seconds": seconds}

    def summary(
        self, method: Method, found: Found, final: Mapping[str, Any], warnings: Sequence[str]
    ) -> dict[str, Any]:
        cuts, plan = found.cuts, found.plan
        for done in (*cuts, final):
            for name, value in done["seconds"].items():
                self.seconds[name] = self.seconds.get(name, 0.0) + value
        full, cost, last = self.graph.cost(), self.graph.cost(plan), cuts[-1]
        widths = self.graph.widths(plan)
        seconds = {name: round(value, 2) for name, value in self.seconds.items()}
        return {
            "task": "prune",
            "method": self.name,
            "model": self.source or type(self.base).__name__,
            "data": self.data.name,
            "budget": self.budget.limits if method.budgeted else None,
            "seed": self.recipe.seed,
            "base": _measured(final, "base", full.macs, full.params),
            "pruned": _measured(final, "pruned", cost.macs, cost.params),
            "after_cut": {"val_accuracy": last["val_accuracy"]},
            "check": {
                "max_error": max(done["max_error"] for done in cuts),
                "tolerance": last["tolerance"],
                "approximate": sorted({where for done in cuts for where in done["approximate"]}),
                "stale": sorted({name for done in cuts for name in done["stale"]}),
            },
            "steps": [{"macs": d["macs"], "params": d["params"], "val_accuracy": d["val_accuracy"]} for d in cuts],
            "seconds": {**seconds, "total": round(sum(self.seconds.values()), 2)},
            "widths": {
                g.name: [g.width, int(w)] for g, w in zip(self.graph.groups, widths, strict=True) if not g.frozen
            },
            "frozen": {g.name: g.why for g in self.graph.groups if g.frozen},
            "machine": machine(self.data.device),
            "epochs": self.recipe.epochs,
            "settings": self.settings(method),
            "data_description": {**self.data.description, **self.data.identity, "data": self.data.name},
            "note": plan.note,
            "warnings": list(warnings),
            **found.report,
        }

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        with clock(self.seconds, name):
            yield


def at_chance(found: Evaluation) -> bool:
    """Whether an accuracy is no better than answering the most frequent class, by two standard errors."""
    guess = found.majority
    return found.accuracy <= guess + 2 * math.sqrt(guess * (1 - guess) / found.images)


def accuracy_of(model: nn.Module, split: Split) -> float | None:
    """Share of right answers, None for an empty split."""
    return evaluate(model, split).accuracy if len(split) else None


def _measured(final: Mapping[str, Any], name: str, macs: int, params: int) -> dict[str, Any]:
    return {
        "accuracy": final[f"{name}_test"],
        "val_accuracy": final[f"{name}_val"],
        "macs": macs,
        "params": params,
    }
