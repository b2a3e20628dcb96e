"""Run a model once on label layers: every operation of its own forward goes to its rule.

The operation runs on meta tensors (no compute), then its rule moves the labels. The same mode runs on real tensors to
compute the reference of a cut (see `sentei.surgery.check`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sentei.graph.calls import COUNTED, MIXERS, RULES
from sentei.graph.operation import Call
from sentei.graph.record import Numbers, Occurrence
from sentei.graph.shapes import MIXED, SHAPES
from sentei.graph.tracer import Failure, LabelMode, first_line, unknown

OVERWRITES = ("aten.copy_", "aten.fill_", "aten.zero_")
"""Operations that leave nothing of what they write on."""


class Dispatcher(LabelMode):
    """Watches every aten operation of a forward pass."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.op += 1
        call = Call(func, args, kwargs or {})
        kind = (self.where, call.name)
        self.trace.counts[kind] += 1
        self.occurrence = Occurrence(*kind, self.trace.counts[kind])
        if call.name == "aten.index":
            call.args = (call.args[0], _places(call.args[1]))
        labelled = [t for t in call.tensors() if self.layers(t)]
        numbers = call.numbers()
        if numbers:
            self._compute_with(call, numbers)
        try:
            call.out = self._run(call)
        except Exception as error:
            if self.failed is None or self.failed.error is not error:
                acts = [t for t in labelled if id(t) not in self.sources] or labelled
                layers = tuple(x for t in acts for x in self.layers(t))
                self.failed = Failure(first_line(error), self.where, layers, error, self.at)
            raise
        if func._schema.is_mutable or func.is_view:
            self.remember_alias(call)
        if labelled or call.name in COUNTED:
            self._apply(call)
        elif func._schema.is_mutable:
            for out in call.outputs():
                if getattr(out, "_sentei_layers", None) or call.name in OVERWRITES:
                    self.write(out, ())
        if self.count_cost and self.units is None:
            self.lives.note(self.op, call, self.sources, self.sizes)
        return call.out

    def _apply(self, call: Call) -> None:
        fn = RULES.get(call.name)
        if fn is None and torch.Tag.pointwise in call.func.tags:
            fn = RULES["pointwise"]
        try:
            (fn or unknown)(self, call)
        except Exception as error:  # a rule that meets a case it was not written for must not stop the model
            for t in (*call.tensors(), *call.outputs()):
                self.give_up(t, f"the rule for {call.name} failed: {type(error).__name__}: {first_line(error)}")

    def _compute_with(self, call: Call, numbers: Numbers) -> None:
        """Note the plain numbers that an operation computes with, or exchange them for the given ones."""
        self.trace.numbers[self.occurrence] = numbers
        if self.occurrence in self.given:
            call.compute_with(self.given[self.occurrence])

    def _run(self, call: Call) -> Any:
        if self.kept is not None and call.name in MIXERS:
            return MIXERS[call.name](self, call)
        tensors = list(call.tensors())
        if any(t.is_meta for t in tensors):
            if call.name not in MIXED and not all(t.is_meta for t in tensors):
                return _run_mixed(call)
            shape = SHAPES.get(call.name)
            out = None if shape is None else shape(call.args, call.kwargs)
            if out is not None:
                return out
        elif not tensors and str(call.kwargs.get("device")) == "meta":
            dtype = call.kwargs.get("dtype")
            integer = dtype is not None and not dtype.is_floating_point
            if (integer or call.name == "aten.arange") and call.name != "aten.empty":
                return call.func(*call.args, **{**call.kwargs, "device": "cpu"})
        return call.func(*call.args, **call.kwargs)


def _places(table: Sequence[Tensor | None]) -> list[Tensor | None]:
    """An index without masks whose values are known: how much they pick cannot be told on meta tensors."""
    out: list[Tensor | None] = []
    for i in table:
        known = i is not None and i.dtype == torch.bool and not i.is_meta
        out += i.nonzero().unbind(1) if i is not None and known else [i]
    return out


def _run_mixed(call: Call) -> Any:
    """Meta activations meet real tensors (index tables, constants): compute shapes on meta."""

    def meta(x: Any) -> Any:
        if isinstance(x, Tensor) and not x.is_meta:
            return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")
        return type(x)(meta(y) for y in x) if isinstance(x, (list, tuple)) else x

    args, kwargs = [meta(a) for a in call.args], {k: meta(v) for k, v in call.kwargs.items()}
    out = call.func(*args, **kwargs)
    return call.args[0] if call.func._schema.is_mutable and isinstance(call.args[0], Tensor) else out
