"""Pooling, resampling and padding work on the trailing dimensions of each channel and leave channels alone."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from sentei.graph import labels as lab
from sentei.graph.calls import Call, rule
from sentei.graph.labels import Layers
from sentei.graph.rules.pointwise import combine
from sentei.graph.tracer import LabelMode

KINDS = {
    1: """avg_pool1d max_pool1d adaptive_avg_pool1d adaptive_max_pool1d max_pool1d_with_indices upsample_nearest1d
          upsample_linear1d reflection_pad1d replication_pad1d _upsample_nearest_exact1d""",
    2: """avg_pool2d max_pool2d max_pool2d_with_indices adaptive_avg_pool2d _adaptive_avg_pool2d adaptive_max_pool2d
          fractional_max_pool2d upsample_nearest2d upsample_bilinear2d upsample_bicubic2d
          _upsample_bilinear2d_aa _upsample_bicubic2d_aa _upsample_nearest_exact2d reflection_pad2d replication_pad2d
          grid_sampler_2d mkldnn_max_pool2d mkldnn_adaptive_avg_pool2d _upsample_lanczos2d_aa""",
    3: """avg_pool3d max_pool3d max_pool3d_with_indices adaptive_avg_pool3d _adaptive_avg_pool3d adaptive_max_pool3d
          upsample_nearest3d upsample_trilinear3d reflection_pad3d replication_pad3d grid_sampler_3d
          _upsample_nearest_exact3d""",
}
SPATIAL_DIMS = {f"aten.{name}": k for k, names in KINDS.items() for name in names.split()}


@rule(*SPATIAL_DIMS)
def spatial(mode: LabelMode, call: Call) -> None:
    x = call.args[0]
    layers = within_channels(mode, mode.layers(x), trailing(x, SPATIAL_DIMS[call.name]), call.name)
    for t in list(call.tensors())[1:]:
        mode.give_up(t, f"steers {call.name}")
    for out in call.outputs():
        mode.put(out, [layer.expand(out.shape) for layer in layers])


def trailing(x: Tensor, n: int) -> list[int]:
    return list(range(x.ndim - n, x.ndim))


def within_channels(mode: LabelMode, given: Layers, dims: Sequence[int], name: str) -> list[Tensor]:
    """Layers (compact) after an operation that mixes what lies along `dims`, and nothing else."""
    layers: list[Tensor] = []
    for layer in given:
        vary = lab.varying(layer)
        space = [d for d in vary if d in dims]
        if space and len(space) == len(vary):
            mode.freeze(layer, f"is mixed along its channels by {name}")
            continue
        small = lab.narrow(layer, vary)
        if space:
            best = small.amax(space, keepdim=True)
            mode.tie(small, best.expand_as(small))
            small = best
        layers.append(small)
    return layers


@rule("aten.max_unpool2d", "aten.max_unpool3d")
def max_unpool(mode: LabelMode, call: Call) -> None:
    """The indices of a channel go with the channel."""
    x, indices, out = call.args[0], call.args[1], call.out
    both = combine(mode, x.shape, [(x.shape, mode.layers(x)), (indices.shape, mode.layers(indices))])
    dims = trailing(x, 2 if call.name.endswith("2d") else 3)
    mode.put(out, [layer.expand(out.shape) for layer in within_channels(mode, both, dims, call.name)])


@rule("torchvision.roi_align", "torchvision.roi_pool")
def regions(mode: LabelMode, call: Call) -> None:
    """[N, C, H, W] and boxes -> [boxes, C, h, w]."""
    x, boxes = call.args[:2]
    mode.give_up(boxes, f"steers {call.name}")
    layers = [x[:1] for x in within_channels(mode, mode.layers(x), (0, 2, 3), call.name)]
    for out in call.outputs():
        mode.put(out, [layer.expand(out.shape) for layer in layers])


@rule("aten._fft_r2c", "aten._fft_c2c", "aten._fft_c2r")
def fourier(mode: LabelMode, call: Call) -> None:
    """Along space (or time) each channel is transformed by itself; along channels they mix."""
    x, out = call.args[0], call.out
    dims = [d % x.ndim for d in call["dim"]]
    layers = within_channels(mode, mode.layers(x), dims, call.name)
    mode.put(out, [lab.narrow(v, lab.varying(v)).expand(out.shape) for v in layers])
