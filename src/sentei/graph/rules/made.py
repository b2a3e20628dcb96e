"""Tensors that the forward makes itself: zeros of the size of an activation, statistics expanded to it.

Whether their size follows a cut cannot be seen from a number. They get labels of their own, which tie them to what they
meet; the trial cuts then show whether they follow.
"""

from __future__ import annotations

from torch import Tensor, nn

from sentei.graph import labels as lab
from sentei.graph.calls import COUNTED, Call, rule
from sentei.graph.tracer import LabelMode

UNIFORM = [f"aten.{name}" for name in ("zeros", "ones", "full", "new_zeros", "new_ones", "new_full")]


@rule(*UNIFORM)
def uniform(mode: LabelMode, call: Call) -> None:
    """Channels may lie on dimension 1 or on the last. First states of recurrent layers follow with `hidden_size`."""
    out = call.out
    if isinstance(mode.module, (nn.RNNBase, nn.RNNCellBase)):
        mode.put(out, ())
        return
    dims = {0} if out.ndim == 1 else {1, out.ndim - 1}
    if out.is_floating_point():
        found = [mode.own_labels("made", out, d) for d in sorted(dims) if d < out.ndim]
        mode.put(out, [layer for layer in found if layer is not None])


def expanded_dims(t: Tensor) -> list[int]:
    """Dimensions along which all elements are one, in a tensor that was expanded (or the copy of one)."""
    noted: list[int] = getattr(t, "_sentei_expanded", [])
    return noted or [d for d, n in enumerate(t.shape) if n > 1 and t.stride(d) == 0]


def note_expanded(source: Tensor, copy: Tensor) -> None:
    dims = expanded_dims(source)
    if dims and copy.shape == source.shape:
        copy._sentei_expanded = dims  # type: ignore[attr-defined]


def merged_expansion(mode: LabelMode, x: Tensor, out: Tensor) -> list[Tensor]:
    """Labels for a reshape that merges an expanded dimension with others, into the size of an activation."""
    taken = {d for layer in mode.layers(x) for d in lab.varying(layer)}
    layers = []
    expanded = expanded_dims(x)
    for old, _ in lab.blocks(x.shape, out.shape) if expanded else []:
        own = [d for d in old if d in expanded]
        if len(own) == 1 and sum(x.shape[d] > 1 for d in old) > 1 and not taken.intersection(old):
            layer = mode.own_labels("merged", x, own[0])
            if layer is not None:
                layers.append(lab.reshape(layer, out.shape)[0])
    return layers


COUNTED.update(UNIFORM)
