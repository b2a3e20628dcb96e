"""Normalisation layers: batch and instance norm keep channels apart, layer and group norm mix them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sentei.graph import labels as lab
from sentei.graph.calls import MIXERS, Call, rule
from sentei.graph.labels import Layers
from sentei.graph.rules.contraction import whole_groups
from sentei.graph.rules.pointwise import PADDED, combine
from sentei.graph.shapes import SHAPES, like
from sentei.graph.tracer import LabelMode

BATCH = """native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training _batch_norm_with_update
_batch_norm_with_update_functional _batch_norm_no_update cudnn_batch_norm miopen_batch_norm batch_norm"""


def channel_params(mode: LabelMode, x: Tensor, params: Sequence[Any], dim: int = 1) -> list[Tensor]:
    """Layers of x after sharing units with per-channel vectors that lie on dimension `dim`."""
    layers = mode.layers(x)
    if len(layers) == 1 and lab.varying(layers[0]) == (dim,):  # the common case, without broadcasting
        channels = lab.first_along(layers[0], dim)
        vectors = [mode.layers(p) for p in params if isinstance(p, Tensor)]
        if all(len(v) == 1 and v[0].shape == channels.shape for v in vectors) and int(channels.min()) >= 0:
            for v in vectors:
                mode.tie(channels, v[0], PADDED)
            return list(layers)
    operands: list[tuple[Sequence[int], Layers]] = [(x.shape, mode.layers(x))]
    for p in params:
        if isinstance(p, Tensor) and p.ndim == 1:
            shape = [p.shape[0] if d == dim else 1 for d in range(x.ndim)]
            operands.append((shape, tuple(layer.reshape(shape) for layer in mode.layers(p))))
    return list(combine(mode, x.shape, operands))


@rule(*(f"aten.{n}" for n in BATCH.split()))
def batch_norm(mode: LabelMode, call: Call) -> None:
    x = call.args[0]
    layers = channel_params(mode, x, call.args[1:5])
    if call.has("training") and call["training"]:
        for layer in layers:
            if set(lab.varying(layer)) - {1}:
                if len(lab.varying(layer)) > 1:
                    mode.freeze(layer, "is normalised over one of several dimensions that it spans")
                mode.mixes(layer)
    first, *rest = call.outputs()
    mode.put(first, layers)
    for out in rest:
        out._sentei_layers = ()  # type: ignore[attr-defined]


@rule("aten.native_layer_norm", "aten.layer_norm", "aten.rms_norm", "aten._fused_rms_norm")
def layer_norm(mode: LabelMode, call: Call) -> None:
    x, shape = call.args[0], call["normalized_shape"]
    dims = range(x.ndim - len(shape), x.ndim)
    operands = [(x.shape, mode.layers(x))]
    operands += [(p.shape, mode.layers(p)) for p in call.args[2:4] if isinstance(p, Tensor)]
    layers = combine(mode, x.shape, operands)
    for layer in layers:
        if set(dims).intersection(lab.varying(layer)):
            mode.mixes(layer)
            if len(lab.varying(layer)) > 1 or len(shape) > 1:
                mode.freeze(layer, "layer norm over several dimensions")
            else:
                mode.site("normalized_shape", lab.first_along(layer, x.ndim - 1))
    first, *rest = call.outputs()
    mode.put(first, layers)
    for out in rest:
        out._sentei_layers = ()  # type: ignore[attr-defined]


@rule("aten.native_group_norm", "aten.group_norm")
def group_norm(mode: LabelMode, call: Call) -> None:
    """Shrinks by whole groups (statistics unchanged) or evenly within all groups, whichever is finer."""
    x, groups = call.args[0], call["group"] if call.has("group") else call["num_groups"]
    params = [call["weight"], call["bias"]]
    layers = channel_params(mode, x, params)
    out_layers = []
    for layer in layers:
        if lab.varying(layer) != (1,):
            mode.freeze(layer, "varies over space in a group norm")
            continue
        matrix = lab.first_along(layer, 1).reshape(groups, -1)
        whole = whole_groups(mode, groups, matrix.shape[1], matrix)
        anchor = matrix[:, :1] if whole else matrix[:1]
        mode.tie(matrix, anchor.expand_as(matrix))
        if bool((matrix < 0).any()):
            mode.freeze(layer, "group norm over channels of which some are constants")
        if whole:
            mode.site("num_groups", matrix[:, 0])
        else:
            mode.mixes(layer)
        out_layers.append(layer)
    first, *rest = call.outputs()
    mode.put(first, out_layers)
    for out in rest:
        out._sentei_layers = ()  # type: ignore[attr-defined]


def _batch_norm_shape(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    x = args[0]
    for p in args[1:5]:
        if isinstance(p, Tensor) and p.numel() != x.shape[1]:
            raise RuntimeError(f"batch norm of {p.numel()} features meets {x.shape[1]} channels")
    stats = torch.empty(0, device=x.device)
    return like(x), stats, stats


def _layer_norm_shape(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    x, shape = args[0], tuple(args[1])
    if tuple(x.shape[x.ndim - len(shape) :]) != shape:
        raise RuntimeError(f"layer norm over {shape} meets an activation of shape {tuple(x.shape)}")
    stats = torch.empty([*x.shape[: x.ndim - len(shape)], *(1 for _ in shape)], device=x.device)
    return like(x), stats, stats


SHAPES.update({"aten.native_batch_norm": _batch_norm_shape, "aten.native_layer_norm": _layer_norm_shape})


def _layer_norm_kept(mode: LabelMode, call: Call) -> Any:
    """Reference run: statistics over the kept units."""
    x, weight, bias = call.args[0], call.args[2], call.args[3]
    last = x.ndim - 1
    idx = mode.kept_along(x, [last]).get(last)
    if idx is None:
        return call.func(*call.args, **call.kwargs)
    small = [None if p is None else p.index_select(0, idx) for p in (weight, bias)]
    out, mean, rstd = call.func(x.index_select(last, idx), [len(idx)], *small, *call.args[4:])
    return torch.zeros_like(x).index_copy_(last, idx, out), mean, rstd


def _group_norm_kept(mode: LabelMode, call: Call) -> Any:
    """Reference run: statistics over the kept units of each group."""
    x, weight, bias, n, c, hw, groups, eps = call.args
    idx = mode.kept_along(x, [1]).get(1)
    channels = next((lab.first_along(v, 1) for v in mode.layers(x) if lab.varying(v) == (1,)), None)
    if idx is None or channels is None or whole_groups(mode, groups, c // groups, channels.reshape(groups, -1)):
        return call.func(*call.args, **call.kwargs)
    small = [None if p is None else p.index_select(0, idx) for p in (weight, bias)]
    out, mean, rstd = call.func(x.index_select(1, idx).contiguous(), *small, n, len(idx), hw, groups, eps)
    return torch.zeros_like(x).index_copy_(1, idx, out), mean, rstd


def _batch_norm_kept(mode: LabelMode, call: Call) -> Any:
    """Reference run: batch statistics over the kept units of the other axes (weight standardisation)."""
    x = call.args[0]
    if not (call.has("training") and call["training"]):
        return call.func(*call.args, **call.kwargs)
    for d, idx in mode.kept_along(x, [d for d in range(x.ndim) if d != 1]).items():
        out, *stats = call.func(x.index_select(d, idx), *call.args[1:], **call.kwargs)
        return (torch.zeros_like(x).index_copy_(d, idx, out), *stats)
    return call.func(*call.args, **call.kwargs)


MIXERS.update({"aten.native_layer_norm": _layer_norm_kept, "aten.native_group_norm": _group_norm_kept})
MIXERS.update({f"aten.{n}": _batch_norm_kept for n in BATCH.split()})
