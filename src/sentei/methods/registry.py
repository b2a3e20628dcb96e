"""The methods by name."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from sentei.errors import ConfigError
from sentei.methods.abc import Abc, EvolutionSearch, RandomWidths
from sentei.methods.common.method import Method
from sentei.methods.ista import Ista
from sentei.methods.oneshot import OneShot
from sentei.methods.stagewise import Stagewise
from sentei.plan import Budget

METHODS: dict[str, Method] = {
    "uniform": OneShot("l1", "local"),
    "random": OneShot("random", "local"),
    "l1": OneShot("l1"),
    "l2": OneShot("l2"),
    "bn_scale": OneShot("bn_scale"),
    "fpgm": OneShot("fpgm", "local"),
    "taylor": OneShot("taylor"),
    "abc": Abc(),
    "evolution": EvolutionSearch(),
    "random_search": RandomWidths(),
    "ista": Ista(),
    "stagewise": Stagewise(),
}
"""Criteria that are comparable between groups rank globally; distances between filters (fpgm) are not."""


def method_of(given: str | Method, options: Mapping[str, Any]) -> tuple[str, Method]:
    """Name and settings of a method, with some settings changed.

    >>> method_of("l1", {"steps": 3})
    ('l1', OneShot(criterion='l1', scope='global', steps=3, step_epochs=1))

    ConfigError for a name or an option that does not exist, with the nearest that does.
    """
    name, method = (given, named(given)) if isinstance(given, str) else (name_of(given), given)
    known = [f.name for f in fields(method)]  # type: ignore[arg-type]
    limits = [f.name for f in fields(Budget)]
    for option in options:
        if option not in known:
            if option in limits:
                told = f"sentei.Budget({option}={options[option]!r})"
                raise ConfigError(f"{option} is a limit of the budget, no option of {name}: give budget={told}")
            if owners := [n for n, m in METHODS.items() if option in {f.name for f in fields(m)}]:  # type: ignore[arg-type]
                raise ConfigError(f"method {name} has no option {option!r}; it belongs to {', '.join(owners)}")
            near = difflib.get_close_matches(option, known, n=1, cutoff=0)
            raise ConfigError(f"method {name} has no option {option!r}; did you mean {near[0]!r}? It has {known}")
    return name, replace(method, **options).resolved()  # type: ignore[type-var]


def named(name: str) -> Method:
    """The method of that name as it comes; ConfigError with the nearest name if there is none."""
    if name not in METHODS:
        near = difflib.get_close_matches(name, METHODS, n=1, cutoff=0)[0]
        raise ConfigError(f"no method {name!r}; did you mean {near!r}? There are {', '.join(METHODS)}")
    return METHODS[name]


def name_of(method: Method) -> str:
    """The name under which a method is known: its own entry, failing that one of its kind, or its class."""
    same = [name for name, m in METHODS.items() if m == method]
    kind = [name for name, m in METHODS.items() if type(m) is type(method)]
    return (same + kind if len(kind) == 1 else same or [type(method).__name__.lower()])[0]
