"""The baselines by name, and everything that decides how one of them runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from sentei.errors import ConfigError
from sentei.plan import Budget, Constraints
from sentei.train import Recipe

Scope = Literal["global", "local"]


@dataclass(frozen=True)
class Method:
    """A baseline: a criterion, and whether it ranks units over the whole network or within each group."""

    criterion: str
    scope: Scope
    about: str


METHODS: dict[str, Method] = {
    "uniform": Method("l1", "local", "the same share of every group; units with small weights go"),
    "random": Method("random", "local", "the same share of every group; random units go: the control"),
    "l1": Method("l1", "global", "the smallest absolute weights of the whole network"),
    "l2": Method("l2", "global", "the smallest Euclidean norms of the whole network"),
    "bn_scale": Method("bn_scale", "global", "the smallest BatchNorm scales of the whole network"),
    "fpgm": Method("fpgm", "local", "the filters nearest to all others of their group"),
    "taylor": Method("taylor", "global", "the smallest estimated change of the loss, from data"),
}
"""Criteria that are comparable between groups rank globally; distances between filters (fpgm) are not."""

FINE_TUNE = Recipe(epochs=10, lr=0.02)
DEFAULT_CONSTRAINTS = Constraints(max_ratio=0.9)
"""No group loses more than nine tenths of its units, so that a global ranking cannot close a layer."""


@dataclass(frozen=True)
class Settings:
    """Everything that decides the result, apart from model and data."""

    method: str
    budget: Budget
    scope: Scope
    constraints: Constraints
    recipe: Recipe
    steps: int = 1
    step_epochs: int = 1
    distill: bool = False
    images: int = 2048

    def __post_init__(self) -> None:
        if self.scope not in ("global", "local"):
            raise ConfigError(f"scope is {self.scope!r}; expected 'global' or 'local'")
        for name, least in (("steps", 1), ("step_epochs", 0), ("images", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected {least} or more")

    def to_dict(self) -> dict[str, Any]:
        given = self.constraints
        ratio = dict(given.max_ratio) if isinstance(given.max_ratio, Mapping) else given.max_ratio
        return {
            "method": self.method,
            "budget": self.budget.limits,
            "scope": self.scope,
            "steps": self.steps,
            "step_epochs": self.step_epochs,
            "distill": self.distill,
            "images": self.images,
            "constraints": {**asdict(given), "max_ratio": ratio, "keep": list(given.keep)},
            "recipe": self.recipe.to_dict(),
        }
