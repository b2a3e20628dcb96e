"""The tensors of a cut network: slices, and magnitudes of weight norms that make up for what was removed."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sentei.graph import ChannelGraph
from sentei.graph.resize import Cuts, select


def sliced(graph: ChannelGraph, named: Mapping[str, Tensor], cuts: Cuts) -> dict[str, Tensor]:
    """The tensors that a plan changes, by name; differentiable, views where that is possible."""
    out = {name: select(named[name], cuts[name]) for name in named if name in cuts}
    for norm in graph.trace_record.weight_norms:
        lost = [d for d, _ in cuts.get(norm.direction, ()) if d != norm.dim]
        if lost and norm.magnitude in named:
            own = [(d, idx) for d, idx in cuts[norm.direction] if d == norm.dim]
            before = select(torch.norm_except_dim(named[norm.direction], 2, norm.dim), own)
            left = out[norm.direction].contiguous()
            after = torch.norm_except_dim(left, 2, norm.dim)
            gone = after == 0  # where no direction is left: any will do, times zero
            out[norm.direction] = torch.where(gone, torch.ones_like(left), left)
            magnitude = out.get(norm.magnitude, named[norm.magnitude])
            out[norm.magnitude] = magnitude * torch.where(gone, 0 * before, after / before)
    return out


def laid_out(new: Tensor, old: Tensor, copy: bool = False) -> Tensor:
    """What was sliced out of a tensor in that one's memory format, with no other strides: kernels for other strides,
    also of dimensions of one element, round otherwise. Copied only where needed, unless `copy`."""
    layouts = {4: torch.channels_last, 5: torch.channels_last_3d}
    last = layouts.get(old.ndim, torch.contiguous_format)
    kept = last if not old.is_contiguous() and old.is_contiguous(memory_format=last) else torch.contiguous_format
    strides = torch.empty(new.shape, device="meta", memory_format=kept).stride()
    return new.clone(memory_format=kept) if copy or new.stride() != strides else new
