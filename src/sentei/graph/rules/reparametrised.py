"""Weights that are computed from others by norms: weight_norm is cut exactly, spectral_norm is not cut."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm

from sentei.graph import labels as lab
from sentei.graph.calls import Call, rule
from sentei.graph.record import WeightNorm
from sentei.graph.rules.pointwise import combine
from sentei.graph.shapes import MIXED, SHAPES, like
from sentei.graph.tracer import LabelMode, unknown

COMPUTED = "weight_norm of a computed weight"
SPECTRAL = (
    "spectral_norm divides by a norm of the whole weight: remove it first "
    "(torch.nn.utils.parametrize.remove_parametrizations or torch.nn.utils.remove_spectral_norm)"
)


@rule("aten._weight_norm")
def weight_norm(mode: LabelMode, call: Call) -> None:
    """g v / |v|, with a norm for each index of `dim` (-1: one for all). A cut multiplies g by what |v| loses."""
    v, g, dim = call["v"], call["g"], call["dim"]
    layers = combine(mode, v.shape, [(v.shape, mode.layers(v)), (g.shape, mode.layers(g))], outer=True)
    if id(v) in mode.sources and id(g) in mode.sources:
        norm = WeightNorm(mode.sources[id(v)], mode.sources[id(g)], dim)
        if norm not in mode.trace.weight_norms:  # a second call, in training mode perhaps, is the same weight
            mode.trace.weight_norms.append(norm)
    else:
        for layer in layers:
            if set(lab.varying(layer)) - {dim}:
                mode.freeze(layer, COMPUTED)
    mode.put(call.out, layers)


def _shape(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    v, g, dim = *args[:2], args[2] if len(args) > 2 else 0
    sizes = [n if d == dim else 1 for d, n in enumerate(v.shape)]
    if g.ndim and list(g.shape) != sizes:
        raise RuntimeError(f"weight_norm of a weight {tuple(v.shape)} meets magnitudes {tuple(g.shape)}")
    return like(v)


@rule("aten.mv")
def product_with_a_vector(mode: LabelMode, call: Call) -> None:
    """The power iteration of spectral_norm."""
    if not _spectral(mode.module):
        unknown(mode, call)
        return
    for t in call.tensors():
        mode.give_up(t, SPECTRAL)


def _spectral(module: nn.Module | None) -> bool:
    hooks = [] if module is None else module._forward_pre_hooks.values()
    return isinstance(module, _SpectralNorm) or any(isinstance(hook, SpectralNorm) for hook in hooks)


SHAPES["aten._weight_norm"] = _shape
MIXED.add("aten._weight_norm")
