"""Reductions drop the labels along what they reduce; softmax and its like mix units and keep them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sentei.graph import labels as lab
from sentei.graph.calls import MIXERS, Call, rule
from sentei.graph.rules.pointwise import pointwise
from sentei.graph.tracer import LabelMode

SUMS = "sum nansum"
EXACT = ("aten.sum", "aten.nansum")
MIXING = """mean amax amin max min prod var std var_mean std_mean logsumexp linalg_vector_norm norm any all
count_nonzero aminmax"""
POSITIONS = "argmax argmin median mode kthvalue topk sort argsort cumsum cumprod logcumsumexp cummax cummin"
SOFTMAX = "_softmax _log_softmax _safe_softmax softmax log_softmax"


def reduced_dims(call: Call) -> list[int]:
    ndim = call.args[0].ndim
    dims = call["dim"] if call.has("dim") else None
    if dims is None or dims == []:
        return list(range(ndim))
    return [d % ndim for d in (dims if isinstance(dims, (list, tuple)) else [dims])]


@rule(*(f"aten.{n}" for n in (SUMS + " " + MIXING).split()))
def reduce(mode: LabelMode, call: Call) -> None:
    x, outs = call.args[0], call.outputs()
    if len(call.args) > 1 and isinstance(call.args[1], Tensor):  # torch.max(a, b)
        pointwise(mode, call)
        return
    dims = reduced_dims(call)
    keepdim = bool(call["keepdim"]) if call.has("keepdim") else False
    layers = []
    for layer in mode.layers(x):
        kept = _reduce_layer(mode, layer, dims, exact=call.name in EXACT)
        if kept is None:
            continue
        if not keepdim:
            kept = kept[tuple(0 if d in dims else slice(None) for d in range(kept.ndim))]
        layers.append(kept)
    for out in outs:
        mode.put(out, [layer.expand(out.shape) for layer in layers])


def _reduce_layer(mode: LabelMode, layer: Tensor, dims: list[int], exact: bool) -> Tensor | None:
    vary = lab.varying(layer)
    gone = [d for d in vary if d in dims]
    if not gone:
        return lab.narrow(layer, [d for d in range(layer.ndim) if d not in dims])
    if len(gone) == len(vary):
        if len(gone) > 1 and not exact:
            mode.freeze(layer, "is reduced over several of its dimensions")
        elif not exact:
            mode.mixes(layer)
        return None
    rest = [d for d in range(layer.ndim) if d not in dims]
    small = lab.narrow(layer, vary)
    best = small.amax(gone, keepdim=True)
    mode.tie(small, best.expand_as(small))
    return best.expand([layer.shape[d] if d in rest else 1 for d in range(layer.ndim)])


@rule(*(f"aten.{n}" for n in POSITIONS.split()))
def positions(mode: LabelMode, call: Call) -> None:
    """Which unit wins, or an order over units: these units must stay. Other layers pass."""
    x, outs = call.args[0], call.outputs()
    dims = reduced_dims(call) if call.has("dim") else [x.ndim - 1]
    for layer in mode.layers(x):
        if set(dims).intersection(lab.varying(layer)):
            mode.freeze(layer, f"{call.name} depends on the order of its channels")
    rest = [layer for layer in mode.layers(x) if not set(dims).intersection(lab.varying(layer))]
    for out in outs:
        if out.ndim == x.ndim:
            mode.put(out, [lab.narrow(v, [d for d in range(x.ndim) if d not in dims]).expand(out.shape) for v in rest])
        else:
            mode.put(out, [v[tuple(0 if d in dims else slice(None) for d in range(x.ndim))] for v in rest])


@rule(*(f"aten.{n}" for n in SOFTMAX.split()))
def softmax(mode: LabelMode, call: Call) -> None:
    x = call.args[0]
    dim = call["dim"] % x.ndim
    for layer in mode.layers(x):
        if dim in lab.varying(layer):
            if len(lab.varying(layer)) > 1:
                mode.freeze(layer, "softmax over one of several dimensions that it spans")
            mode.mixes(layer)
    mode.put(call.out, mode.layers(x))


def _reduce_kept(mode: LabelMode, call: Call) -> Any:
    """Reference run: reduce over the kept units only."""
    if not isinstance(call.args[0], Tensor) or len(call.args) > 1 and isinstance(call.args[1], Tensor):
        return call.func(*call.args, **call.kwargs)
    x = call.args[0]
    if call.name in EXACT:
        return call.func(mode.silence(x, reduced_dims(call)), *call.args[1:], **call.kwargs)
    for d, idx in mode.kept_along(x, reduced_dims(call)).items():
        x = x.index_select(d, idx)
    return call.func(x, *call.args[1:], **call.kwargs)


def _softmax_kept(mode: LabelMode, call: Call) -> Any:
    x = call.args[0]
    for d, idx in mode.kept_along(x, [call["dim"] % x.ndim]).items():
        out = call.func(x.index_select(d, idx), *call.args[1:], **call.kwargs)
        return torch.zeros_like(x, dtype=out.dtype).index_copy_(d, idx, out)
    return call.func(*call.args, **call.kwargs)


MIXERS.update({f"aten.{n}": _reduce_kept for n in (SUMS + " " + MIXING).split()})
MIXERS.update({f"aten.{n}": _softmax_kept for n in SOFTMAX.split()})
