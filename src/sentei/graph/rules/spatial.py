"""Pooling, resampling and padding work on the trailing dimensions of each channel and leave channels alone."""

from __future__ import annotations

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
    layers = within_channels(mode, mode.layers(x), x.ndim - SPATIAL_DIMS[call.name], call.name)
    for t in list(call.tensors())[1:]:
        mode.give_up(t, f"steers {call.name}")
    for out in call.outputs():
        mode.put(out, [layer.expand(out.shape) for layer in layers])


def within_channels(mode: LabelMode, given: Layers, lead: int, name: str) -> list[Tensor]:
    """Layers (compact) after an operation that mixes all dimensions from `lead` on, and no others."""
    layers: list[Tensor] = []
    for layer in given:
        vary = lab.varying(layer)
        space = [d for d in vary if d >= lead]
        if space and len(space) == len(vary):
            mode.freeze(layer, f"varies over space in {name}")
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
    lead = x.ndim - (2 if call.name.endswith("2d") else 3)
    mode.put(out, [layer.expand(out.shape) for layer in within_channels(mode, both, lead, call.name)])
