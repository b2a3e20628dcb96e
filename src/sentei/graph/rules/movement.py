"""Data movement: the operation itself is executed on the label layers, so there is no rule to get wrong."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Sequence

import torch
from torch import Tensor

from sentei.graph import labels as lab
from sentei.graph.calls import COUNTED, Call, rule
from sentei.graph.rules.made import merged_expansion, note_expanded
from sentei.graph.rules.pointwise import FIXED_SIZE, combine
from sentei.graph.tracer import LabelMode, unknown

VIEWS = """permute transpose t numpy_T mT movedim swapaxes expand unsqueeze squeeze detach alias lift_fresh
lift"""
COPIES = "repeat tile rot90 pixel_unshuffle repeat_interleave"
RESHAPES = "view reshape _unsafe_view _reshape_alias flatten unflatten"


def aten(names: str) -> list[str]:
    return [f"aten.{n}" for n in names.split()]


@rule(*aten("clone contiguous"))
def same(mode: LabelMode, call: Call) -> None:
    note_expanded(call.args[0], call.out)
    mode.put(call.out, mode.layers(call.args[0]))


@rule(*aten(VIEWS), *aten(COPIES))
def execute(mode: LabelMode, call: Call) -> None:
    """Run the operation on each layer. Padding and the like fill with -1: no unit."""
    source, layers = call.args[0], []
    if any(mode.layers(t) or (t.is_meta and t is not source) for t in list(call.tensors())[1:]):
        unknown(mode, call)
        return
    for layer in mode.layers(source):
        moved = call.func(layer, *call.args[1:], **call.kwargs)
        layers.append(moved if call.func.is_view else lab.tidy(moved))
    if layers and call.name in ("aten.expand", "aten.repeat_interleave"):
        mode.sized()
    mode.put(call.out, layers)


@rule("aten.view_as_real")
def view_as_real(mode: LabelMode, call: Call) -> None:
    mode.put(call.out, [layer.unsqueeze(-1).expand(call.out.shape) for layer in mode.layers(call.args[0])])


@rule("aten.view_as_complex")
def view_as_complex(mode: LabelMode, call: Call) -> None:
    """The last dimension, real and imaginary parts, goes."""
    layers = []
    for layer in mode.layers(call.args[0]):
        if layer.ndim - 1 in lab.varying(layer):
            mode.freeze(layer, "real and imaginary parts are channels")
        else:
            layers.append(layer[..., 0])
    mode.put(call.out, layers)


@rule("aten.constant_pad_nd")
def pad(mode: LabelMode, call: Call) -> None:
    """Padding along the channels adds -1, no unit; along other dimensions the new elements belong to their channel."""
    amounts, layers = list(call.args[1]), []
    for layer in mode.layers(call.args[0]):
        vary = lab.varying(layer)
        own = [n if layer.ndim - 1 - i // 2 in vary else 0 for i, n in enumerate(amounts)]
        for i, n in enumerate(own):
            if n < 0:
                vector = lab.first_along(layer, layer.ndim - 1 - i // 2)
                mode.cut_at(vector, [len(vector) + n if i % 2 else -n])
        layers.append(lab.tidy(call.func(lab.narrow(layer, vary), own, lab.NONE), call.out.shape))
    mode.put(call.out, layers)


@rule(*aten("channel_shuffle native_channel_shuffle pixel_shuffle"))
def shuffle(mode: LabelMode, call: Call) -> None:
    """Channels are seen as [groups, n], or [n, r * r] by a pixel shuffle: n shrinks."""
    x, n = call.args[0], call.args[1]
    pixels = call.name == "aten.pixel_shuffle"
    dim = x.ndim - 3 if pixels else 1
    parts = (x.shape[dim] // (n * n), n * n) if pixels else (n, x.shape[dim] // n)
    layers = []
    for layer in mode.layers(x):
        if dim in lab.varying(layer):
            layer = evenly(mode, layer, dim, parts, flip=pixels)
        layers.append(lab.tidy(call.func(layer, n)))
    mode.put(call.out, layers)


def evenly(
    mode: LabelMode, layer: Tensor, dim: int, parts: tuple[int, int], flip: bool = False, view: bool = False
) -> Tensor:
    """Relabel one dimension as parts that shrink together. `flip`: the parts are interleaved."""
    if len(lab.varying(layer)) > 1:
        return layer
    matrix = lab.first_along(layer, dim).reshape(parts)
    if min(parts) > 1 and int(matrix.min()) >= 0:
        matrix = mode.split(matrix.T).T if flip else mode.split(matrix, view)
    return lab.place(matrix.reshape(-1), dim, layer.shape)


@rule(*aten(RESHAPES))
def reshape(mode: LabelMode, call: Call) -> None:
    layers = []
    for layer in mode.layers(call.args[0]):
        layer = _in_parts(mode, layer, call.out.shape)
        moved, splits = lab.reshape(layer, call.out.shape)
        if mode.units is not None and _is_anywhere(layer, call.out.shape):
            continue
        if call.out.ndim >= layer.ndim:
            mode.sized()
        for dims in splits:
            small = lab.narrow(moved, lab.varying(moved))
            if all(small.shape[d] == 1 for d in range(small.ndim) if d not in dims) and int(small.min()) >= 0:
                core = small.reshape([small.shape[d] for d in dims])
                moved = lab.tidy(mode.split(core, True, _free_axis(call, dims)).reshape(small.shape), moved.shape)
            else:
                mode.freeze(layer, "is seen in parts, together with elements that hold no channel")
        layers.append(moved)
    mode.shaped(call.out, layers)
    mode.put(call.out, layers + merged_expansion(mode, call.args[0], call.out))


def _is_anywhere(layer: Tensor, shape: Sequence[int]) -> bool:
    """Whether all that a cut left is one unit, and a reshape does not tell which new dimension it lies along."""
    vary = lab.varying(layer)
    small = lab.narrow(layer, vary)
    if int(small.min()) != int(small.max()):
        return False
    return any(
        set(vary).intersection(old) and sum(layer.shape[d] > 1 for d in old) == 1 < len(new)
        for old, new in lab.blocks(layer.shape, shape)
    )


def _in_parts(mode: LabelMode, layer: Tensor, shape: Sequence[int]) -> Tensor:
    """Where channels are cut into groups that merge with their neighbours (view(N, groups, -1) for statistics), the
    groups shrink evenly."""
    vary = lab.varying(layer)
    for old, new in lab.blocks(layer.shape, shape):
        if len(vary) == 1 and vary[0] in old and sum(layer.shape[d] > 1 for d in old) > 1:
            before = math.prod(layer.shape[d] for d in old if d < vary[0])
            width = layer.shape[vary[0]]
            left = itertools.accumulate((shape[d] for d in new), operator.mul)
            inner = {p // before for p in left if before < p < before * width and p % before == 0}
            parts = inner.pop() if len(inner) == 1 else 1
            if parts > 1 and width % parts == 0:
                return evenly(mode, layer, vary[0], (parts, width // parts), view=True)
    return layer


def _free_axis(call: Call, dims: list[int]) -> int:
    """The one of the new dimensions that is most likely to shrink: the one given as -1, or the channels of an image
    that is made of a vector. -1 if nothing tells."""
    sizes = call.args[1] if len(call.args) > 1 and isinstance(call.args[1], (list, tuple)) else ()
    given = [i for i, d in enumerate(dims) if len(sizes) == call.out.ndim and sizes[d] == -1]
    image = call.out.ndim > 3 and dims == list(range(1, call.out.ndim))
    return given[0] if given else 0 if image else -1


@rule("aten.glu")
def glu(mode: LabelMode, call: Call) -> None:
    """The first half of `dim` times the sigmoid of the second: the halves are one."""
    x, dim = call.args[0], call["dim"] % call.args[0].ndim
    layers = []
    for layer in mode.layers(x):
        if dim in lab.varying(layer):
            layer = evenly(mode, layer, dim, (2, x.shape[dim] // 2))
            first, second = layer.chunk(2, dim)
            mode.tie(first, second)
            layers.append(lab.tidy(first))
        else:
            layers.append(layer.narrow(dim, 0, x.shape[dim] // 2))
    mode.put(call.out, layers)


@rule("aten.cat", "aten.stack")
def cat(mode: LabelMode, call: Call) -> None:
    """Layers along the joined dimension are joined, all others must agree between the parts."""
    parts, out = list(call.args[0]), call.out
    dim = (call["dim"] or 0) % out.ndim
    per_part = [list(mode.layers(t)) for t in parts]
    if call.name == "aten.stack":
        per_part = [[layer.unsqueeze(dim) for layer in layers] for layers in per_part]
    sizes = [1 if call.name == "aten.stack" else t.shape[dim] for t in parts]
    along = [[x for x in layers if dim in lab.varying(x)] for layers in per_part]
    across = [tuple(x for x in layers if dim not in lab.varying(x)) for layers in per_part]
    if any(len(x) > 1 for x in along):
        unknown(mode, call)
        return
    joined: list[Tensor] = []
    if any(along):
        axes = {dim}.union(*(lab.varying(x[0]) for x in along if x))
        crossing = [x for group in across for x in group if axes.intersection(lab.varying(x))]
        for layer in crossing:
            mode.freeze(layer, "two of its axes meet in one concatenation")
        across = [tuple(x for x in g if not axes.intersection(lab.varying(x))) for g in across]
        shape = [n if d in axes else 1 for d, n in enumerate(out.shape)]
        pieces = []
        for own, size in zip(along, sizes, strict=True):
            shape[dim] = size
            pieces.append(lab.narrow(own[0], tuple(axes)) if own else torch.full(shape, lab.NONE))
        joined.append(lab.tidy(torch.cat(pieces, dim), out.shape))
    if any(across):
        shape = [1 if d == dim else n for d, n in enumerate(out.shape)]
        flat = [(shape, tuple(x.narrow(dim, 0, 1) for x in g)) for g in across]
        joined += [x.expand(out.shape) for x in combine(mode, shape, flat)]
    mode.put(out, joined)


@rule("aten.embedding")
def embedding(mode: LabelMode, call: Call) -> None:
    table, out = call.args[0], call.out
    layers = []
    for layer in mode.layers(table):
        if lab.varying(layer) == (1,):
            layers.append(lab.place(lab.first_along(layer, 1), out.ndim - 1, out.shape))
        else:
            mode.freeze(layer, "rows of an embedding")
    mode.put(out, layers)


@rule("aten.im2col")
def im2col(mode: LabelMode, call: Call) -> None:
    """Patches become channels; zero padding belongs to its channel. Runs on labels + 1 in float64, so that it shows."""
    layers = []
    for layer in mode.layers(call.args[0]):
        moved = call.func((layer + 1).double(), *call.args[1:], **call.kwargs).long() - 1
        if not set(lab.varying(layer)) - {layer.ndim - 3}:
            moved = moved.amax(-1, keepdim=True).expand_as(moved)
        layers.append(lab.tidy(moved))
    mode.put(call.out, layers)


@rule("aten.col2im")
def col2im(mode: LabelMode, call: Call) -> None:
    """Channels times kernel positions become channels: the positions of a channel go together."""
    x, out = call.args[0], call.out
    dim = x.ndim - 2
    layers = []
    for layer in mode.layers(x):
        vary = lab.varying(layer)
        if vary == (dim,):
            matrix = lab.first_along(layer, dim).reshape(out.shape[-3], -1)
            channels = matrix.amax(1, keepdim=True)
            mode.tie(matrix, channels.expand_as(matrix), FIXED_SIZE)
            layers.append(lab.place(channels[:, 0], out.ndim - 3, out.shape))
        elif dim == 1 and vary == (0,):
            layers.append(lab.place(lab.first_along(layer, 0), 0, out.shape))
        else:
            mode.freeze(layer, "varies over positions in a fold")
    mode.put(out, layers)


COUNTED.update(aten("clone " + RESHAPES))
