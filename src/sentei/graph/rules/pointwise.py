"""Elementwise operations: operands with labels on the same dimensions share their units."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sentei.graph import labels as lab
from sentei.graph.calls import Call, rule
from sentei.graph.labels import Layers
from sentei.graph.tracer import LabelMode

# Elementwise, but without torch.Tag.pointwise in some or all supported versions of torch.
UNTAGGED = [
    "hardswish",
    "hardswish_",
    "hardtanh",
    "hardtanh_",
    "elu_",
    "celu",
    "celu_",
    "selu",
    "selu_",
    "mish_",
    "log_sigmoid_forward",
    "native_dropout",
    "rrelu_with_noise",
    "rrelu_with_noise_",
    "prelu",
    "_prelu_kernel",
    "softplus",
    "softshrink",
    "hardshrink",
    "threshold_",
    "bernoulli",
    "bernoulli_",
    "zeros_like",
    "ones_like",
    "full_like",
    "empty_like",
    "rand_like",
    "randn_like",
    "_conj",
    "_neg_view",
    "fake_quantize_per_tensor_affine",
    "tril",
    "triu",
    "masked_fill_",
    "add_",
    "sub_",
    "mul_",
    "div_",
    "where",
    "nan_to_num",
    "clamp_",
    "_to_copy",
    "normal_",
    "uniform_",
    "quantize_per_tensor",
    "lerp_",
    "dropout",
    "relu6",
    "relu6_",
    "silu_",
    "gelu_",
    "leaky_relu_",
    "elu",
    "celu",
    "threshold",
    "hardsigmoid",
    "hardsigmoid_",
    "sigmoid_",
    "tanh_",
    "exp_",
    "sqrt_",
    "pow_",
    "clamp_min_",
    "clamp_max_",
    "addcmul_",
    "addcdiv_",
    "_fused_dropout",
    "rsub",
    "complex",
    "polar",
    "real",
    "imag",
]

PADDED = "is added to constants of a fixed size (zero padding)"
FIXED_SIZE = "meets a tensor whose size does not follow the channels"


def combine(
    mode: LabelMode, shape: Sequence[int], operands: Sequence[tuple[Sequence[int], Layers]], outer: bool = False
) -> Layers:
    """Tie the layers of broadcast operands where they lie on the same dimensions; returns the layers of the result.

    An operand that has no labels where another has some keeps its size, so those units must stay, and the result has a
    size as fixed as that; not so in an `outer` product, where each operand brings dimensions of its own.
    """
    if len(operands) == 1 and tuple(operands[0][0]) == tuple(shape):
        return operands[0][1]
    labelled = [(k, layer.expand(shape)) for k, (_, layers) in enumerate(operands) for layer in layers]
    dims = [lab.varying(layer) for _, layer in labelled]
    out = []
    for cluster in lab.overlap_clusters(dims):
        axes = sorted(set().union(*(dims[i] for i in cluster)))
        members = [labelled[i] for i in cluster]
        owners = {k for k, _ in members}
        merged = [_merge(mode, axes, members)] if len(owners) > 1 else [layer for _, layer in members]
        for layer in merged:
            if layer is not None and not outer and _meets_fixed(shape, axes, operands, owners):
                mode.freeze(layer, FIXED_SIZE)
            elif layer is not None:
                out.append(layer.expand(shape))
    return tuple(out)


def _meets_fixed(
    shape: Sequence[int], axes: Sequence[int], operands: Sequence[tuple[Sequence[int], Layers]], owners: set[int]
) -> bool:
    """Whether an operand without labels on these axes spans them."""
    for k, (size, _) in enumerate(operands):
        lead = len(shape) - len(size)
        if k not in owners and any(d >= lead and size[d - lead] > 1 for d in axes):
            return True
    return False


def _merge(mode: LabelMode, axes: Sequence[int], members: Sequence[tuple[int, Tensor]]) -> Tensor | None:
    """One layer out of the overlapping layers of several operands (compact along `axes`)."""
    if len({k for k, _ in members}) < len(members):
        for _, layer in members:
            mode.freeze(layer, "two of its axes meet in one elementwise operation")
        return None
    merged = lab.narrow(members[0][1], axes)
    for _, layer in members[1:]:
        other = lab.narrow(layer, axes)
        mode.tie(merged, other, PADDED)
        merged = torch.where(merged >= 0, merged, other)
    return merged


def operands_of(mode: LabelMode, call: Call) -> list[tuple[Sequence[int], Layers]]:
    """Shapes and layers of the operands; dimensions that an unlabelled tensor was expanded along count as size 1."""
    out: list[tuple[Sequence[int], Layers]] = []
    for t in call.tensors():
        layers = mode.layers(t)
        size = t.shape if layers else [n if s else 1 for n, s in zip(t.shape, t.stride(), strict=True)]
        out.append((size, layers))
    return out


@rule("pointwise", *(f"aten.{name}" for name in UNTAGGED))
def pointwise(mode: LabelMode, call: Call) -> None:
    outs = call.outputs()
    if not outs:
        return
    layers = combine(mode, outs[0].shape, operands_of(mode, call))
    for out in outs:
        if call.func._schema.is_mutable:
            mode.write(out, layers)
        else:
            mode.put(out, layers)


@rule("aten.add", "aten.add_", "aten.sub", "aten.sub_")
def add(mode: LabelMode, call: Call) -> None:
    labelled = [layer for _, layers in operands_of(mode, call) for layer in layers]
    if len(labelled) > 1:
        mode.trace.sums.append(tuple(lab.narrow(layer, lab.varying(layer)).flatten() for layer in labelled))
    pointwise(mode, call)


@rule("aten.prelu", "aten._prelu_kernel")
def prelu(mode: LabelMode, call: Call) -> None:
    x, weight = call.args[0], call.args[1]
    layers = mode.layers(weight)
    shape = list(weight.shape)
    if weight.ndim == 1:
        shape = [-1 if d == 1 else 1 for d in range(x.ndim)]
        layers = tuple(layer.reshape(shape) for layer in layers)
        shape[1] = weight.shape[0]
    mode.put(call.out, combine(mode, x.shape, [(x.shape, mode.layers(x)), (shape, layers)]))


@rule("aten.copy_")
def copy_(mode: LabelMode, call: Call) -> None:
    target, source = call.args[0], call.args[1]
    mode.write(target, tuple(layer.expand(target.shape) for layer in mode.layers(source)))


@rule("aten.fill_", "aten.zero_")
def fill_(mode: LabelMode, call: Call) -> None:
    """A constant overwrites the values; the size still follows the channels, so the labels stay."""


@rule("aten.new_empty", "aten.new_empty_strided", "aten.is_same_size", "aten.sym_size", "aten.as_strided_")
def no_labels(mode: LabelMode, call: Call) -> None:
    """The result does not depend on the units of the operand."""
