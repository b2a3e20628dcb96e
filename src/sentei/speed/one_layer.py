"""Single layers of a traced network at any widths, ready to run: what a latency table is measured on."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from sentei.extras import required
from sentei.graph.latency import axes, size
from sentei.graph.record import Contraction, Kernel
from sentei.speed.runtimes import OnFiles, Pass, runtime_of

PRODUCTS = ("aten.mm", "aten.addmm", "aten.bmm", "aten.baddbmm")
CONVOLUTIONS: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED: dict[int, Callable[..., Tensor]] = {
    1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d,
}  # fmt: skip


@dataclass(frozen=True)
class Layer:
    """A convolution or matrix product of fixed sizes; equal layers take equally long.

    `input` and `weight` are the shapes of what it multiplies; `kernel` is that of a convolution.
    """

    input: tuple[int, ...]
    weight: tuple[int, ...]
    kernel: Kernel | None

    def prepare(self, runtime: str, threads: int) -> Pass:
        """A pass of the layer alone, on random numbers. torch.compile computes such a layer as PyTorch itself does."""
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(self.input, generator=generator)
        w = torch.randn(self.weight, generator=generator) / math.sqrt(math.prod(self.weight[1:]))
        if runtime in ("eager", "compile"):
            return self._torch(x, w, threads)
        ready = runtime_of(runtime)
        assert isinstance(ready, OnFiles)
        inputs = [x.numpy()] if len(self.weight) != 3 or self.kernel is not None else [x.numpy(), w.numpy()]
        return ready.of_bytes(self._onnx(w), inputs, threads)

    def _torch(self, x: Tensor, w: Tensor, threads: int) -> Pass:
        k = self.kernel

        def once() -> Tensor:
            if torch.get_num_threads() != threads:
                torch.set_num_threads(threads)
            with torch.inference_mode():
                if k is None:
                    return x @ w
                if k.transposed:
                    return TRANSPOSED[len(k.size)](x, w, None, k.stride, k.padding, 0, k.groups, k.dilation)
                return CONVOLUTIONS[len(k.size)](x, w, None, k.stride, k.padding, k.dilation, k.groups)

        return once

    def _onnx(self, w: Tensor) -> bytes:
        onnx = required("onnx", "export", "a latency table")
        helper, k = onnx.helper, self.kernel
        floats = onnx.TensorProto.FLOAT
        given = [helper.make_tensor_value_info("x", floats, self.input)]
        weights = []
        if k is None and len(self.weight) == 3:
            given.append(helper.make_tensor_value_info("w", floats, self.weight))
        else:
            weights.append(onnx.numpy_helper.from_array(w.numpy(), "w"))
        if k is None:
            node = helper.make_node("MatMul", ["x", "w"], ["y"])
        else:
            node = helper.make_node(
                "ConvTranspose" if k.transposed else "Conv", ["x", "w"], ["y"], kernel_shape=k.size, strides=k.stride,
                pads=k.padding * 2, dilations=k.dilation, group=k.groups,
            )  # fmt: skip
        out = helper.make_tensor_value_info("y", floats, None)
        graph = helper.make_graph([node], "layer", given, [out], weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
        payload: bytes = model.SerializeToString()
        return payload


def layer_at(c: Contraction, sizes: Sequence[int]) -> Layer | None:
    """A contraction with these sizes on its `axes`; None for one that cannot be run alone."""
    where = axes(c)
    full = [size(f) for f in c.factors]
    labelled = [i for i, f in enumerate(c.factors) if isinstance(f, Tensor)]
    if set(labelled) - set(where):
        return None
    now = list(full)
    for place, wanted in zip(where, sizes, strict=True):
        now[place] = wanted
    if c.kernel is not None:
        return _convolution(c.kernel, full, now, labelled)
    if c.operation in PRODUCTS:
        return _product(c.operation, now)
    return None


def _convolution(k: Kernel, full: Sequence[int], now: Sequence[int], labelled: Sequence[int]) -> Layer | None:
    batch, outputs, inputs = now[0], now[-2], now[-1]
    if k.transposed and k.groups > 1:
        return None
    groups = k.groups
    if groups > 1 and len(full) - 1 not in labelled:  # whole groups go
        groups = max(1, groups * outputs // full[-2])
        outputs = groups * (full[-2] // k.groups)
    elif outputs % groups:
        outputs = -(-outputs // groups) * groups
    own = Kernel(k.size, k.stride, k.padding, k.dilation, groups, k.transposed, k.space)
    weight = (inputs, outputs, *k.size) if k.transposed else (outputs, inputs, *k.size)
    return Layer((batch, inputs * groups, *k.space), weight, own)


def _product(operation: str, now: Sequence[int]) -> Layer:
    if operation in ("aten.bmm", "aten.baddbmm"):
        batch, rows, inner, columns = now[0], now[1], now[2], math.prod(now[3:])
        return Layer((batch, rows, inner), (batch, inner, columns), None)
    rows, inner, columns = now[0], now[1], math.prod(now[2:])
    return Layer((rows, inner), (inner, columns), None)
