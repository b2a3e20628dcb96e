"""A network as a function of tensors alone: tensors in by position, a tensor, a tuple or a dict of tensors out."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from sentei.errors import ExportError
from sentei.graph.inputs import Inputs
from sentei.graph.outputs import output_tensors
from sentei.graph.part import Forward, part_of

AUXILIARY = "aux"
"""How the outputs begin that serve training alone; torchvision's segmenters have one."""


class Plain(nn.Module):
    """What is exported of a network, in eval mode.

    It shares modules and parameters with the network, under the names that they have there. Whatever of the example is
    no tensor is fixed. `outputs` names those of a mapping that are wanted; all but auxiliary ones unless given.
    """

    whole: nn.Module

    def __init__(
        self, model: nn.Module, example: Any, forward: Forward | None = None, outputs: Sequence[str] | None = None
    ) -> None:
        super().__init__()
        object.__setattr__(self, "whole", model)  # no submodule, or every name would begin with it
        self._modules, self._parameters, self._buffers = model._modules, model._parameters, model._buffers
        self._non_persistent_buffers_set = model._non_persistent_buffers_set
        self.part, self.wanted, self.training = forward, outputs, False
        given = Inputs.real(example)
        leaves, self.tree = tree_flatten((given.args, dict(given.kwargs)))
        self.fixed = {i: leaf for i, leaf in enumerate(leaves) if not isinstance(leaf, Tensor)}
        self.keywords = tuple(given.kwargs)
        self.names = _input_names(model, forward, given)
        self.left_out: tuple[str, ...] = ()

    def forward(self, *tensors: Tensor) -> Any:
        args, kwargs = self.arguments(tensors)
        return self._chosen(part_of(self.whole, self.part)(*args, **kwargs))

    def arguments(self, tensors: Sequence[Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What the network is called with: these tensors, and the rest of the example."""
        rest, count = iter(tensors), len(tensors) + len(self.fixed)
        leaves = [self.fixed[i] if i in self.fixed else next(rest) for i in range(count)]
        args, kwargs = tree_unflatten(leaves, self.tree)
        return args, kwargs

    def tensors_of(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
        """The tensors among arguments, in the order in which `forward` takes them."""
        leaves, tree = tree_flatten((tuple(args), {k: kwargs[k] for k in self.keywords if k in kwargs}))
        if tree != self.tree:
            raise ExportError(f"the file takes {self.tree.num_leaves} inputs, the network was given {len(leaves)}")
        return [leaf for leaf in leaves if isinstance(leaf, Tensor)]

    def _chosen(self, out: Any) -> Any:
        named = _mapping(out)
        if named is None:
            found = out if isinstance(out, Tensor) else tuple(output_tensors(out))
            if not isinstance(found, Tensor) and not found:
                raise ExportError(f"the network returns a {type(out).__name__} without any tensor: nothing to export")
            return found
        flat = dict(_flat(named))
        plain = [name for name in flat if not name.startswith(AUXILIARY)]
        wanted = self.wanted or plain or list(flat)
        absent = [name for name in wanted if name not in flat]
        if absent or not wanted:
            raise ExportError(f"the network has no output {', '.join(absent)}; it returns {', '.join(flat) or 'none'}")
        self.left_out = tuple(name for name in flat if name not in wanted)
        return {name: flat[name] for name in wanted}


def named_outputs(out: Any) -> dict[str, Tensor]:
    """What `Plain` returns, by name."""
    if isinstance(out, Tensor):
        return {"output": out}
    return dict(out) if isinstance(out, Mapping) else {f"output_{i}": t for i, t in enumerate(out)}


def like(out: Any, tensors: Sequence[Tensor]) -> Any:
    """Tensors in the structure of what `Plain` returned."""
    if isinstance(out, Tensor):
        return tensors[0]
    return dict(zip(out, tensors, strict=True)) if isinstance(out, Mapping) else tuple(tensors)


def _mapping(out: Any) -> Mapping[str, Any] | None:
    """Outputs that have names; None for those that have none."""
    if isinstance(out, Mapping):
        return out
    if isinstance(out, tuple) and hasattr(out, "_asdict"):
        return dict(out._asdict())
    if dataclasses.is_dataclass(out) and not isinstance(out, type):
        return {f.name: getattr(out, f.name) for f in dataclasses.fields(out)}
    return None


def _flat(named: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    for name, value in named.items():
        found = output_tensors(value)
        yield from ((str(name), t) if isinstance(value, Tensor) else (f"{name}_{i}", t) for i, t in enumerate(found))


def _input_names(model: nn.Module, forward: Forward | None, given: Inputs) -> tuple[str, ...]:
    """Names of the tensors, after the parameters of the forward that takes them."""
    parameters = list(inspect.signature(model.forward if forward is None else forward).parameters.values())
    parameters = parameters if forward is None else parameters[1:]
    plain = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    named = [(plain[i] if i < len(plain) else f"input_{i}", arg) for i, arg in enumerate(given.args)]
    names: list[str] = []
    for name, value in [*named, *given.kwargs.items()]:
        found = [leaf for leaf in tree_flatten(value)[0] if isinstance(leaf, Tensor)]
        names += [name] if isinstance(value, Tensor) else [f"{name}_{i}" for i in range(len(found))]
    return tuple(names)
