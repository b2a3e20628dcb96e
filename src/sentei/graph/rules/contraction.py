"""Operations that sum over units: convolutions and matrix products. Here units are consumed, and new ones appear."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from sentei.graph import labels as lab
from sentei.graph.calls import COUNTED, MIXERS, Call, rule
from sentei.graph.labels import Layers
from sentei.graph.record import Contraction, Kernel, Vector
from sentei.graph.rules.pointwise import combine
from sentei.graph.tracer import LabelMode, unknown

INPUT = "reads a tensor whose size is fixed (the network input, for instance)"
MANY = "two of its axes meet in one contraction"


def split_layers(mode: LabelMode, layers: Layers, dim: int) -> tuple[Tensor | None, list[Tensor]]:
    """Labels along `dim` as a vector (or None), and the layers that do not vary along it."""
    along = [x for x in layers if dim in lab.varying(x)]
    rest = [x for x in layers if dim not in lab.varying(x)]
    if len(along) > 1:
        for layer in along:
            mode.freeze(layer, MANY)
        return None, rest
    return (mode.collapse(along[0], dim) if along else None), rest


def contract(mode: LabelMode, a: Tensor | None, b: Tensor | None) -> None:
    """Tie two label vectors over which a sum runs; labels that meet no label cannot be removed."""
    if a is None or b is None:
        for x in (a, b):
            if x is not None:
                mode.freeze(x, INPUT)
        return
    mode.tie(a, b, INPUT)


def add_bias(mode: LabelMode, out: Tensor | None, bias: Tensor | None) -> None:
    if bias is None:
        return
    layer, _ = split_layers(mode, mode.layers(bias), bias.ndim - 1)
    if layer is not None:
        contract(mode, out, layer)


def vector(x: Tensor | None, size: int) -> Vector:
    return size if x is None else x


@rule("aten.convolution", "aten._convolution", "aten.mkldnn_convolution")
def convolution(mode: LabelMode, call: Call) -> None:
    x, w, out = call["input"] if call.has("input") else call.args[0], call["weight"], call.out
    groups, transposed = call["groups"], bool(call.has("transposed") and call["transposed"])
    x_in, rest = split_layers(mode, mode.layers(x), 1)
    across = [layer for layer in rest if _slides_over(mode, layer, x, out)]
    o, i = (1, 0) if transposed else (0, 1)
    w_layers = []
    for layer in mode.layers(w):
        if {0, 1}.intersection(lab.varying(layer)):
            w_layers.append(layer)
        else:
            mode.freeze(layer, "is a row or column of a kernel")
    w_out, rest = split_layers(mode, tuple(w_layers), o)
    w_in, _ = split_layers(mode, tuple(rest), i)
    if groups == 1:
        contract(mode, x_in, w_in)
        channels = w_out
    else:
        channels = _grouped(mode, x_in, w_in, w_out, groups, transposed, x.shape[1])
    add_bias(mode, channels, call["bias"])
    layers = [layer.expand(out.shape) for layer in across]
    if channels is not None:
        mode.trace.produced.append(channels)
        layers.append(lab.place(channels, 1, out.shape))
    mode.put(out, layers)
    positions = x if transposed else out
    space = [size_along(positions, mode, d) for d in (0, *range(2, out.ndim))]
    channels_out = vector(channels, out.shape[1])
    add_product(mode, call, math.prod(w.shape[2:]), (*space, vector(w_out, w.shape[o]), vector(w_in, w.shape[i])),
           (*(size_along(out, mode, d) for d in (0, *range(2, out.ndim))), channels_out),
           _kernel(call, tuple(x.shape[2:]), tuple(w.shape[2:]), transposed))  # fmt: skip


def _kernel(call: Call, space: tuple[int, ...], size: tuple[int, ...], transposed: bool) -> Kernel:
    def each(name: str, default: int) -> tuple[int, ...]:
        given = tuple(call[name]) if call.has(name) else (default,)
        return given * len(size) if len(given) == 1 else given

    stride, padding, dilation = each("stride", 1), each("padding", 0), each("dilation", 1)
    return Kernel(size, stride, padding, dilation, int(call["groups"]), transposed, space)


@rule("torchvision.deform_conv2d")
def deformable(mode: LabelMode, call: Call) -> None:
    """A convolution whose offsets and masks are shared by all channels, or by the channels of each offset group."""
    x, w, out, groups, parts = call["input"], call["weight"], call.out, call["groups"], call["offset_groups"]
    for steer in (call["offset"], call["mask"]):
        mode.give_up(steer, f"steers {call.name}")
    x_in, rest = split_layers(mode, mode.layers(x), 1)
    _freeze_all(mode, rest, "varies over space in a convolution")
    w_out, others = split_layers(mode, tuple(v for v in mode.layers(w) if {0, 1}.intersection(lab.varying(v))), 0)
    w_in, _ = split_layers(mode, tuple(others), 1)
    if parts > 1 and x_in is not None:
        _columns(mode, x_in.reshape(parts, -1))
    if groups == 1:
        contract(mode, x_in, w_in)
        channels = w_out
    else:
        channels = _grouped(mode, x_in, w_in, w_out, groups, False, x.shape[1])
    add_bias(mode, channels, call["bias"])
    if channels is not None:
        mode.trace.produced.append(channels)
    mode.put(out, [] if channels is None else [lab.place(channels, 1, out.shape)])
    space = (out.shape[0], *out.shape[2:])
    inside = (vector(w_out, w.shape[0]), vector(w_in, w.shape[1]))
    add_product(mode, call, math.prod(w.shape[2:]), (*space, *inside), (*space, vector(channels, out.shape[1])))


def _slides_over(mode: LabelMode, layer: Tensor, x: Tensor, out: Tensor) -> bool:
    """A kernel that slides over units (channel attention by a 1-d convolution) mixes neighbours; sizes must match."""
    vary = lab.varying(layer)
    if len(vary) == 1 and vary[0] > 1 and out.shape[vary[0]] == x.shape[vary[0]] and x.shape[1] == 1:
        mode.mixes(layer)
        mode.trace.ordered.append(lab.first_along(layer, vary[0]))
        return out.shape[1] == 1
    mode.freeze(layer, "varies over space in a convolution")
    return False


def _grouped(
    mode: LabelMode,
    x: Tensor | None,
    w_in: Tensor | None,
    w_out: Tensor | None,
    groups: int,
    transposed: bool,
    c_in: int,
) -> Tensor | None:
    """A grouped convolution shrinks by whole groups (depthwise, for instance) or evenly within all groups.

    The finer of the two is chosen. Whole: the inputs and outputs of a channel group are one unit. Within: position j of
    every group is one unit.
    """
    xm = None if x is None else x.reshape(groups, -1)
    im = w_in if w_in is None or not transposed else w_in.reshape(groups, -1)
    om = w_out if w_out is None or transposed else w_out.reshape(groups, -1)
    whole = whole_groups(mode, groups, c_in // groups, xm, None if transposed else om)
    if transposed and mode.units is not None:
        whole = xm is not None and not _agree(xm, xm.amax(0))  # its outputs carry the labels of its inputs: be sure
    if whole:
        return _whole(mode, xm, im, om, w_out, groups, transposed)
    if xm is not None and im is not None:
        contract(mode, xm, im if transposed else im.expand_as(xm))
    else:
        _freeze_all(mode, (x, w_in), INPUT)
    if transposed:
        _columns(mode, im)
        return None if w_out is None else w_out.repeat(groups)
    _columns(mode, om)
    return w_out


def whole_groups(mode: LabelMode, groups: int, width: int, x: Tensor | None, out: Tensor | None = None) -> bool:
    """Whether channels in groups, [groups, width], are units by group, or else by their position in the group.

    When tracing, the finer of the two; when the units are known, what they say (-1 says nothing).
    """
    if mode.units is None:
        return x is not None and groups >= width
    rows = [m.amax(1, keepdim=True) for m in (x, out) if m is not None]
    alike = all(_agree(m, r) for m, r in zip((m for m in (x, out) if m is not None), rows, strict=True))
    return alike and (len(rows) < 2 or _agree(*rows))


def _agree(a: Tensor, b: Tensor) -> bool:
    return bool(((a == b) | (a < 0) | (b < 0)).all())


def _whole(
    mode: LabelMode, xm: Tensor | None, im: Tensor | None, om: Tensor | None, w_out: Tensor | None, groups: int,
    transposed: bool,
) -> Tensor | None:  # fmt: skip
    if xm is None:
        _freeze_all(mode, (im, w_out), INPUT)
        return w_out
    head = _rows(mode, xm)
    if transposed:
        contract(mode, head, None if im is None else _rows(mode, im))
        if w_out is None:
            return head.reshape(-1)
        mode.inside(w_out, "outputs inside a group of a transposed grouped convolution")
        return head.expand(groups, w_out.numel()).reshape(-1)
    if im is not None:
        mode.inside(im, "inputs inside a group of a grouped convolution")
    contract(mode, head, None if om is None else _rows(mode, om))
    mode.site("groups", head.reshape(-1))
    return w_out


def _columns(mode: LabelMode, matrix: Tensor | None) -> None:
    if matrix is not None:
        mode.tie(matrix, matrix[:1].expand_as(matrix))


def _rows(mode: LabelMode, matrix: Tensor) -> Tensor:
    """Tie each row of [groups, n] into one unit; rows that hold a constant stay. Shape [groups, 1]."""
    best = matrix.amax(1, keepdim=True)
    mode.tie(matrix, best.expand_as(matrix))
    if bool((matrix < 0).any()):
        mode.freeze(best[(matrix < 0).any(1)], INPUT)
    return best


def _freeze_all(mode: LabelMode, vectors: Sequence[Tensor | None], why: str) -> None:
    for v in vectors:
        if v is not None:
            mode.freeze(v, why)


def add_product(
    mode: LabelMode, call: Call, constant: int, factors: Sequence[Vector], out: Sequence[Vector],
    kernel: Kernel | None = None,
) -> None:  # fmt: skip
    """Note the cost of an operation that sums over units: MACs and the size of its output."""
    if mode.count_cost:
        itemsize = call.outputs()[0].element_size()
        found = Contraction(mode.where, constant, tuple(factors), tuple(out), itemsize, mode.at, call.name, kernel)
        mode.trace.contractions.append(found)


def matmul(mode: LabelMode, call: Call, a: Tensor, b: Tensor, bias: Tensor | None = None) -> None:
    """out[..., m, n] = sum over k of a[..., m, k] b[..., k, n] (mm, bmm, and their relatives with a bias)."""
    nd, out = a.ndim, call.out
    ka, kb = nd - 1, nd - 2
    a_k, a_rest = _contracted(mode, mode.layers(a), ka)
    b_k, b_rest = _contracted(mode, mode.layers(b), kb)
    contract(mode, a_k, b_k)
    if a_k is not None and b_k is not None and nd > 2 and not {id(a), id(b)}.intersection(mode.sources):
        mode.trace.contracted += [v.reshape(-1)[v.reshape(-1) >= 0] for v in (a_k, b_k)]
    moved = [(out.shape, tuple(x.narrow(ka, 0, 1).expand(out.shape) for x in a_rest))]
    moved += [(out.shape, tuple(x.narrow(kb, 0, 1).expand(out.shape) for x in b_rest))]
    layers = list(combine(mode, out.shape, moved, outer=True))
    for layer in layers:
        if nd - 1 in lab.varying(layer) or nd - 2 in lab.varying(layer):
            mode.trace.produced.append(lab.narrow(layer, lab.varying(layer)).reshape(-1))
    if bias is not None and mode.layers(bias):
        layers = list(combine(mode, out.shape, [(out.shape, tuple(layers)), (bias.shape, mode.layers(bias))]))
    mode.put(out, layers)
    sizes = [size_along(a, mode, d, b if d < nd - 2 else None) for d in range(nd - 1)]
    outs = [size_along(out, mode, d) for d in range(nd - 1)]
    inner = [size_along(a, mode, nd - 1), *_sizes_of_merged(b, mode, nd - 1)]
    add_product(mode, call, 1, sizes + inner, outs + _sizes_of_merged(out, mode, nd - 1))


def _sizes_of_merged(t: Tensor, mode: LabelMode, dim: int) -> list[Vector]:
    """The sizes whose product is that of a dimension in which several labelled ones were merged (a mixture of kernels,
    flattened)."""
    layers = [x for x in mode.layers(t) if dim in lab.varying(x)]
    if len(layers) < 2 or mode.units is not None:
        return [size_along(t, mode, dim)]
    parts = [lab.first_along(x, dim).unique() for x in layers]
    rest, left = divmod(t.shape[dim], math.prod(len(p) for p in parts))
    return [*parts, rest] if not left and all(int(p[0]) >= 0 for p in parts) else [size_along(t, mode, dim)]


def _contracted(mode: LabelMode, layers: Layers, dim: int) -> tuple[Tensor | None, list[Tensor]]:
    """As `split_layers`, but batch dimensions are shared: labels stay [batch..., k] where they vary over both."""
    along = [x for x in layers if dim in lab.varying(x)]
    rest = [x for x in layers if dim not in lab.varying(x)]
    if len(along) != 1:
        for layer in along:
            mode.freeze(layer, MANY)
        return None, rest
    small = lab.narrow(along[0], lab.varying(along[0]))
    free = small.ndim - 1 if dim == small.ndim - 2 else small.ndim - 2
    if small.shape[free] > 1:
        best = small.amax(free, keepdim=True)
        mode.tie(small, best.expand_as(small))
        small = best
    return small.squeeze(free), rest


def size_along(t: Tensor, mode: LabelMode, dim: int, other: Tensor | None = None) -> Vector:
    """A dimension of a tensor (or of `other`, if it has the labels) for the cost."""
    for tensor in (t, other):
        if tensor is not None:
            for layer in mode.layers(tensor):
                if dim in lab.varying(layer):
                    return lab.first_along(layer, dim)
    return t.shape[dim]


@rule("aten.mm", "aten.bmm", "aten.matmul")
def mm(mode: LabelMode, call: Call) -> None:
    if call.args[0].ndim == call.args[1].ndim:
        matmul(mode, call, call.args[0], call.args[1])
    else:
        unknown(mode, call)


@rule("aten.addmm", "aten.baddbmm", "aten.addbmm")
def addmm(mode: LabelMode, call: Call) -> None:
    matmul(mode, call, call.args[1], call.args[2], call.args[0])


def _silenced(position: int) -> Any:
    """Reference run: the operand at `position` reads as zero where its unit was removed."""

    def run(mode: LabelMode, call: Call) -> Any:
        args = list(call.args)
        args[position] = mode.silence(args[position], [args[position].ndim - 1])
        return call.func(*args, **call.kwargs)

    return run


def _convolution_kept(mode: LabelMode, call: Call) -> Any:
    """Reference run: removed input channels read as zero; a kernel that slides over units sees the kept ones only."""
    x = call.args[0]
    for d, idx in mode.kept_along(x, range(2, x.ndim)).items():
        out = call.func(x.index_select(d, idx), *call.args[1:], **call.kwargs)
        shape = [x.shape[d] if e == d else n for e, n in enumerate(out.shape)]
        return out.new_zeros(shape).index_copy_(d, idx, out)
    return call.func(mode.silence(x, [1]), *call.args[1:], **call.kwargs)


MIXERS["torchvision.deform_conv2d"] = _convolution_kept
MIXERS.update(dict.fromkeys(("aten.convolution", "aten._convolution", "aten.mkldnn_convolution"), _convolution_kept))
MIXERS.update(
    {"aten.mm": _silenced(0), "aten.bmm": _silenced(0), "aten.addmm": _silenced(1), "aten.baddbmm": _silenced(1)}
)
COUNTED.update(("torchvision.deform_conv2d", "aten.convolution", "aten.mm", "aten.bmm", "aten.addmm", "aten.baddbmm"))
