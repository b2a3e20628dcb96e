"""Pooling, resampling and padding work on the trailing dimensions of each channel and leave channels alone."""

from __future__ import annotations

from torch import Tensor

from sentei.graph import labels as lab
from sentei.graph.calls import Call, rule
from sentei.graph.tracer import LabelMode

KINDS = {
    1: """avg_pool1d max_pool1d adaptive_avg_pool1d adaptive_max_pool1d max_pool1d_with_indices upsample_nearest1d
          upsample_linear1d reflection_pad1d replication_pad1d _upsample_nearest_exact1d""",
    2: """avg_pool2d max_pool2d max_pool2d_with_indices adaptive_avg_pool2d _adaptive_avg_pool2d adaptive_max_pool2d
          fractional_max_pool2d max_unpool2d upsample_nearest2d upsample_bilinear2d upsample_bicubic2d
          _upsample_bilinear2d_aa _upsample_bicubic2d_aa _upsample_nearest_exact2d reflection_pad2d replication_pad2d
          grid_sampler_2d mkldnn_max_pool2d mkldnn_adaptive_avg_pool2d _upsample_lanczos2d_aa""",
    3: """avg_pool3d max_pool3d max_pool3d_with_indices adaptive_avg_pool3d _adaptive_avg_pool3d adaptive_max_pool3d
          upsample_nearest3d upsample_trilinear3d reflection_pad3d replication_pad3d grid_sampler_3d
          _upsample_nearest_exact3d""",
}
SPATIAL_DIMS = {f"aten.{name}": k for k, names in KINDS.items() for name in names.split()}


@rule(*SPATIAL_DIMS)
def spatial(mode: LabelMode, call: Call) -> None:
    x, outs = call.args[0], call.outputs()
    lead = x.ndim - SPATIAL_DIMS[call.name]
    layers: list[Tensor] = []
    for layer in mode.layers(x):
        vary = lab.varying(layer)
        space = [d for d in vary if d >= lead]
        if space and len(space) == len(vary):
            mode.freeze(layer, f"varies over space in {call.name}")
            continue
        small = lab.narrow(layer, vary)
        if space:
            best = small.amax(space, keepdim=True)
            mode.tie(small, best.expand_as(small))
            small = best
        layers.append(small)
    for t in list(call.tensors())[1:]:
        mode.give_up(t, f"steers {call.name}")
    for out in outs:
        mode.put(out, [layer.expand(out.shape) for layer in layers])
