"""Give a model other parameter tensors and the matching attributes: for one pass (slim, trials) or for good (cut)."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

Attribute = tuple[nn.Module, str, Any]
ABSENT = object()
"""The value of an attribute that a module is to be without."""
FOLLOWED = (_ConvNd, nn.Linear, _NormBase, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.PReLU, nn.Embedding)
"""Layers whose attributes follow from the shapes of their parameters."""
Cuts = Mapping[str, Sequence[tuple[int, np.ndarray]]]
"""Per parameter or buffer: the (dimension, kept indices) to select."""


@functools.cache
def _layer_type(kind: Any) -> bool:
    own = (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.Unflatten, nn.MultiheadAttention)
    return issubclass(kind, FOLLOWED) or kind.__module__.startswith("torch.nn.") and kind not in own


def is_layer(module: nn.Module) -> bool:
    """Whether a module is one of PyTorch's layers, all of whose widths the shapes of its parameters tell."""
    kind: Any = type(module)
    return _layer_type(kind)


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by their first name; a tied tensor appears once."""
    out: dict[str, Tensor] = {}
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        for store in (module._parameters, module._buffers):
            for key, t in store.items():
                if t is not None and id(t) not in seen:
                    seen.add(id(t))
                    out[f"{prefix}.{key}" if prefix else key] = t
    return out


def carries_units(t: Tensor) -> bool:
    """Whether the dimensions of a parameter or buffer may hold units; integers are tables."""
    return t.is_floating_point() or t.is_complex()


def select(t: Tensor, cuts: Sequence[tuple[int, np.ndarray]]) -> Tensor:
    """Keep some indices of some dimensions. A run of neighbours stays a view; differentiable."""
    for dim, idx in cuts:
        if len(idx) and idx[-1] - idx[0] + 1 == len(idx):
            t = t.narrow(dim, int(idx[0]), len(idx))
        else:
            t = t.index_select(dim, torch.from_numpy(idx).to(t.device))
    return t


def cut_shape(shape: Sequence[int], cuts: Sequence[tuple[int, np.ndarray]]) -> list[int]:
    sizes = list(shape)
    for dim, idx in cuts:
        sizes[dim] = len(idx)
    return sizes


def attributes(model: nn.Module, names: Mapping[int, str], cuts: Cuts, given: Sequence[Attribute]) -> list[Attribute]:
    """The module attributes that change with the cuts: in_channels, num_features, normalized_shape, groups, ...

    `names` maps id(tensor) to its name in `cuts`; `given` are those that depend on labels (groups of grouped convs).
    """
    out = list(given)

    def shape(module: nn.Module, key: str) -> list[int] | None:
        t = _stored(module, key)
        name = None if t is None else names.get(id(t))
        return None if t is None or name is None or name not in cuts else cut_shape(t.shape, cuts[name])

    site_groups = {id(m): v for m, attr, v in out if attr == "groups"}
    for module in model.modules():
        size = shape(module, "weight")
        if isinstance(module, _ConvNd):
            if size:
                groups = site_groups.get(id(module), module.groups)
                first, second = size[0], size[1] * groups
                swap = isinstance(module, _ConvTransposeNd)
                out += [(module, "in_channels", first if swap else second)]
                out += [(module, "out_channels", second if swap else first)]
        elif isinstance(module, nn.Linear):
            if size:
                out += [(module, "out_features", size[0]), (module, "in_features", size[1])]
        elif isinstance(module, _NormBase):
            size = size or shape(module, "running_mean")
            if size:
                out.append((module, "num_features", size[0]))
        elif isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
            if size:
                out.append((module, "normalized_shape", tuple(size)))
        elif isinstance(module, nn.GroupNorm):
            if size:
                out.append((module, "num_channels", size[0]))
        elif isinstance(module, nn.PReLU):
            if size:
                out.append((module, "num_parameters", size[0]))
        elif isinstance(module, nn.Embedding) and size:
            out += [(module, "num_embeddings", size[0]), (module, "embedding_dim", size[1])]
        elif size and len(size) > 2 and hasattr(module, "in_channels") and hasattr(module, "out_channels"):
            groups = site_groups.get(id(module), getattr(module, "groups", 1))  # deformable convolutions, for instance
            out += [(module, "in_channels", size[1] * groups), (module, "out_channels", size[0])]
    return out


def _stored(module: nn.Module, key: str) -> Tensor | None:
    """A parameter or buffer, or the one of that shape from which it is computed (weight_norm, spectral_norm, masks)."""
    parametrised = getattr(module, "parametrizations", {})
    computed_from = parametrised[key]._parameters if key in parametrised else {}
    places: list[tuple[Any, str]] = [(module._parameters, key), (module._buffers, key), (computed_from, "original")]
    places += [(computed_from, "original1"), (module._parameters, f"{key}_v"), (module._parameters, f"{key}_orig")]
    return next((t for store, name in places if (t := store.get(name)) is not None), None)


def computed_by_hooks(module: nn.Module) -> list[tuple[str, Any]]:
    """Weights that hooks compute before each forward (weight_norm, masks), plain tensors, each with its hook."""
    out = []
    for hook in module._forward_pre_hooks.values():
        key = getattr(hook, "name", None) or getattr(hook, "_tensor_name", None)
        if isinstance(key, str) and isinstance(vars(module).get(key), Tensor):
            out.append((key, hook))
    return out


@contextmanager
def swapped(model: nn.Module, tensors: Mapping[int, Tensor], attrs: Sequence[Attribute] = ()) -> Iterator[None]:
    """For the duration: tensors replaced by id, attributes set. Everything is put back, also after an error."""
    undo: list[tuple[dict[str, Any], str, Any]] = []
    try:
        for module in model.modules():
            for key, value in vars(module).items():  # references of its own, such as the flat weights of an LSTM
                if type(value) is list and any(id(t) in tensors for t in value):
                    undo.append((module.__dict__, key, value))
                    module.__dict__[key] = [tensors.get(id(t), t) for t in value]
            undo += [(module.__dict__, key, module.__dict__[key]) for key, _ in computed_by_hooks(module)]
            stores: list[dict[str, Any]] = [module._parameters, module._buffers]
            for store in stores:
                for key, t in store.items():
                    if t is not None and id(t) in tensors:
                        undo.append((store, key, t))
                        store[key] = tensors[id(t)]
        for module, attr, value in attrs:
            undo.append((module.__dict__, attr, module.__dict__[attr]))
            set_attribute(module, attr, value)
        yield
    finally:
        for store, key, old in reversed(undo):
            store[key] = old


def set_attribute(module: nn.Module, attr: str, value: Any) -> None:
    """Set a plain attribute past what the module's own code does when one is set."""
    if value is ABSENT:
        module.__dict__.pop(attr, None)
    else:
        module.__dict__[attr] = value


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Put every module's training flag back afterwards."""
    flags = [(m, m.training) for m in model.modules()]
    try:
        yield
    finally:
        for module, flag in flags:
            module.training = flag
