"""`sentei.prune`: from a trained network to a smaller, checked and fine-tuned one.

A method finds and cuts, then everything is fine-tuned, saved and measured alike. Validation data decide everything that
is decided; test data are read once, at the end, for the original and for the pruned network.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from sentei.data import Data, load_data
from sentei.distributed import agree_weights, agreed, decided, is_leader
from sentei.errors import ConfigError
from sentei.graph import ChannelGraph
from sentei.machine import machine
from sentei.methods.choice import choose
from sentei.methods.common.forecast import forecast
from sentei.methods.common.latency import set_up, within_time
from sentei.methods.common.method import Found, Method, deciding
from sentei.methods.common.pruning import DEFAULT_CONSTRAINTS, FINE_TUNE, Pruning, Say, silent
from sentei.methods.common.summary import answers, measured_on, measured_task, tested
from sentei.methods.common.timing import clock
from sentei.methods.registry import method_of
from sentei.models.user_file import code_of
from sentei.plan import Budget, Constraints, Plan
from sentei.plan.budget import refuse_other
from sentei.runs import Run
from sentei.speed.latency import Timing
from sentei.surgery import save
from sentei.surgery.history import as_dense
from sentei.tasks import Task, task_of
from sentei.threads import computed_on
from sentei.train import Recipe, evaluate
from sentei.train.checkpoint import digest
from sentei.train.optimizers import Factory, factory_name

WORSE = 0.05
"""Share of the metric that fine-tuning may lose without a word."""


@dataclass(frozen=True)
class PruneResult:
    """A pruned network: `model`, the `plan` of the dense model's `graph` that leads to it, and the `summary`."""

    model: nn.Module
    plan: Plan
    graph: ChannelGraph
    summary: dict[str, Any]

    def __repr__(self) -> str:
        base, pruned, metric = self.summary["base"], self.summary["pruned"], self.summary["metric"]["name"]
        return (
            f"PruneResult({self.summary['method']}: {pruned['macs'] / max(base['macs'], 1):.1%} of the MACs, "
            f"{pruned['params'] / base['params']:.1%} of the parameters, test {metric} {pruned.get(metric)}, "
            f"before {base.get(metric)})"
        )


def prune(
    model: nn.Module,
    data: Data | str,
    *,
    task: Task | str | None = None,
    method: str | Method | None = None,
    fast: bool = False,
    budget: Budget | None = None,
    run_dir: str | Path | None = None,
    recipe: Recipe = FINE_TUNE,
    constraints: Constraints = DEFAULT_CONSTRAINTS,
    distill: bool | None = None,
    reconstruct: bool = False,
    images: int = 2048,
    total_images: int | None = None,
    seed: int | None = None,
    optimizer: Factory | None = None,
    timing: Timing | None = None,
    source: str | None = None,
    command: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    say: Say | None = None,
    progress: bool = False,
    checkpoint_minutes: float | None = None,
    **options: Any,
) -> PruneResult:
    """Prune a trained network to a budget, prove the cut, fine-tune, and save.

    >>> result = sentei.prune(model, "digits", method="taylor", budget=Budget(macs=0.5), steps=3, run_dir="runs/x")
    >>> result.summary["pruned"]["accuracy"]

    The model is left as it is. With a `run_dir` the result is saved there, and a call that was killed goes on where
    it stopped when it is repeated with the same arguments: the result is the same to the bit. Under torchrun (or
    `sentei launch`), called by all processes, training and measuring are shared by them; see `sentei.distributed`.

    Args:
        data: a `Data` (`Data.of` makes one of your own loaders), or a reference for `load_data`.
        task: what the network is for: a `Task`, "classification", "segmentation", "detection", or FILE.py:CLASS; what
            the data are for unless given.
        method: a name in `METHODS`, or a method with settings of its own, such as `OneShot("taylor", steps=3)`. Unless
            given, the one that keeps most at equal cost of training (`sentei.methods.choice` says which, and why).
        fast: take one of the best of those that neither search nor train before they cut.
        budget: half the MACs if nothing is given; a method that decides the size itself takes none.
        recipe: the final fine-tuning; its seed decides everything random unless `seed` is given.
        distill: fine-tune with the original network as a teacher, of outputs (`recipe.distill_weight`,
            `recipe.temperature`) and of features (`recipe.hint_weight`). Unless given, where the task says how to
            imitate one.
        reconstruct: give what was cut weights that make up for the inputs that were cut, by least squares
            (`sentei.train.reconstruct`), before BatchNorm is recalibrated. It pays where there is little fine-tuning
            after it, at a low learning rate, or none.
        images: training images that recalibrate BatchNorm, and from which scores are computed.
        total_images: images that may go through training steps in all, whatever for: a search that trains, sparse
            training, a supernet, cuts on the way. The final fine-tuning gets what is left, in place of the recipe's
            epochs.
        timing: where a budget of milliseconds is measured: runtime, threads, or a table measured before. ONNX Runtime
            on one thread unless given.
        optimizer: makes an optimizer of parameter groups, in place of the recipe's own, wherever something is trained.
        source: the reference of the dense model, to be noted in the files.
        overwrite: replace a run in `run_dir`.
        say: called with one line for each thing done. progress: show bars while training.
        checkpoint_minutes: store training within its epochs too, so often.
        options: settings of the method, such as `steps=3`; each method's class lists them.

    Raises ConfigError for settings out of range, for a `run_dir` that is taken and for `total_images` that the method
    may use up before the fine-tuning, BudgetError for a budget that cannot be met, SurgeryError if a cut is not exact,
    TrainError if the task cannot measure the network.
    """
    pruning, chosen = prepared(
        model, data, task=task, method=method, fast=fast, budget=budget, recipe=recipe, constraints=constraints,
        distill=distill, reconstruct=reconstruct, images=images, total_images=total_images, seed=seed,
        optimizer=optimizer, timing=timing, source=source, **options,
    )  # fmt: skip
    for used in chosen.reads if run_dir is not None else ():
        if Path(used).resolve() == Path(run_dir or "").resolve():
            raise ConfigError(f"{used} is used by this run and cannot be its run directory too; choose another")
    pruning.base = as_dense(copy.deepcopy(pruning.base).to(pruning.data.device).eval())
    agree_weights(pruning.base)
    if is_leader():
        pruning.say, pruning.progress = say or silent, progress
    pruning.checkpoint_minutes = checkpoint_minutes
    with Run.open(run_dir, identity(pruning, chosen), command, overwrite) as pruning.run:
        if method is None:
            pruning.say(choose(fast, len(pruning.data.val) > 0).told())
        return _result(pruning, chosen, foretold=method is None)


def prepared(
    model: nn.Module,
    data: Data | str,
    *,
    task: Task | str | None = None,
    method: str | Method | None = None,
    fast: bool = False,
    budget: Budget | None = None,
    recipe: Recipe = FINE_TUNE,
    constraints: Constraints = DEFAULT_CONSTRAINTS,
    distill: bool | None = None,
    reconstruct: bool = False,
    images: int = 2048,
    total_images: int | None = None,
    seed: int | None = None,
    optimizer: Factory | None = None,
    timing: Timing | None = None,
    source: str | None = None,
    **options: Any,
) -> tuple[Pruning, Method]:
    """What `prune` will work with, checked as far as that takes no work; the model is not copied yet."""
    data = data_of(data)
    if fast and method is not None:
        raise ConfigError(f"fast picks the method, and method is {method!r}; leave one of them out")
    name, chosen = method_of(method or choose(fast, len(data.val) > 0).method, options)
    task = task_of(task, data.name)
    if budget is not None:
        refuse_other(budget)
        if not chosen.budgeted:
            raise ConfigError(
                f"with these settings {name} takes no budget, its own settings decide the size: leave out "
                f"{' and '.join(budget.limits)}"
            )
    pruning = Pruning(
        name,
        model,
        data,
        budget or Budget(macs=0.5 if chosen.budgeted else 1.0),
        constraints,
        recipe if seed is None else replace(recipe, seed=seed),
        task,
        optimizer,
        task.imitates if distill is None else distill,
        images,
        total_images,
        timing=timing or Timing(),
        source=source,
        reconstruct=reconstruct,
    )
    _refuse_total(pruning, chosen)
    return pruning, chosen


def _refuse_total(pruning: Pruning, method: Method) -> None:
    """ConfigError where a method may train on more images before the fine-tuning than there are in all."""
    if pruning.total_images is None:
        return
    needed = method.trains_on(pruning.data, pruning.recipe)
    if sum(needed.values()) > pruning.total_images:
        parts = " and ".join(f"{n:,} by {setting}={getattr(method, setting)}" for setting, n in needed.items())
        raise ConfigError(
            f"method {pruning.name} may train on {sum(needed.values()):,} images before its fine-tuning ({parts}); "
            f"there are {pruning.total_images:,} in all (total_images). Allow more, or lower {' or '.join(needed)}"
        )


def data_of(data: Data | str) -> Data:
    """Data, by reference or as they are; ConfigError, with what to do, for a loader."""
    if isinstance(data, str):
        return load_data(data)
    if not isinstance(data, Data):
        raise ConfigError(
            f"data is a {type(data).__name__}; expected a name such as 'digits', or sentei.Data.of(train=..., val=..., "
            "test=...), which takes DataLoaders and lists of batches"
        )
    return data


def settings(pruning: Pruning, method: Method) -> dict[str, Any]:
    """Everything that decides the result, apart from model and data."""
    factory = factory_name(pruning.optimizer)
    return {
        "task": pruning.task.settings,
        "method": pruning.name,
        **deciding(method),
        "budget": pruning.budget.limits,
        "distill": pruning.distill,
        **({"reconstruct": True} if pruning.reconstruct else {}),
        "images": pruning.images,
        **({} if pruning.total_images is None else {"total_images": pruning.total_images}),
        "constraints": pruning.constraints.settings,
        "recipe": pruning.recipe.to_dict(),
        **({} if factory is None else {"optimizer": factory}),
        **({"timing": pruning.timing.settings()} if pruning.budget.timed else {}),
    }


def identity(pruning: Pruning, method: Method) -> dict[str, Any]:
    """What makes a run this one and no other; it does not depend on where model and data lie."""
    workers = {} if method.worker_threads is None else {"worker_threads": method.worker_threads}
    return {
        "verb": "prune",
        "base_sha256": digest(pruning.base),
        "code": code_of(pruning.source),
        "data": pruning.data.identity,
        **settings(pruning, method),
        **method.identity(),
        **computed_on(pruning.data.device),
        **workers,
    }


def _result(pruning: Pruning, method: Method, foretold: bool) -> PruneResult:
    """`foretold`: say before what it will take."""
    with pruning.timed("trace"):
        pruning.graph = pruning.trace()
    pruning.say(f"Traced {pruning.source or type(pruning.base).__name__}: {pruning.graph}")
    pruning.rehearse()
    if foretold:
        pruning.say(f"It takes {decided(lambda: forecast(pruning, method))}")
    if pruning.budget.timed:
        with pruning.timed("latency"):
            set_up(pruning)
    value, warnings = _before(pruning)
    for warning in warnings:
        pruning.say(f"Warning: {warning}.")
    found = method.find(pruning)
    if pruning.budget.timed:
        with pruning.timed("latency"):
            found = within_time(pruning, found)
    if over := pruning.overspent():
        warnings = [*warnings, over]
        pruning.say(f"Warning: {over}.")
    tuning, last_limit = pruning.tuning()
    taught = pruning.taught and tuning.epochs > 0
    if taught:
        pruning.say("Fine-tuning, taught by the original network ...")
    tuned = pruning.fit(found.model, tuning, "finetune", last_limit, found.plan)
    if pruning.run.folder is not None:
        save(tuned, found.plan, pruning.run.folder, source=pruning.source, forward=pruning.task.part)
    final = pruning.run.once("final", lambda: _measure(pruning, tuned), together=True)
    if tuning.epochs and (worse := _worse(pruning, found.cuts[-1]["value"], final["pruned_val"])):
        warnings = [*warnings, worse]
        pruning.say(f"Warning: {worse}.")
    summary = agreed(_summary(pruning, method, found, {**final, "base_val": value}, warnings))
    summary |= {"epochs": tuning.epochs, "taught": taught}
    pruning.run.finish(summary)
    return PruneResult(tuned, found.plan, pruning.graph, summary)


def _before(pruning: Pruning) -> tuple[float | None, list[str]]:
    """The original network's metric on validation data, and what is worth a warning. Not stored, so that a budget that
    is refused after it leaves nothing."""
    data, task = pruning.data, pruning.task
    if not len(data.val):
        return None, data.notes
    found = evaluate(pruning.base, data.val, task=task, memory_mb=pruning.recipe.train_memory_mb)
    doubt = task.doubt(found.figures, found.images)
    return found.value, [*data.notes, *([doubt] if doubt else [])]


def _worse(pruning: Pruning, cut: float | None, tuned: float | None) -> str | None:
    """What is wrong where the network was better, by more than chance, before it was fine-tuned."""
    task, recipe = pruning.task, pruning.recipe
    if cut is None or tuned is None or task.fitness(cut) - task.fitness(tuned) <= WORSE * abs(cut):
        return None
    features = ", or without the teacher's features (hint_weight 0)" if pruning.taught and recipe.hint_weight else ""
    return (
        f"fine-tuning has made the network worse: validation {task.metric} {task.told(cut)} after the cut, "
        f"{task.told(tuned)} now. More epochs or another learning rate ({recipe.lr:g}) may help{features}"
    )


def _measure(pruning: Pruning, tuned: nn.Module) -> dict[str, Any]:
    """The only place where the test set is read."""
    seconds: dict[str, float] = {}
    data, task, memory = pruning.data, pruning.task, pruning.recipe.train_memory_mb
    if len(data.test):
        pruning.say(f"Measuring both networks on {len(data.test):,} test images ...")
    with clock(seconds, "evaluate"):
        base = measured_on(pruning.base, data.test, task, memory)
        value = pruning.value(tuned)
        pruned = measured_on(tuned, data.test, task, memory)
    return {
        "base_test": base.figures, "pruned_val": value, "pruned_test": pruned.figures, "seconds": seconds,
        "answers": answers(base=base, pruned=pruned),
    }  # fmt: skip


def _summary(
    pruning: Pruning, method: Method, found: Found, final: Mapping[str, Any], warnings: Sequence[str]
) -> dict[str, Any]:
    cuts, plan, graph, task = found.cuts, found.plan, pruning.graph, pruning.task
    for done in (*cuts, final):
        for name, value in done["seconds"].items():
            pruning.seconds[name] = pruning.seconds.get(name, 0.0) + value
    full, cost, last, left = graph.cost(), graph.cost(plan), cuts[-1], graph.macs_by_layer(plan)
    seconds = {name: round(value, 2) for name, value in pruning.seconds.items()}
    data, val = pruning.data, f"val_{task.metric}"
    return {
        "verb": "prune",
        **measured_task(task),
        "method": pruning.name,
        "model": pruning.source or type(pruning.base).__name__,
        "data": data.name,
        "inputs": graph.inputs.spec(),
        "budget": pruning.budget.limits if method.budgeted else None,
        "seed": pruning.recipe.seed,
        "base": {**tested(final["base_test"], task), val: final["base_val"], "macs": full.macs, "params": full.params},
        "pruned": {
            **tested(final["pruned_test"], task), val: final["pruned_val"], "macs": cost.macs, "params": cost.params
        },
        "after_cut": {val: last["value"]},
        "answers": final["answers"],
        "check": {
            "max_error": max(done["max_error"] for done in cuts),
            "tolerance": last["tolerance"],
            "approximate": sorted({where for done in cuts for where in done["approximate"]}),
            "stale": sorted({name for done in cuts for name in done["stale"]}),
        },
        "steps": [{"macs": d["macs"], "params": d["params"], val: d["value"]} for d in cuts],
        "seconds": {**seconds, "total": round(sum(pruning.seconds.values()), 2)},
        "widths": {
            g.name: [g.width, int(w)] for g, w in zip(graph.groups, graph.widths(plan), strict=True) if not g.frozen
        },
        "layers": {name: [macs, left[name]] for name, macs in graph.macs_by_layer().items()},
        "frozen": {g.name: g.why for g in graph.groups if g.frozen},
        "images_trained": {**pruning.trained, "total": sum(pruning.trained.values())},
        "machine": machine(data.device),
        "settings": settings(pruning, method),
        "data_description": {**data.description, **data.identity, "data": data.name},
        "note": plan.note,
        "warnings": list(warnings),
        **found.report,
    }  # fmt: skip
