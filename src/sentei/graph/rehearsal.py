"""One forward pass of a model on a copy without values: whatever it does to the model's state happens to the copy."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

import sentei.graph.rules  # noqa: F401  (registers the rules)
from sentei.graph.copying import rebuilt
from sentei.graph.fields import reads_noted
from sentei.graph.forward import run
from sentei.graph.inputs import Inputs
from sentei.graph.memory import memories
from sentei.graph.part import Forward
from sentei.graph.record import Ending
from sentei.graph.resize import Attribute, Cuts, carries_units, cut_shape, named_tensors
from sentei.graph.tracer import LabelMode

OUTCOME = "comes from the pass in training mode, which did not end"


def rehearse(
    mode: LabelMode,
    model: nn.Module,
    inputs: Inputs,
    cuts: Cuts | None = None,
    attrs: Iterable[Attribute] = (),
    training: Ending | None = None,
    forward: Forward | None = None,
) -> None:
    """Run a copy of the model on meta tensors under `mode`, in the shapes and with the attributes that a cut gives it.

    First in eval mode and then, where that leaves parameters unread (auxiliary heads, say), in train mode. With known
    units it runs in train mode if the first trace did, and must end as that did: `training`. `forward` runs the part
    that is traced.
    """
    cuts = cuts or {}
    tensors, names = _stand_ins(model, cuts)
    actor = rebuilt(model, tensors, attrs)
    own = named_tensors(actor)
    mode.sources = {id(t): n for n, t in own.items() if n in names}
    mode.trace.read.update(own.keys() - names)
    actor.eval()
    first = mode.units is None
    with reads_noted(mode, actor) if first else nullcontext():
        run(mode, actor, inputs, forward)
    if first:
        mode.trace.memories += memories(model, actor)
    if first and any(own[name].ndim > 1 for name in own.keys() - mode.trace.read):
        mode.trace.training = _train(mode, actor, inputs, forward)
    elif not first and training is not None:
        ended = _train(mode, actor, inputs, forward)
        if ended != training and mode.failed is not None:
            raise mode.failed.error


def _train(mode: LabelMode, actor: nn.Module, inputs: Inputs, forward: Forward | None) -> Ending:
    """A pass in train mode, which may fail (it may want targets): what it showed until then still counts."""
    mode.count_cost = False
    actor.train()
    for m in actor.modules():
        if isinstance(m, (_NormBase, _DropoutNd)):
            m.eval()
    before, known, started = len(mode.trace.produced), mode.trace.total, mode.op
    try:
        run(mode, actor, inputs, forward)
    except Exception as error:
        for vector in mode.trace.produced[before:]:
            mode.freeze(vector[vector >= known], OUTCOME)
        if mode.units is None:
            mode.failed = None
        return mode.op - started, type(error).__name__
    return 0, ""


def _stand_ins(model: nn.Module, cuts: Cuts) -> tuple[dict[int, Tensor], set[str]]:
    """By id of parameters and buffers: meta tensors of the cut shape. Integer tables keep their values."""
    tensors: dict[int, Tensor] = {}
    names: set[str] = set()
    for name, t in named_tensors(model).items():
        if not carries_units(t) or t.ndim == 0:
            new = t.detach().clone()
            if carries_units(t):
                names.add(name)
        else:
            new = torch.empty(cut_shape(t.shape, cuts.get(name, ())), dtype=t.dtype, device="meta")
            names.add(name)
        tensors[id(t)] = nn.Parameter(new, requires_grad=t.requires_grad) if isinstance(t, nn.Parameter) else new
    return tensors, names


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """A trace makes many small tensors and no cycles; collecting in between costs more than the trace."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
