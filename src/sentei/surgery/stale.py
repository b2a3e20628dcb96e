"""Tells when an optimizer goes on with the parameters of the network before a cut: its steps then change nothing.

After the first cut every step of any optimizer is looked at. That ends with the first gradient it finds, for optimizers
that train something. One that trains nothing at all is under suspicion if it holds parameters of a network that was
cut, and if the network that came out has gradients. If the weights of that one are still the same at the next such
step, and if no other optimizer holds them, nobody is training it. Nothing is kept alive: all references are weak.
"""

from __future__ import annotations

import gc
import itertools
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

from sentei.surgery.optimizer import parameters_of

LOOKS = 8
"""Steps without any gradient after which an optimizer is looked at no more."""


@dataclass(frozen=True, eq=False)
class _Cut:
    dense: tuple[ref[Tensor], ...]
    """The parameters before the cut. The network itself is often gone: `model = cut(model, ...)`."""
    small: ref[nn.Module]

    def waiting(self, held: set[int]) -> tuple[int, ...] | None:
        """Versions of the cut network's weights that have gradients, if these parameters are of the dense one."""
        small = self.small()
        if small is None or not any(id(r()) in held for r in self.dense):
            return None
        params = list(small.parameters())
        if any(id(p) in held for p in params):
            return None
        return tuple(p._version for p in params if p.grad is not None) or None


@dataclass
class _Suspect:
    looks: int = 0
    waiting: dict[int, tuple[int, ...]] | None = None


_cuts: dict[int, _Cut] = {}
_numbers = itertools.count()
_suspects: WeakKeyDictionary[Optimizer, _Suspect] = WeakKeyDictionary()
_hooks: list[Any] = []


def remember_cut(dense: Iterable[Tensor], small: nn.Module) -> None:
    """Note that a network came out of one with these parameters and buffers, for as long as it lives."""
    if not _hooks:
        _hooks.append(register_optimizer_step_post_hook(_after_step))
    number, forget = next(_numbers), _cuts.pop
    params = [t for t in dense if isinstance(t, nn.Parameter)]
    _cuts[number] = _Cut(tuple(map(ref, params)), ref(small, lambda _: forget(number, None)))


def _after_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    if torch.compiler.is_compiling() or not _cuts:
        return
    if any(p.grad is not None for p in parameters_of(optimizer)):
        return
    suspect = _suspects.setdefault(optimizer, _Suspect())
    if suspect.looks >= LOOKS:
        return
    held = {id(p) for p in parameters_of(optimizer)}
    found = {n: versions for n, c in list(_cuts.items()) if (versions := c.waiting(held))}
    unchanged = [n for n, versions in found.items() if (suspect.waiting or {}).get(n) == versions]
    suspect.looks, suspect.waiting = suspect.looks + 1, found
    if unchanged:
        suspect.looks = LOOKS
        if not any(_is_held(_cuts[n].small()) for n in unchanged if n in _cuts):
            _tell(optimizer)


def _is_held(small: nn.Module | None) -> bool:
    """Whether any optimizer of this process holds parameters of the network."""
    params = set() if small is None else {id(p) for p in small.parameters()}
    optimizers = [o for o in gc.get_objects() if issubclass(type(o), Optimizer) and "param_groups" in vars(o)]
    return any(id(p) in params for o in optimizers for p in parameters_of(o))


def _tell(optimizer: Optimizer) -> None:
    warnings.warn(
        f"this {type(optimizer).__name__} still holds the parameters of the network before the cut: its steps change "
        "nothing, while the cut network has gradients and no optimizer. Go on with "
        "sentei.carry_optimizer(optimizer, model, small, graph, plan), or with an optimizer over small.parameters()",
        stacklevel=4,
    )
