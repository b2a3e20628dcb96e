"""What everything that reads units sees: one watched forward pass on real inputs.

A unit is read where a convolution or matrix product sums over it, or where statistics are taken over it. These are the
places at which a removed unit is silenced in the reference of a cut (see `sentei.surgery.check`); here they are
observed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from sentei.graph import ChannelGraph
from sentei.graph import labels as lab
from sentei.graph.copying import rebuilt
from sentei.graph.dispatch import Dispatcher
from sentei.graph.forward import run
from sentei.graph.inputs import Inputs, arguments
from sentei.graph.operation import Call
from sentei.graph.resize import carries_units, named_tensors

CONVOLUTIONS = ("aten.convolution", "aten._convolution", "aten.mkldnn_convolution")
PRODUCTS = ("aten.mm", "aten.addmm", "aten.bmm", "aten.baddbmm")


@dataclass(frozen=True)
class Reading:
    """One operation that reads units: `units[i]` (or -1) is the unit at index i of what it reads."""

    where: str
    """The module that runs."""
    op: str
    sums: bool
    """Whether it sums over the units, so that one that is zero adds nothing; otherwise it takes statistics."""
    weight: str | None
    """The parameter whose input dimension meets the units, if it is the weight of a convolution or linear module."""
    padded: bool
    """Whether a constant adds differently at different positions: zero padding, the phases of a transposed stride."""
    units: Tensor
    low: Tensor
    high: Tensor
    """Smallest and largest value at each index, over images and positions."""

    @property
    def value(self) -> Tensor:
        return (self.low + self.high) / 2


@dataclass
class Watch:
    """The readings of a forward pass, and for each module the BatchNorm that alone receives its output, if any."""

    readings: list[Reading] = field(default_factory=list)
    users: dict[str, list[str | None]] = field(default_factory=dict)

    def only_norm(self, where: str) -> str | None:
        users = self.users.get(where, [])
        return users[0] if len(users) == 1 else None


Answer = Callable[[int, Tensor, Reading], Tensor]


class _Watcher(Dispatcher):
    """A reference run in which nothing is removed and every place that would silence a unit takes note instead."""

    def __init__(self, model: nn.Module, graph: ChannelGraph, answer: Answer | None) -> None:
        sources = {id(t): n for n, t in named_tensors(model).items() if carries_units(t) and t.ndim}
        every = torch.ones(len(graph.grouping.group_of), dtype=torch.bool)
        super().__init__(sources, units=graph.slot_units(), kept=every)
        self.count_cost = False
        self.watch, self.answer = Watch(), answer
        self.call: Call | None = None

    def _run(self, call: Call) -> Any:
        self.call = call
        for t in call.tensors():
            origin = getattr(t, "_sentei_origin", None)
            if origin is not None:
                norm = self.where if "batch_norm" in call.name and isinstance(self.module, _BatchNorm) else None
                self.watch.users[origin].append(norm)
        out = super()._run(call)
        if call.name in CONVOLUTIONS + PRODUCTS and isinstance(out, Tensor):
            self.watch.users.setdefault(self.where, [])
            out._sentei_origin = self.where  # type: ignore[attr-defined]
        return out

    def silence(self, t: Tensor, dims: Any) -> Tensor:
        return self._read(t, dims, sums=True)

    def kept_along(self, t: Tensor, dims: Any) -> dict[int, Tensor]:
        self._read(t, dims, sums=False)
        return {}

    def _read(self, t: Tensor, dims: Iterable[int], sums: bool) -> Tensor:
        for layer in self.layers(t):
            vary = lab.varying(layer)
            if not set(dims).intersection(vary):
                continue
            rest = [d for d in range(t.ndim) if d not in vary]
            low, high = (t.amin(rest), t.amax(rest)) if rest else (t, t)
            units = lab.narrow(layer, vary).reshape(-1)
            weight, padded = self._reader(t) if sums and len(vary) == 1 else (None, False)
            found = Reading(
                self.where, self.call.name if self.call else "", sums, weight, padded, units,
                low.reshape(-1).double().cpu(), high.reshape(-1).double().cpu(),
            )  # fmt: skip
            self.watch.readings.append(found)
            if self.answer is not None and sums:
                t = self.answer(len(self.watch.readings) - 1, t, found)
        return t

    def _reader(self, t: Tensor) -> tuple[str | None, bool]:
        """The weight that meets `t` in the running operation, and whether zeros are padded around it."""
        module, call = self.module, self.call
        weight = getattr(module, "weight", None)
        if call is None or id(weight) not in self.sources or not isinstance(module, (_ConvNd, nn.Linear)):
            return None, False
        if isinstance(module, nn.Linear):
            return (self.sources[id(weight)] if call.name in PRODUCTS else None), False
        if call.name not in CONVOLUTIONS or call["weight"] is not weight:
            return None, False
        padded = isinstance(module, _ConvTransposeNd) or any(call["padding"])
        return self.sources[id(weight)], padded


def watch(model: nn.Module, graph: ChannelGraph, inputs: Any, answer: Answer | None = None) -> Watch:
    """Run the model in eval mode and note what reads units, and what it sees.

    `answer` may replace what a summing operation reads: it is called with the number of the reading, the tensor and
    the reading.
    """
    actor = rebuilt(model, {}).eval()
    mode = _Watcher(actor, graph, answer)
    run(mode, actor, Inputs.real(inputs), graph.forward)
    return mode.watch


SIZES = (1.0, 10.0, 0.1, 100.0)


def noise(seed: int) -> Callable[[Tensor], Tensor]:
    """Noise in the shape of a tensor, from image to image of other sizes: small ones, and some that make any ReLU
    fire and any clipping clip."""
    generator = torch.Generator().manual_seed(seed)

    def like(t: Tensor) -> Tensor:
        sizes = torch.tensor(SIZES, dtype=torch.float64)[(torch.arange(len(t)) + seed) % len(SIZES)]
        drawn = torch.randn(t.shape, generator=generator, dtype=torch.float64)
        return (drawn * sizes.view(-1, *[1] * (t.ndim - 1))).to(t)

    return like


def noisy(inputs: Any, seed: int) -> Any:
    """The inputs with noise added."""
    like = noise(seed)
    args, kwargs = arguments(inputs)

    def shaken(t: Any) -> Any:
        return t + like(t) if isinstance(t, Tensor) and t.is_floating_point() and t.ndim else t

    return {k: shaken(v) for k, v in kwargs.items()} if kwargs else tuple(shaken(a) for a in args)
