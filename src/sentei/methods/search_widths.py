"""`sentei.search_widths`: search the widths of a network with a measure of your own."""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from sentei.distributed import decided
from sentei.errors import ConfigError, SearchError
from sentei.graph import ChannelGraph
from sentei.methods.common.genes import Genes
from sentei.methods.common.method import deciding
from sentei.methods.common.pruning import DEFAULT_CONSTRAINTS, Say, silent
from sentei.methods.common.searching import WidthSearch
from sentei.methods.common.starts import starting_points
from sentei.methods.registry import METHODS, method_of
from sentei.plan import Budget, Constraints, Plan, criterion
from sentei.runs import Run
from sentei.search import Inheritance
from sentei.search.inherit import Inherit
from sentei.search.jobs import Where
from sentei.surgery.cut import cut
from sentei.tasks.task import shown
from sentei.threads import computed_on
from sentei.train.checkpoint import digest
from sentei.train.passes import device_of

Evaluate = Callable[[nn.Module], Any]
OWN = ("evaluations", "genes", "inherit", "warm", "pending", "executor", "processes", "worker_cpus", "worker_gpus")
"""Settings of every width search that have a meaning here; the others are about data and recipes."""
PAPER = ("paper", "alpha")


def search_widths(
    model: nn.Module,
    graph: ChannelGraph,
    budget: Budget,
    evaluate: Evaluate,
    *,
    method: str = "abc",
    evaluations: int = 200,
    constraints: Constraints = DEFAULT_CONSTRAINTS,
    genes: Genes = "all",
    inherit: Inherit = "l1",
    warm: bool = True,
    seed: int = 0,
    run_dir: str | Path | None = None,
    overwrite: bool = False,
    executor: Where = "here",
    processes: int | None = None,
    pending: int | None = None,
    lower_is_better: bool = False,
    say: Say | None = None,
    progress: bool = False,
    **options: Any,
) -> Plan:
    """The best widths within a budget by a measure of your own: the plan to cut the model with.

    >>> def accuracy(small):                   # a cut network with inherited weights; train or recalibrate it first,
    ...     return correct(small, val_loader)  # if you like: it is thrown away afterwards
    >>> plan = sentei.search_widths(model, graph, sentei.Budget(macs=0.5), accuracy, evaluations=100, run_dir="runs/w")
    >>> small = sentei.cut(model, graph, plan)

    An artificial bee colony (Lin et al. 2020, arXiv 2001.08565) proposes structures, all of them on the budget;
    "evolution" and "random_search" are there to compare with. `evaluate` gets each as a network of its own, in the
    mode (training or evaluation) and on the device of `model`, which is left as it is. It returns a finite number, or
    a tensor of one element; where it raises, or returns anything else, that structure has failed and the search goes
    on. torch's random numbers are seeded for each structure, so that the same structure gets the same value anywhere;
    other generators are yours to seed. Measure on validation data, never on test data.

    With a `run_dir` every value is written to `journal.jsonl` there before it is used. The same call goes on after a
    kill and ends with the same plan; after the end it returns it at once. A folder of other settings, another model or
    another function is refused. A function is told by its qualified name alone: *one whose code or data have changed
    is not noticed*, so give it another run directory.

    Args:
        budget: upper limits, as for `sentei.uniform`.
        evaluate: called with the cut network. In other processes it is unpickled by cloudpickle: functions and lambdas
            of a script work, with the data that they refer to; what they import must be importable there.
        method: "abc", "evolution" or "random_search".
        evaluations: structures to evaluate at most.
        genes: groups whose width is searched, "all" or "inner" (inside branches; residual streams stay whole).
        inherit: units that a structure takes over, those of the largest weights ("l1") or BatchNorm scales
            ("bn_scale"), or "random" ones.
        warm: begin with uniform widths and those of a global ranking by l1 beside random ones (`sentei.prune` knows the
            loss, and adds a ranking by taylor).
        seed: decides everything random.
        overwrite: replace what is in `run_dir`.
        executor: where structures are evaluated, "here", "process" (worker processes) or "ray". The plan does not
            depend on it, as long as `evaluate` does not. processes: how many workers; one a processor unless given.
        pending: propose a structure as soon as one returns, with so many out at any time, instead of batch by batch: no
            worker waits for another. The plan then depends on the order of answers, which a `run_dir` keeps.
        lower_is_better: of what `evaluate` returns, a loss for instance.
        say: called with one line for each thing done, `print` for instance. progress: show a bar.
        options: settings of the method: sources, guide, ... of `Abc`, population, ... of `EvolutionSearch`; and what a
            worker on a Ray cluster gets, worker_cpus and worker_gpus.

    Raises ConfigError for settings out of range, a `run_dir` that is taken and a network without groups to search,
    BudgetError for a budget out of reach, PlanError if graph and model do not fit, SearchError if every structure
    fails, naming the first reason.
    """
    how = _method(method, {
        "evaluations": evaluations, "genes": genes, "inherit": inherit, "warm": warm, "executor": executor,
        "processes": processes, "pending": pending,
    }, options)  # fmt: skip
    if not callable(evaluate):
        raise ConfigError(f"evaluate is a {type(evaluate).__name__}; expected a function of the cut network")
    graph.check_fits(model)
    evaluator = Own(model, graph, evaluate, inherit, seed, lower_is_better)
    space = how.space(graph, budget, constraints)
    say = say or silent
    with Run.open(run_dir, _identity(evaluator, method, how, budget, constraints), None, overwrite) as run:
        say(f"Searching {len(space)} genes ({space.size:.1e} structures before the budget) by {name_of(evaluate)} ...")
        starts = starting_points(space, graph, budget, constraints, [criterion("l1")(model, graph)]) if warm else []
        found = decided(lambda: how.search(space, evaluator, seed, run.journal, evaluator.told, progress, starts))
    failed = f", {found.report['failed']} failed" if found.report["failed"] else ""
    say(f"Best of {found.report['evaluations']} structures{failed}: {evaluator.told(found.fitness)}")
    how.tell_exhausted(found, graph, constraints, say)
    return how.plan(graph, budget, evaluator.inheritance, found.widths)


class Own:
    """Widths in, the value of a function of the cut network out."""

    def __init__(
        self, model: nn.Module, graph: ChannelGraph, evaluate: Evaluate, inherit: Inherit, seed: int, lower: bool
    ) -> None:
        self.settings = {
            "fitness": "function", "function": name_of(evaluate), "inherit": inherit, "seed": seed,
            "lower_is_better": lower,
        }  # fmt: skip
        self.model, self.graph, self.evaluate, self.seed, self.sign = model, graph, evaluate, seed, -1 if lower else 1
        self.inheritance = Inheritance(model, graph, inherit, seed)

    def __call__(self, widths: np.ndarray, share: float = 1.0) -> dict[str, float]:
        small = cut(self.model, self.graph, self.inheritance.plan(widths))
        device = device_of(self.model)
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(self._seed(widths))
            value = _plain(self.evaluate(small))
        return {"fitness": self.sign * value}

    def told(self, fitness: float) -> str:
        return shown(self.sign * fitness, percent=False)

    def _seed(self, widths: np.ndarray) -> int:
        """Of this structure alone, whatever was evaluated before it."""
        drawn = hashlib.sha256(f"{self.seed} {widths.tolist()}".encode()).digest()
        return int.from_bytes(drawn[:7], "little")


def name_of(evaluate: Any) -> str:
    """The qualified name of a function, of what a partial calls, or of the class of an object."""
    if isinstance(evaluate, functools.partial):
        return name_of(evaluate.func)
    return str(getattr(evaluate, "__qualname__", None) or type(evaluate).__qualname__)


def _plain(value: Any) -> float:
    """What `evaluate` returned, as a number; SearchError for anything that cannot be compared."""
    try:
        number = float(value.detach() if isinstance(value, torch.Tensor) else value)
    except (TypeError, ValueError, RuntimeError) as error:
        size = f" of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else ""
        kind = "None" if value is None else f"a {type(value).__name__}{size}"
        raise SearchError(f"evaluate returned {kind}; expected a number, or a tensor of one element") from error
    if not math.isfinite(number):
        raise SearchError(f"evaluate returned {number}; expected a finite number")
    return number


def _method(name: str, given: Mapping[str, Any], options: Mapping[str, Any]) -> WidthSearch:
    searches = {n: m for n, m in METHODS.items() if isinstance(m, WidthSearch)}
    if name not in searches:
        raise ConfigError(f"no width search {name!r}; there are {', '.join(searches)}")
    meaningless = {f.name for f in fields(WidthSearch)} - set(OWN) | set(PAPER)
    for option in options:
        if option in meaningless:
            raise ConfigError(
                f"{option} has no meaning here: the budget decides the size and evaluate measures; it belongs to "
                f"sentei.prune(..., method={name!r})"
            )
    _, method = method_of(name, {**given, **options})
    assert isinstance(method, WidthSearch)
    return method


def _identity(
    evaluator: Own, name: str, how: WidthSearch, budget: Budget, constraints: Constraints
) -> dict[str, Any]:
    """What makes a search this one and no other."""
    settings = deciding(how)
    known = {n: v for n, v in settings.items() if n in OWN or n not in {f.name for f in fields(WidthSearch)}}
    threads = {} if how.worker_threads is None else {"worker_threads": how.worker_threads}
    return {
        "verb": "search_widths",
        "base_sha256": digest(evaluator.model),
        "structure": evaluator.graph.structure.fingerprint,
        **evaluator.settings,
        "method": name,
        **{n: v for n, v in known.items() if n not in PAPER},
        "budget": budget.limits,
        "constraints": constraints.settings,
        **computed_on(device_of(evaluator.model)),
        **threads,
    }
