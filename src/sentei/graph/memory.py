"""Features that a network keeps from one pass to the next (`self.last = y`): a cut network begins without them.

What was kept has the widths of the network that kept it. So where a cut changes them, it empties the attribute to what
it held when the network was traced; a proof empties those of both networks.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from sentei.graph import labels as lab
from sentei.graph.fields import BASE
from sentei.graph.outputs import output_tensors
from sentei.graph.record import Memory
from sentei.graph.resize import ABSENT, Attribute, is_layer


def memories(model: nn.Module, actor: nn.Module) -> list[Memory]:
    """The attributes in which a copy of the model kept features in a pass, where the model itself holds none."""
    out = []
    for (name, module), after in zip(model.named_modules(), actor.modules(), strict=True):
        for attr, value in () if is_layer(after) else vars(after).items():
            labels = _labels(value) if attr not in BASE else None
            before = vars(module).get(attr, ABSENT)
            if labels is not None and not output_tensors(before):
                out.append(Memory(name, attr, _copied(before), labels))
    return out


def emptied(model: nn.Module, found: Iterable[Memory]) -> list[Attribute]:
    """The attributes of a model that hold features of earlier passes, with what they are to hold instead."""
    modules = dict(model.named_modules())
    held = [(modules[m.module], m) for m in found if m.module in modules]
    return [(module, m.attr, _copied(m.before)) for module, m in held if output_tensors(vars(module).get(m.attr))]


def _copied(before: Any) -> Any:
    return before if before is ABSENT else copy.deepcopy(before)


def _labels(value: Any) -> Tensor | None:
    """All labels on the tensors in an object; None if there are none."""
    layers = [x for t in output_tensors(value) for x in getattr(t, "_sentei_layers", ())]
    found = [lab.narrow(x, lab.varying(x)).reshape(-1) for x in layers]
    return torch.cat(found) if found else None
