"""`sentei.prune`: from a trained network to a smaller, checked and fine-tuned one."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from sentei.errors import ConfigError
from sentei.methods.common.method import Method
from sentei.methods.common.pruning import DEFAULT_CONSTRAINTS, FINE_TUNE, PruneResult, Pruning, Say
from sentei.methods.registry import method_of
from sentei.plan import Budget, Constraints
from sentei.runs import Run
from sentei.surgery.history import as_dense
from sentei.data import Data, load_data
from sentei.train import Recipe


def prune(
    model: nn.Module,
    data: Data | str,
    *,
    method: str | Method = "l1",
    budget: Budget | None = None,
    run_dir: str | Path | None = None,
    recipe: Recipe = FINE_TUNE,
    constraints: Constraints = DEFAULT_CONSTRAINTS,
    distill: bool = False,
    images: int = 2048,
    seed: int | None = None,
    source: str | None = None,
    command: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    say: Say | None = None,
    progress: bool = False,
    **options: Any,
) -> PruneResult:
    """Prune a trained classifier to a budget, prove the cut, fine-tune, and save.

    >>> result = sentei.prune(model, "digits", method="taylor", budget=Budget(macs=0.5), steps=3, run_dir="runs/x")
    >>> result.summary["pruned"]["accuracy"]

    The model is left as it is. With a `run_dir` the result is saved there, and a call that was killed goes on where
    it stopped when it is repeated with the same arguments: the result is the same to the bit.

    Args:
        data: a `Data`, or a reference for `load_data`.
        method: a name in `METHODS`, or a method with settings of its own, such as `OneShot("taylor", steps=3)`.
        budget: half the MACs if nothing is given; a method that decides the size itself takes none.
        recipe: the final fine-tuning; its seed decides everything random unless `seed` is given.
        distill: fine-tune with the original network as a teacher (`recipe.distill_weight`, `recipe.temperature`).
        images: training images that recalibrate BatchNorm, and from which scores are computed.
        source: the reference of the dense model, to be noted in the files.
        overwrite: replace a run in `run_dir`.
        say: called with one line for each thing done. progress: show bars while training.
        options: settings of the method, such as `steps=3`; each method's class lists them.

    Raises ConfigError for settings out of range and for a `run_dir` that is taken, BudgetError for a budget that
    cannot be met, SurgeryError if a cut is not exact.
    """
    name, chosen = method_of(method, options)
    if budget is not None and not chosen.budgeted:
        raise ConfigError(f"with these settings {name} takes no budget, its own settings decide the size; got {budget}")
    for used in chosen.reads if run_dir is not None else ():
        if Path(used).resolve() == Path(run_dir or "").resolve():
            raise ConfigError(f"{used} is used by this run and cannot be its run directory too; choose another")
    budget = budget or Budget(macs=0.5 if chosen.budgeted else 1.0)
    recipe = recipe if seed is None else replace(recipe, seed=seed)
    data = load_data(data) if isinstance(data, str) else data
    base = as_dense(copy.deepcopy(model).to(data.device).eval())
    pruning = Pruning(
        name, base, data, budget, constraints, recipe, distill, images, Run(None), source,
        say or _silent, progress,
    )  # fmt: skip
    with Run.open(run_dir, pruning.identity(chosen), command, overwrite) as pruning.run:
        return pruning.result(chosen)


def _silent(line: str) -> None:
    pass
