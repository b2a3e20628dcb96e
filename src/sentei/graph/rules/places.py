"""Elements taken by their place: groups are divided there, so that how many stay before it depends on no choice."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sentei.graph import labels as lab
from sentei.graph.calls import Call, rule
from sentei.graph.rules.movement import aten, evenly
from sentei.graph.tracer import LabelMode, unknown

PLACES = "select diagonal as_strided unfold index_select take_along_dim gather narrow_copy"
"""Operations that take elements by their place, in whatever order."""


@rule(*aten(PLACES))
def places(mode: LabelMode, call: Call) -> None:
    """Elements taken by their place: what is taken, and each that is taken alone, must stay in its place.

    Layers that do not vary where the operation picks pass as in any other movement.
    """
    source, out = call.args[0], call.out
    dims = [call[name] % source.ndim for name in ("dim", "dim1", "dim2", "dimension") if call.has(name)]
    dims = dims or list(range(source.ndim))
    hit = [x for x in mode.layers(source) if set(dims).intersection(lab.varying(x))]
    for layer in hit:
        if call.name == "aten.select" and len(lab.varying(layer)) == 1:
            place = call["index"] % source.shape[dims[0]]
            mode.cut_at(lab.first_along(layer, dims[0]), [place, place + 1])
        elif call.name == "aten.index_select" and len(lab.varying(layer)) == 1 and not call["index"].is_meta:
            _by_list(mode, lab.first_along(layer, dims[0]), call["index"])
        elif call.name != "aten.select":
            mode.freeze(layer, f"elements are taken by their place in {call.name}")
    kept = tuple(x for x in mode.layers(source) if not any(x is h for h in hit))
    if call.name in ("aten.select", "aten.index_select") and not any(t.is_meta for t in list(call.tensors())[1:]):
        kept = mode.layers(source)
    if any(mode.layers(t) for t in list(call.tensors())[1:]):
        unknown(mode, call)
        return
    mode.put(out, [lab.tidy(_taken(call, x), out.shape) for x in kept])


def _taken(call: Call, layer: Tensor) -> Tensor:
    if call.name in ("aten.as_strided", "aten.gather", "aten.take_along_dim"):
        return lab.narrow(layer, ()).reshape([1] * call.out.ndim).expand(call.out.shape)
    args = [torch.zeros(a.shape, dtype=a.dtype) if isinstance(a, Tensor) and a.is_meta else a for a in call.args[1:]]
    moved: Tensor = call.func(layer, *args, **call.kwargs)
    return moved


def _by_list(mode: LabelMode, vector: Tensor, index: Tensor) -> None:
    """A list of places: a run of neighbours, forwards or backwards, is a slice; any other needs all to stay."""
    places = index.reshape(-1)
    steps = places.diff()
    if index.ndim == 1 and len(places) > 1 and (bool((steps == 1).all()) or bool((steps == -1).all())):
        low, high = int(places.min()), int(places.max())
        mode.cut_at(vector, [low, high + 1])
    else:
        mode.freeze(vector, "channels are taken by a list of places")


@rule("aten.roll")
def roll(mode: LabelMode, call: Call) -> None:
    """What is shifted over the end comes in front: a cut at that place."""
    x, shifts = call.args[0], call["shifts"]
    dims = [d % x.ndim for d in (call["dims"] or [])]
    shifts = list(shifts) if isinstance(shifts, (list, tuple)) else [shifts]
    for layer in mode.layers(x):
        hit = set(lab.varying(layer)).intersection(dims) if dims else set(lab.varying(layer))
        if hit and (len(lab.varying(layer)) > 1 or not dims):
            mode.freeze(layer, "is rolled along one of several dimensions that it spans")
        elif hit:
            d = hit.pop()
            mode.cut_at(
                lab.first_along(layer, d), [-s % x.shape[d] for s, e in zip(shifts, dims, strict=True) if e == d]
            )
    mode.put(call.out, [_along(call, layer, dims) for layer in mode.layers(x)])


@rule("aten.flip")
def flip(mode: LabelMode, call: Call) -> None:
    x = call.args[0]
    mode.put(call.out, [_along(call, layer, [d % x.ndim for d in call["dims"]]) for layer in mode.layers(x)])


def _along(call: Call, layer: Tensor, dims: Sequence[int]) -> Tensor:
    """The layer after an operation that moves elements along some dimensions (of the tensor as a whole if none)."""
    vary = lab.varying(layer)
    if dims and not set(dims).intersection(vary):
        return layer
    moved: Tensor = call.func(lab.narrow(layer, vary) if dims else layer, *call.args[1:], **call.kwargs)
    return lab.tidy(moved, call.out.shape)


@rule("aten.slice")
def slice_(mode: LabelMode, call: Call) -> None:
    """Parts of equal size shrink evenly: halves (`x[:, :n // 2]`) and strides (`x[:, ::2]`)."""
    source = call.args[0]
    dim = call["dim"] % source.ndim
    n, kept, step = source.shape[dim], call.out.shape[dim], call["step"]
    layers = []
    for layer in mode.layers(source):
        start = _first(call["start"], n)
        if dim in lab.varying(layer) and kept < n:
            if step == 1 and kept and n % kept == 0 and start % kept == 0:
                layer = evenly(mode, layer, dim, (n // kept, kept))
            elif step > 1 and n % step == 0:
                layer = evenly(mode, layer, dim, (n // step, step), flip=True)
            elif step > 1:
                mode.freeze(layer, "every second or so of its channels is taken, and they are no even number")
        if dim in lab.varying(layer) and step == 1 and len(lab.varying(layer)) == 1:
            mode.cut_at(lab.first_along(layer, dim), [start, start + kept])
        layers.append(call.func(layer, *call.args[1:], **call.kwargs))
    mode.put(call.out, layers)


def _first(start: int | None, n: int) -> int:
    if start is None:
        return 0
    return min(max(start + n, 0) if start < 0 else start, n)


@rule(*aten("split split_with_sizes chunk unbind unsafe_split unsafe_chunk tensor_split hsplit vsplit"))
def split(mode: LabelMode, call: Call) -> None:
    """Equal parts shrink evenly; each part takes its piece of the labels."""
    source, outs = call.args[0], call.outputs()
    dim = (call["dim"] if call.has("dim") else 0) % source.ndim
    parts: list[list[Tensor]] = [[] for _ in outs]
    unbind = call.name == "aten.unbind"
    equal = not unbind and len({o.shape[dim] for o in outs}) == 1
    for layer in mode.layers(source):
        if equal and dim in lab.varying(layer) and len(outs) > 1:
            layer = evenly(mode, layer, dim, (len(outs), source.shape[dim] // len(outs)))
        if dim in lab.varying(layer) and not unbind:
            if len(lab.varying(layer)) > 1:
                mode.freeze(layer, "is split along one of several dimensions that it spans")
            else:
                mode.cut_at(lab.first_along(layer, dim), list(itertools.accumulate(o.shape[dim] for o in outs)))
        for i, piece in enumerate(call.func(layer, *call.args[1:], **call.kwargs)):
            parts[i].append(piece)
    for out, pieces in zip(outs, parts, strict=True):
        mode.put(out, pieces)


@rule("aten.index")
def index(mode: LabelMode, call: Call) -> None:
    """Index with constant tables; an index that depends on activations freezes what it picks from."""
    source, table = call.args[0], list(call.args[1])
    indexed = [d for d, i in enumerate(table) if i is not None]
    layers = []
    for layer in mode.layers(source):
        if not set(indexed).intersection(lab.varying(layer)):
            layers.append(_carry(layer, call, table, indexed))
        elif any(i is not None and i.is_meta for i in table):
            mode.freeze(layer, "is indexed by values that depend on the input")
        else:
            if len(indexed) == 1 and len(lab.varying(layer)) == 1 and table[indexed[0]].dtype != torch.bool:
                _by_list(mode, lab.first_along(layer, indexed[0]), table[indexed[0]])
            else:
                mode.freeze(layer, "channels are taken by a list of places")
            layers.append(lab.tidy(call.func(layer, table)))
    mode.put(call.out, layers)


def _carry(layer: Tensor, call: Call, table: list[Any], indexed: list[int]) -> Tensor:
    """The layer after indexing only dimensions along which it is constant, without knowing the index."""
    if any(i is not None and i.dtype == torch.bool for i in table):
        rest = [layer.shape[d] for d in range(layer.ndim) if d not in indexed]
        return lab.tidy(lab.narrow(layer, [d for d in range(layer.ndim) if d not in indexed]).reshape(rest)).expand(
            call.out.shape
        )
    first = [None if i is None else torch.zeros(i.shape, dtype=torch.long) for i in table]
    return lab.tidy(call.func(layer, first))
