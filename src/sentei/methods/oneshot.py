"""Score, cut, check, fine-tune: the baselines, in one cut or in several.

Validation data decides everything that is decided; the test set is read once, at the end, for the original and for
the pruned network.
"""

from __future__ import annotations

import copy
import difflib
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sentei.errors import ConfigError, SenteiError
from sentei.graph import ChannelGraph, trace
from sentei.methods.remaining import Remaining
from sentei.methods.settings import DEFAULT_CONSTRAINTS, FINE_TUNE, METHODS, Scope, Settings
from sentei.methods.summary import digest, machine
from sentei.plan import Budget, Constraints, Plan, allocate, criterion, uniform
from sentei.plan.compose import compose
from sentei.runs import Run
from sentei.surgery import check, cut, save
from sentei.train import Data, Recipe, evaluate, fit, load_data, recalibrate
from sentei.train.evaluate import logits
from sentei.train.splits import Split

Say = Callable[[str], None]


@dataclass(frozen=True)
class PruneResult:
    """A pruned network: `model`, the `plan` of the dense model's `graph` that leads to it, and the `summary`."""

    model: nn.Module
    plan: Plan
    graph: ChannelGraph
    summary: dict[str, Any]


def prune(
    model: nn.Module,
    data: Data | str,
    *,
    method: str = "l1",
    budget: Budget | None = None,
    run_dir: str | Path | None = None,
    recipe: Recipe = FINE_TUNE,
    steps: int = 1,
    step_epochs: int = 1,
    scope: Scope | None = None,
    constraints: Constraints = DEFAULT_CONSTRAINTS,
    distill: bool = False,
    images: int = 2048,
    seed: int | None = None,
    source: str | None = None,
    command: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    say: Say | None = None,
    progress: bool = False,
) -> PruneResult:
    """Prune a trained classifier to a budget, prove the cut, fine-tune, and save.

    >>> result = sentei.prune(model, "digits", method="taylor", budget=Budget(macs=0.5), run_dir="runs/x")
    >>> result.summary["pruned"]["accuracy"]

    The model is left as it is. With a `run_dir` the result is saved there, and a call that was killed goes on where
    it stopped when it is repeated with the same arguments: the result is the same to the bit.

    Args:
        data: a `Data`, or a reference for `load_data`.
        method: one of `METHODS`.
        budget: half the MACs if nothing is given.
        recipe: the final fine-tuning; its seed decides everything random unless `seed` is given.
        steps: cuts on the way; the budget falls geometrically, units are scored again before each cut, and
            `step_epochs` epochs of training lie between two cuts.
        scope: rank units over the whole network or within each group; None is the method's own.
        distill: fine-tune with the original network as a teacher (`recipe.distill_weight`, `recipe.temperature`).
        images: training images that recalibrate BatchNorm, and from which taylor computes its scores.
        source: the reference of the dense model, to be noted in the files.
        overwrite: replace a run in `run_dir`.
        say: called with one line for each thing done. progress: show bars while training.

    Raises ConfigError for settings out of range and for a `run_dir` that is taken, BudgetError for a budget that
    cannot be met, SurgeryError if a cut is not exact.
    """
    if method not in METHODS:
        near = difflib.get_close_matches(method, METHODS, n=1, cutoff=0)[0]
        raise ConfigError(f"no method {method!r}; did you mean {near!r}? There are {', '.join(METHODS)}")
    recipe = recipe if seed is None else replace(recipe, seed=seed)
    budget = budget or Budget(macs=0.5)
    settings = Settings(
        method, budget, scope or METHODS[method].scope, constraints, recipe, steps, step_epochs, distill, images
    )
    data = load_data(data) if isinstance(data, str) else data
    base = copy.deepcopy(model).to(data.device).eval()
    resolved = {"task": "prune", "model": source or type(model).__name__, "base_sha256": digest(base)}
    run = Run.open(run_dir, resolved | {"data": data.description, **settings.to_dict()}, command, overwrite)
    try:
        return _Pruning(base, data, settings, run, source, say or _silent, progress).result()
    except SenteiError:
        run.discard_if_empty()
        raise


def _silent(line: str) -> None:
    pass


@dataclass
class _Pruning:
    """One run, phase by phase; each phase is stored, so that `result` can be called again after a kill."""

    base: nn.Module
    data: Data
    settings: Settings
    run: Run
    source: str | None
    say: Say
    progress: bool
    seconds: dict[str, float] = field(default_factory=dict)

    def result(self) -> PruneResult:
        settings = self.settings
        with self.timed("trace"):
            self.graph = trace(self.base, torch.zeros(1, *self.data.input_shape, device=self.data.device))
        self.say(f"Traced {self.source or type(self.base).__name__}: {self.graph}")
        model, plan, cuts = self.base, Plan({}, self.graph.structure), []
        for step in range(1, settings.steps + 1):
            done = self.run.once(f"cut{step}", partial(self.cut, model, plan, step))
            plan = Plan.from_json(done["plan"])
            model = cut(self.base, self.graph, plan)
            model.load_state_dict(done["model"])
            cuts.append(done)
            self.tell_cut(done)
            if step < settings.steps:
                between = replace(settings.recipe, epochs=settings.step_epochs)
                model = self.fit(model, between, f"step{step}")
        tuned = self.fit(model, settings.recipe, "finetune")
        if self.run.folder is not None:
            save(tuned, plan, self.run.folder, source=self.source)
        final = self.run.once("final", lambda: self.measure(tuned))
        summary = self.summary(plan, cuts, final)
        self.run.finish(summary)
        return PruneResult(tuned, plan, self.graph, summary)

    # -- one cut

    def cut(self, model: nn.Module, plan: Plan, step: int) -> dict[str, Any]:
        """Score, allocate, cut, check and recalibrate."""
        seconds: dict[str, float] = {}
        graph, constraints = self.graph, self.settings.constraints
        if step > 1:
            with clock(seconds, "trace"):
                graph = trace(model, torch.zeros(1, *self.data.input_shape, device=self.data.device))
            constraints = Remaining.of(constraints, self.graph)
        with clock(seconds, "score"):
            uniform(graph, self.budget_of(step), constraints=constraints)  # refuse a budget before the scores' work
            scores = self.scores(model, graph)
            small_plan = allocate(
                graph, self.budget_of(step), scores, scope=self.settings.scope, constraints=constraints
            )
        with clock(seconds, "cut"):
            small = cut(model, graph, small_plan)
            combined = small_plan if step == 1 else compose(self.graph, plan, graph, small_plan)
        with clock(seconds, "check"):
            report = check(model, small, graph, small_plan, next(self.data.train.batches(4, limit=4))[0])
        with clock(seconds, "recalibrate"):
            recalibrate(small, self.data.train.batches(256, train=True, limit=self.settings.images))
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
            "seconds": seconds,
        }

    def scores(self, model: nn.Module, graph: ChannelGraph) -> dict[str, Any]:
        name = METHODS[self.settings.method].criterion
        score = criterion(name)
        self.say(f"Scoring {sum(g.width for g in graph.groups if not g.frozen):,} units by {name} ...")
        batches = self.data.train.batches(self.settings.recipe.batch_size, limit=self.settings.images)
        return score(model, graph, batches=batches, loss=_loss, seed=self.settings.recipe.seed)

    def budget_of(self, step: int) -> Budget:
        """Limits fall geometrically from the full model to the budget: full * (limit / full) ** (step / steps)."""
        full, share = self.graph.cost(), step / self.settings.steps
        limits = self.settings.budget.resolve(self.graph)
        on_the_way = {
            name: max(2, round(getattr(full, name) * (limit / getattr(full, name)) ** share))
            for name, limit in limits.items()
        }
        return Budget(**{name: float(limits[name] if share == 1 else v) for name, v in on_the_way.items()})

    def tell_cut(self, done: Mapping[str, Any]) -> None:
        full = self.graph.cost()
        accuracy = "" if done["val_accuracy"] is None else f", validation accuracy {done['val_accuracy']:.2%}"
        self.say(
            f"Cut to {done['macs'] / max(full.macs, 1):.1%} of the MACs and {done['params'] / full.params:.1%} of the "
            f"parameters; checked: max error {done['max_error']:.1e}{accuracy} after recalibration"
        )
        for where in done["approximate"]:
            self.say(f"  {where} takes statistics over removed channels: there the cut changes what is computed")

    # -- training and measuring

    def fit(self, model: nn.Module, recipe: Recipe, name: str) -> nn.Module:
        teacher = self.base if self.settings.distill else None
        found = fit(
            model, self.data, recipe, run_dir=self.run.folder, name=name, teacher=teacher, progress=self.progress
        )
        self.seconds["finetune"] = self.seconds.get("finetune", 0.0) + found.seconds
        return found.model

    def measure(self, tuned: nn.Module) -> dict[str, Any]:
        """The only place where the test set is read."""
        seconds: dict[str, float] = {}
        self.say(f"Measuring both networks on {len(self.data.test):,} test images ...")
        with clock(seconds, "evaluate"):
            found = {
                f"{name}_{part}": accuracy_of(model, split)
                for name, model in (("base", self.base), ("pruned", tuned))
                for part, split in (("val", self.data.val), ("test", self.data.test))
            }
        return {**found, "seconds": seconds}

    def summary(self, plan: Plan, cuts: list[dict[str, Any]], final: Mapping[str, Any]) -> dict[str, Any]:
        for done in (*cuts, final):
            for name, value in done["seconds"].items():
                self.seconds[name] = self.seconds.get(name, 0.0) + value
        settings, full, cost, last = self.settings, self.graph.cost(), self.graph.cost(plan), cuts[-1]
        widths = self.graph.widths(plan)
        seconds = {name: round(value, 2) for name, value in self.seconds.items()}
        return {
            "task": "prune",
            "method": settings.method,
            "model": self.source or type(self.base).__name__,
            "data": self.data.name,
            "budget": settings.budget.limits,
            "seed": settings.recipe.seed,
            "base": _measured(final, "base", full.macs, full.params),
            "pruned": _measured(final, "pruned", cost.macs, cost.params),
            "after_cut": {"val_accuracy": last["val_accuracy"]},
            "check": {
                "max_error": max(done["max_error"] for done in cuts),
                "tolerance": last["tolerance"],
                "approximate": sorted({where for done in cuts for where in done["approximate"]}),
            },
            "steps": [
                {"macs": d["macs"], "params": d["params"], "val_accuracy": d["val_accuracy"]} for d in cuts
            ],
            "seconds": {**seconds, "total": round(sum(self.seconds.values()), 2)},
            "widths": {
                g.name: [g.width, int(w)]
                for g, w in zip(self.graph.groups, widths, strict=True)
                if not g.frozen
            },
            "frozen": {g.name: g.why for g in self.graph.groups if g.frozen},
            "machine": machine(self.data.device),
            "epochs": settings.recipe.epochs,
            "settings": settings.to_dict(),
            "data_description": self.data.description,
            "note": plan.note,
        }

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        with clock(self.seconds, name):
            yield


@contextmanager
def clock(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Add the time spent inside to `seconds[name]`."""
    started = time.perf_counter()
    yield
    seconds[name] = seconds.get(name, 0.0) + round(time.perf_counter() - started, 3)


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


def _loss(output: Any, y: Tensor) -> Tensor:
    return F.cross_entropy(logits(output), y)
