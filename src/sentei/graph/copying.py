"""Copies of a model in which some tensors and attributes are others: what trials run on, and what a cut returns."""

from __future__ import annotations

import copy
import functools
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from types import CellType, FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

from sentei.errors import SurgeryError
from sentei.graph.outputs import output_tensors
from sentei.graph.resize import Attribute, computed_by_hooks, modes_kept, set_attribute

EMPTY = frozenset((dict, OrderedDict, set, list))
PLAIN = frozenset((bool, int, float, complex, str, bytes, type(None)))


def rebuilt(model: nn.Module, tensors: Mapping[int, Tensor], attrs: Iterable[Attribute] = ()) -> nn.Module:
    """A deep copy with some tensors (by id) replaced before they are copied, and attributes set on the copies.

    What copy.deepcopy does to a module, without its detour for each of the many plain and empty attributes. Hooks and
    functions kept on modules are bound to the copy wherever they were bound to the model, also through a closure.
    """
    memo: dict[int, Any] = dict(tensors)
    plain = [m for m in model.modules() if _copies_plainly(m)]
    memo.update({id(m): type(m).__new__(type(m)) for m in plain})
    try:
        for module in plain:
            memo[id(module)].__dict__.update({k: _copied(v, memo) for k, v in vars(module).items()})
        new: nn.Module = copy.deepcopy(model, memo)
    except Exception as error:
        raise SurgeryError(
            f"the model cannot be deep-copied, which a cut needs: {type(error).__name__}: {error}"
        ) from error
    for module, attr, value in attrs:
        set_attribute(memo[id(module)], attr, value)
    return new


def refreshed(model: nn.Module) -> nn.Module:
    """The model, after what its modules derive from their parameters was renewed: flat weights of recurrent layers, and
    weights that hooks compute."""
    with modes_kept(model), torch.no_grad():
        model.eval()
        for module in model.modules():
            if isinstance(module, nn.RNNBase):
                module._init_flat_weights()
            for _, hook in computed_by_hooks(module):
                hook(module, ())
    return model


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    kind = type(value)
    if kind in PLAIN:
        return value
    if kind is tuple and all(type(v) in PLAIN for v in value):
        return value
    if kind in EMPTY and not value:
        return kind()
    if id(value) in memo:
        return memo[id(value)]
    if kind in (dict, OrderedDict):
        entries = memo[id(value)] = kind()
        entries.update({k: _copied(v, memo) for k, v in value.items()})
        return entries
    if kind is list:
        items: list[Any] = []
        memo[id(value)] = items
        items.extend([_copied(v, memo) for v in value])
        return items
    if kind is FunctionType and value.__closure__:
        return _rebound(value, memo)
    for t in output_tensors(value):
        if not t.is_leaf and id(t) not in memo:  # deepcopy refuses it
            memo[id(t)] = t.detach().clone()
    return copy.deepcopy(value, memo)


def _rebound(function: FunctionType, memo: dict[int, Any]) -> FunctionType:
    """The same function, with what its closure holds of the model exchanged for what the copy has."""
    cells = function.__closure__ or ()
    contents = [c.cell_contents if _is_filled(c) else None for c in cells]
    if not any(id(x) in memo or isinstance(x, MethodType) and id(x.__self__) in memo for x in contents):
        return function
    made = [CellType(_copied(x, memo)) if _is_filled(c) else c for c, x in zip(cells, contents, strict=True)]
    new = FunctionType(function.__code__, function.__globals__, function.__name__, function.__defaults__, tuple(made))
    new.__kwdefaults__ = function.__kwdefaults__
    new.__dict__.update(function.__dict__)
    memo[id(function)] = new
    return new


def _is_filled(cell: CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _copies_plainly(module: nn.Module) -> bool:
    """Whether a module leaves copying to its attributes."""
    kind: Any = type(module)
    return _plain_class(kind)


@functools.cache
def _plain_class(kind: Any) -> bool:
    own = kind.__setstate__.__module__  # PyTorch's own only update old pickles, or note that a module is new
    hooks = ("__deepcopy__", "__reduce__", "__reduce_ex__", "__getstate__", "__new__")
    same = all(getattr(kind, n, None) is getattr(nn.Module, n, None) for n in hooks)
    return same and own.startswith(("torch.nn.", "torch._dynamo."))
