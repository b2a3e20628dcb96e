"""The optimizer of a network that was cut: its momenta and moments, without those of what is gone."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.optim import Optimizer

from sentei.errors import ConfigError, PlanError, TrainError
from sentei.graph import ChannelGraph
from sentei.graph.graph import HasKeep
from sentei.graph.outputs import output_tensors
from sentei.graph.resize import Cuts, cut_shape, named_tensors, select
from sentei.surgery.belongs import unwrapped
from sentei.surgery.history import history, kept_digest
from sentei.surgery.tensors import laid_out

Heirs = Mapping[int, tuple[str, nn.Parameter]]
"""By the id of a parameter before the cut: its name, and the parameter after the cut."""


def carry_optimizer(
    optimizer: Optimizer, model: nn.Module, small: nn.Module, graph: ChannelGraph, plan: HasKeep
) -> Optimizer:
    """The optimizer that goes on training the cut network where `optimizer` has stopped with the dense one.

    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)      # ... train model ...
    >>> small = sentei.cut(model, graph, plan)
    >>> optimizer = sentei.carry_optimizer(optimizer, model, small, graph, plan)   # ... go on with small ...

    Class, param groups, their options and the order of everything are those of `optimizer`, which stays as it is. What
    it keeps for a parameter in the shape of that parameter (momentum, exp_avg, square_avg, ...) is cut as the parameter
    is; numbers such as the count of steps are copied. Call it right after the cut, before layers of `small` are
    replaced; `small` may have moved to another device or precision. One step then does to `small` what it would do to
    the full network in which the removed units are zero and get no gradient. Gradients and hooks are not carried, nor
    what a class keeps outside of its state and groups. Magnitudes of weight norms, which a cut scales, keep the
    momenta that they had.

    A learning rate scheduler belongs to one optimizer, so build it anew, and give it the state of the old one:

    >>> state = optimizer.state_dict()                    # of the carried one: building a scheduler sets its rates
    >>> scheduler = CosineAnnealingLR(optimizer, T_max=90)
    >>> scheduler.load_state_dict(old_scheduler.state_dict())
    >>> optimizer.load_state_dict(state)

    Warns where state has another shape than its parameter (Adafactor, Shampoo, LBFGS): such parameters begin without
    any. Raises PlanError if the optimizer holds a parameter that is not the model's, or if model, `small`, graph and
    plan do not fit each other, and ConfigError for an optimizer that cannot be built from its groups and defaults.
    """
    if not isinstance(optimizer, Optimizer):
        raise ConfigError(
            f"expected a torch.optim.Optimizer, got {type(optimizer).__name__}; give the one that it wraps"
        )
    model, small = unwrapped(model), unwrapped(small)
    graph.check_fits(model)
    _check_history(small, graph, graph.bind(plan.keep))
    cuts = graph.cuts(plan)
    heirs = _heirs(optimizer, model, small, cuts)
    new = _built_like(optimizer, heirs)
    _carry_state(optimizer, new, heirs, cuts)
    return new


def check_optimizer(optimizer: Optimizer | Iterable[Optimizer], network: nn.Module) -> None:
    """Make sure that an optimizer, or several together, trains a network.

    >>> small = sentei.cut(model, graph, plan)
    >>> sentei.check_optimizer(optimizer, small)    # TrainError: it holds the parameters of model

    Raises TrainError if it holds none of the parameters that require gradients, and warns, naming the first, if it
    holds only some of them. Parameters of other networks may be among its own.
    """
    optimizers = [optimizer] if isinstance(optimizer, Optimizer) else list(optimizer)
    held = {id(p) for one in optimizers for p in parameters_of(one)}
    trainable = {name: p for name, p in network.named_parameters() if p.requires_grad}
    left = [name for name, p in trainable.items() if id(p) not in held]
    what = " and ".join(type(one).__name__ for one in optimizers) or "no optimizer"
    if left and len(left) == len(trainable):
        raise TrainError(
            f"this optimizer ({what}) trains none of the {len(trainable)} parameters of the network: it was made for "
            "another one. After a cut, go on with sentei.carry_optimizer(optimizer, model, small, graph, plan), or "
            "build an optimizer over the parameters of the cut network"
        )
    if left:
        some = ", ".join(left[:3]) + (f" and {len(left) - 3} more" if len(left) > 3 else "")
        warnings.warn(
            f"this optimizer ({what}) does not train {len(left)} of the network's {len(trainable)} parameters: {some}",
            stacklevel=2,
        )


def parameters_of(optimizer: Optimizer) -> Iterator[Tensor]:
    """All parameters of an optimizer, group by group."""
    return (p for group in optimizer.param_groups for p in group["params"])


# -- which parameter becomes which


def _check_history(small: nn.Module, graph: ChannelGraph, keep: Mapping[str, np.ndarray]) -> None:
    last = history(small)[-1:]
    if last and last[0][0] == graph.structure.fingerprint and last[0][1] != kept_digest(graph.structure, keep):
        raise PlanError(
            "the small network was cut with a plan that keeps other units; give the plan that was given to `cut`"
        )


def _heirs(optimizer: Optimizer, model: nn.Module, small: nn.Module, cuts: Cuts) -> Heirs:
    names = {id(t): name for name, t in named_tensors(model).items()}
    after = named_tensors(small)
    own = {id(t) for t in after.values()}
    heirs: dict[int, tuple[str, nn.Parameter]] = {}
    for g, group in enumerate(optimizer.param_groups):
        for i, p in enumerate(group["params"]):
            if id(p) not in names:
                raise PlanError(_stranger(type(optimizer).__name__, group, g, i, id(p) in own))
            name = names[id(p)]
            heirs[id(p)] = name, _heir(name, p, after.get(name), cuts)
    return heirs


def _heir(name: str, old: Tensor, new: Tensor | None, cuts: Cuts) -> nn.Parameter:
    expected = cut_shape(old.shape, cuts.get(name, ()))
    if not isinstance(new, nn.Parameter) or list(new.shape) != expected:
        found = "absent" if new is None else f"of shape {_shown(new.shape)}"
        raise PlanError(
            f"parameter {name} is {found} in the small network, the plan leaves {_shown(expected)}: give what "
            "`cut(model, graph, plan)` returned, before layers of it are replaced or fused"
        )
    return new


def _stranger(kind: str, group: Mapping[str, Any], number: int, place: int, carried: bool) -> str:
    p, names = group["params"][place], group.get("param_names", ())
    name = f" {names[place]!r}" if place < len(names) else ""
    where = f"parameter {place}{name} of group {number} of this {kind} (shape {_shown(p.shape)})"
    if carried:
        return f"{where} is one of the small network's: this optimizer trains that already, go on with it"
    return (
        f"{where} is not a parameter of the model: give the network that the optimizer trains, not a copy. "
        "What is not a part of the network (a loss with parameters, say) needs an optimizer of its own"
    )


def _shown(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "scalar"


# -- the new optimizer


def _built_like(optimizer: Optimizer, heirs: Heirs) -> Optimizer:
    kind = type(optimizer)
    groups = []
    for group in optimizer.param_groups:
        options = copy.deepcopy({key: value for key, value in group.items() if key != "params"})
        groups.append({"params": [heirs[id(p)][1] for p in group["params"]], **options})
    defaults = copy.deepcopy(optimizer.defaults)
    accepted = _accepted(kind)
    make: Any = kind
    try:
        new: Optimizer = make(groups, **{key: value for key, value in defaults.items() if key in accepted})
    except Exception as error:
        raise ConfigError(
            f"cannot build another {kind.__name__} from its param groups and defaults: build one over the parameters "
            f"of the cut network yourself ({type(error).__name__}: {error})"
        ) from error
    new.defaults = defaults
    return new


def _accepted(kind: type) -> set[str]:
    """Names of the arguments of a class's constructor, through those that hand theirs on."""
    names: set[str] = set()
    for one in kind.__mro__:
        if "__init__" in vars(one):
            arguments = inspect.signature(vars(one)["__init__"]).parameters.values()
            names |= {a.name for a in arguments}
            if all(a.kind is not a.VAR_KEYWORD for a in arguments):
                break
    return names


def _carry_state(optimizer: Optimizer, new: Optimizer, heirs: Heirs, cuts: Cuts) -> None:
    state: Mapping[Any, Mapping[str, Any]] = optimizer.state
    # A matrix that belongs to one dimension of its parameter may have the parameter's shape where that is square: one
    # that tells otherwise speaks for all of its name.
    foreign = {key for p, own in state.items() if id(p) in heirs for key, v in own.items() if not _follows(v, p)}
    afresh = 0
    for group in optimizer.param_groups:
        on_device = bool(group.get("capturable") or group.get("fused"))
        for p in group["params"]:
            own = state.get(p, {})
            if foreign.intersection(own):
                afresh += 1
            elif own:
                name, heir = heirs[id(p)]
                new.state[heir] = {
                    key: _carried(key, value, p, heir, cuts.get(name, ()), on_device) for key, value in own.items()
                }
    if afresh:
        warnings.warn(
            f"{type(optimizer).__name__} keeps state of other shapes than its parameters "
            f"({', '.join(sorted(foreign))}), which cannot be cut with them: {afresh} parameters start without any",
            stacklevel=3,
        )


def _follows(value: Any, p: Tensor) -> bool:
    if isinstance(value, Tensor):
        return value.numel() == 1 or value.shape == p.shape
    return not output_tensors(value)


def _carried(
    key: str, value: Any, old: Tensor, new: Tensor, cuts: Sequence[tuple[int, np.ndarray]], on_device: bool
) -> Any:
    if not isinstance(value, Tensor):
        return copy.deepcopy(value)
    value = value.detach()
    if key == "step":  # counted on the CPU in float32, whatever is counted, unless a kernel on the device reads it
        return value.to(new.device if on_device else value.device, copy=True)
    device = new.device if value.device == old.device else value.device
    if value.shape != old.shape:
        return value.to(device, copy=True)
    dtype = new.dtype if value.dtype == old.dtype else value.dtype
    return laid_out(select(value, cuts), value, copy=True).to(device, dtype)
