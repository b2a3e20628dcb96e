"""The optimizers of a recipe, or of a user's factory, with learning rates that follow the recipe's schedule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from sentei.errors import ConfigError, TrainError
from sentei.train.recipe import Recipe

Factory = Callable[[list[dict[str, Any]]], Optimizer]
"""Makes an optimizer of parameter groups (`params`, `weight_decay`), as torch's own classes do."""


def factory_name(factory: Factory | None) -> str | None:
    """What tells a factory from another in a run's config."""
    return None if factory is None else getattr(factory, "__qualname__", None) or repr(factory)


class Optimizers:
    """One optimizer for what is trained, another for parameters that take plain gradient steps.

    Learning rates that a factory sets keep their proportion to the recipe's.
    """

    def __init__(self, model: nn.Module, recipe: Recipe, plain: Sequence[str] = (), factory: Factory | None = None):
        trained, still = parameter_groups(model, recipe.weight_decay, plain)
        self.main = (factory or _factory(recipe))(trained)
        if not isinstance(self.main, Optimizer):
            raise ConfigError(
                f"optimizer={factory_name(factory)} returned a {type(self.main).__name__}; expected a torch Optimizer "
                "made of the parameter groups that it is given"
            )
        every = [self.main]
        if still:
            every.append(torch.optim.SGD([{"params": still, "weight_decay": 0.0}], lr=recipe.lr))
        self.every = every
        self.shares = [g["lr"] / recipe.lr if recipe.lr else 1.0 for g in self.groups]

    @property
    def groups(self) -> list[dict[str, Any]]:
        """Those of now: loading a state puts others in their place."""
        return [group for optimizer in self.every for group in optimizer.param_groups]

    def zero_grad(self) -> None:
        for optimizer in self.every:
            optimizer.zero_grad(set_to_none=True)

    def step(self, lr: float) -> None:
        for group, share in zip(self.groups, self.shares, strict=True):
            group["lr"] = lr * share
        for optimizer in self.every:
            optimizer.step()


def _factory(recipe: Recipe) -> Factory:
    if recipe.optimizer == "adamw":
        return lambda groups: torch.optim.AdamW(groups, lr=recipe.lr)
    return lambda groups: torch.optim.SGD(
        groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.nesterov
    )


def parameter_groups(
    model: nn.Module, weight_decay: float, plain: Sequence[str] = ()
) -> tuple[list[dict[str, Any]], list[nn.Parameter]]:
    """Weights with decay; norms, biases and other vectors without; and the parameters named `plain`."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if not named:
        raise TrainError("The model has no parameter that requires a gradient.")
    trained = [p for name, p in named if name not in plain]
    groups = [([p for p in trained if p.ndim > 1], weight_decay), ([p for p in trained if p.ndim <= 1], 0.0)]
    found: list[dict[str, Any]] = [{"params": params, "weight_decay": decay} for params, decay in groups if params]
    return found, [p for name, p in named if name in plain]
