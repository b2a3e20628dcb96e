"""Which runs a comparison consists of; everything that can be refused is refused here, before any work."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from torch import nn

from sentei.comparison.finished import counts_images
from sentei.comparison.results import REFERENCE, title
from sentei.data import Data
from sentei.errors import ConfigError
from sentei.methods import METHODS
from sentei.methods.common.method import Method, Workers, deciding
from sentei.methods.common.pruning import Pruning
from sentei.methods.common.summary import measured_task
from sentei.methods.prune import identity, prepared
from sentei.methods.registry import name_of, named
from sentei.plan import Budget, uniform

Contender = tuple[str | Method, Mapping[str, Any]]
"""A method and its settings."""


@dataclass(frozen=True)
class Planned:
    """One run that is to be made."""

    label: str
    method: str | Method
    options: Mapping[str, Any]
    budget: Budget
    seed: int

    @property
    def folder(self) -> str:
        limits = "-".join(f"{name.removeprefix('macs')}{value:g}" for name, value in self.budget.limits.items())
        return f"{self.label}-{limits}-s{self.seed}"

    @property
    def told(self) -> str:
        return f"{self.label} at {title(self.budget.limits)}, seed {self.seed}"

    def to_json(self) -> dict[str, Any]:
        """As `compare.json` has it before it is made."""
        asked = {"method": self.label, "budget": self.budget.limits, "seed": self.seed}
        return {"folder": self.folder, **asked, "state": "waiting", "error": None, "result": None}


@dataclass(frozen=True)
class Ground:
    """Network, data and the settings that all runs share."""

    model: nn.Module
    data: Data
    given: Mapping[str, Any]
    """Keywords of `prune`."""

    @classmethod
    def of(cls, model: nn.Module, data: Data, given: Mapping[str, Any]) -> Ground:
        return cls(copy.deepcopy(model).to(data.device).eval(), data, given)

    def prepared(self, one: Planned) -> tuple[Pruning, Method]:
        """A run as `prune` will see it; ConfigError for what is wrong with it."""
        pruning, method = prepared(
            self.model, self.data, method=one.method, budget=one.budget, seed=one.seed, **self.given, **one.options
        )
        if method.reads:
            raise ConfigError(
                f"{one.label} uses {', '.join(method.reads)}, and what was trained there would not count here: leave "
                "that setting out of a comparison at equal cost"
            )
        return pruning, method

    def reference(self) -> Pruning:
        """What all runs share, as `prune` will see it."""
        return prepared(self.model, self.data, method=REFERENCE, **self.given)[0]

    def identity(self, one: Planned) -> dict[str, Any]:
        """What the run's config.yaml must say of it."""
        found: dict[str, Any] = json.loads(json.dumps(identity(*self.prepared(one))))
        return found

    def plan(self, runs: Sequence[Planned]) -> dict[str, Any]:
        """The plan of `compare.json`."""
        ready = {one.label: self.prepared(one) for one in runs if one.seed == runs[0].seed}
        pruning, method = ready[REFERENCE]
        budgets = list(dict.fromkeys(one.budget for one in runs))
        graph = pruning.trace()
        for budget in (b for b in budgets if not b.timed):
            uniform(graph, budget, constraints=pruning.constraints)
        task, data, recipe = pruning.task, self.data, pruning.recipe
        if not len(data.val) and not len(data.test):
            raise ConfigError(f"{data.name} has neither test nor validation images, so there is nothing to compare by")
        metric = measured_task(task)
        counted = counts_images(metric)
        found: dict[str, Any] = {
            "model": pruning.source or type(self.model).__name__,
            "data": data.name,
            **metric,
            "dense": None,
            "total_images": pruning.total_images,
            "epoch_images": data.epoch_images(recipe.batch_size, recipe.limit),
            "batch_images": data.batch_images(recipe.batch_size),
            "counted": {name: (counted and len(getattr(data, name))) or None for name in ("test", "val")},
            "methods": {label: {"method": p.name, "settings": deciding(m)} for label, (p, m) in ready.items()},
            "budgets": [budget.limits for budget in budgets],
            "seeds": list(dict.fromkeys(one.seed for one in runs)),
            "shared": _shared(pruning, method),
        }
        plain: dict[str, Any] = json.loads(json.dumps(found))
        return plain


def _shared(pruning: Pruning, method: Method) -> dict[str, Any]:
    """What all runs have in common: their identity without method, budget, seed and, as it goes with the budget,
    timing."""
    own = {"method", "budget", "timing", *deciding(method)}
    found = {name: value for name, value in identity(pruning, method).items() if name not in own}
    return {**found, "recipe": {name: value for name, value in found["recipe"].items() if name != "seed"}}


def contenders(
    methods: Sequence[str | Method] | Mapping[str, str | Method], settings: Mapping[str, Mapping[str, Any]]
) -> tuple[dict[str, Contender], bool]:
    """Methods with their settings by label, uniform first, and whether it had to be added.

    >>> contenders(["taylor"], {"taylor": {"steps": 2}})
    ({'uniform': ('uniform', {}), 'taylor': ('taylor', {'steps': 2})}, True)
    """
    given = methods.items() if isinstance(methods, Mapping) else [
        (method if isinstance(method, str) else name_of(method), method) for method in methods
    ]  # fmt: skip
    found: dict[str, Contender] = {}
    for label, method in given:
        if not re.fullmatch(r"[A-Za-z0-9][\w.+]*", label):
            raise ConfigError(f"{label!r} is no label for a method; expected letters, digits, '_', '.' and '+'")
        if found.get(label, (method,))[0] != method:
            raise ConfigError(f"two methods are called {label}; give them labels, methods={{'one': ..., 'two': ...}}")
        found[label] = (method, settings.get(label, {}))
    if unknown := sorted(set(settings) - {*found, REFERENCE}):
        raise ConfigError(f"there are settings for {', '.join(unknown)}, the methods are {', '.join(found)}")
    added = REFERENCE not in found
    reference, how = found.pop(REFERENCE, (REFERENCE, settings.get(REFERENCE, {})))
    if reference not in (REFERENCE, METHODS[REFERENCE]):
        raise ConfigError(f"{REFERENCE} is what all are held against and no label for {reference}; choose another one")
    return {REFERENCE: (REFERENCE, how), **found}, added


def in_workers(contenders: Mapping[str, Contender], workers: Workers) -> dict[str, Contender]:
    """The same methods, those that measure structures with these workers unless their settings name others.

    >>> in_workers({"l1": ("l1", {}), "abc": ("abc", {})}, Workers(executor="process"))
    {'l1': ('l1', {}), 'abc': ('abc', {'executor': 'process'})}

    ConfigError where none of them measures any.
    """
    found: dict[str, Contender] = {}
    searching = False
    names = [f.name for f in fields(Workers)]
    for label, (method, options) in contenders.items():
        kind = named(method) if isinstance(method, str) else method
        known = [f.name for f in fields(kind)]  # type: ignore[arg-type]
        own = any(name in options or getattr(kind, name, None) not in (None, "here") for name in names)
        found[label] = (method, options if own else {**workers.of(known), **options})
        searching |= "executor" in known
    if workers.executor != "here" and not searching:
        raise ConfigError(
            f"executor is {workers.executor!r}, but none of {', '.join(contenders)} measures structures; leave it out"
        )
    return found


def seeds_of(given: int | Sequence[int], first: int) -> list[int]:
    """So many seeds from the first on, or those that are given.

    >>> seeds_of(3, 0), seeds_of([7, 8], 0)
    ([0, 1, 2], [7, 8])
    """
    if not isinstance(given, int):
        return list(dict.fromkeys(given))
    if given < 1:
        raise ConfigError(f"seeds is {given}; expected 1 or more")
    return list(range(first, first + given))
