"""What one pass of a network holds and computes: parameters, multiply-accumulates and widths of its layers, and the
memory that it needs at its worst moment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from sentei.graph.inputs import Inputs
from sentei.train.passes import Alive, evaluating


@dataclass(frozen=True)
class Layer:
    """A module that multiplies: its multiply-accumulates in a pass, and how many channels it reads and writes."""

    macs: int
    inputs: int | None
    outputs: int | None


@dataclass(frozen=True)
class Survey:
    """A network on some inputs.

    `memory_bytes`: parameters and buffers, and the inputs and activations that are alive at the worst moment of a pass
    in PyTorch. A runtime that shares or fuses buffers may need less, one that packs weights anew may need more.
    """

    macs: int
    params: int
    memory_bytes: int
    layers: Mapping[str, Layer]


def survey(model: nn.Module, example: Any) -> Survey:
    """Watch one pass of a network in evaluation mode.

    >>> survey(torch.nn.Linear(8, 4), torch.zeros(2, 8)).macs
    64

    Bytes in this example: (8 * 4 + 4) parameters, 2 * 8 inputs and 2 * 4 outputs, four bytes each:

    >>> survey(torch.nn.Linear(8, 4), torch.zeros(2, 8)).memory_bytes
    240
    """
    inputs = Inputs.real(example)
    with evaluating(model), torch.no_grad():
        memory, flops = _memory(model, inputs), _flops(model, inputs)
    params = sum(p.numel() for p in model.parameters())
    return Survey(flops.get("Global", 0) // 2, params, memory, _layers(model, flops))


def _memory(model: nn.Module, inputs: Inputs) -> int:
    args, kwargs = inputs.copied()
    held = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in [*model.parameters(), *model.buffers()]}
    with Alive(held, [*args, *kwargs.values()]) as alive:
        model(*args, **kwargs)
    return sum(held.values()) + alive.peak


def _flops(model: nn.Module, inputs: Inputs) -> dict[str, int]:
    """Operations by module as PyTorch counts them, "Global" all of them. Attention runs as the products that it is made
    of: fused operations are not counted."""
    from torch.utils.flop_counter import FlopCounterMode  # imports triton, where there is one

    args, kwargs = inputs.copied()
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counted:
            model(*args, **kwargs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    return {name: sum(by.values()) for name, by in counted.get_flop_counts().items()}


def _layers(model: nn.Module, flops: Mapping[str, int]) -> dict[str, Layer]:
    """Modules with products of their own, in the order of the network."""
    root = type(model).__name__
    of = {name: flops.get(f"{root}.{name}" if name else root, 0) for name, _ in model.named_modules()}
    out = {}
    for name, module in model.named_modules():
        own = of[name] - sum(of[f"{name}.{child}" if name else child] for child, _ in module.named_children())
        if own > 0 and name:
            out[name] = Layer(own // 2, _width(module, "in"), _width(module, "out"))
    return out


def _width(module: nn.Module, side: str) -> int | None:
    found = getattr(module, f"{side}_channels", getattr(module, f"{side}_features", None))
    return found if isinstance(found, int) else None
