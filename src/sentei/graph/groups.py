"""From ties to units to groups: what must be removed together, and what is removable in the same way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from sentei.graph.record import Trace, tied_pairs, unmatched


@dataclass(frozen=True, eq=False)
class Slice:
    """Unit u of a group occupies `indices[u]` of dimension `dim` of the parameter or buffer named `param`.

    `indices` is int64 [width, multiplicity]; multiplicity > 1 after a flatten, for instance.
    """

    param: str
    dim: int
    indices: np.ndarray

    def __repr__(self) -> str:
        return f"Slice({self.param!r}, dim={self.dim}, {self.indices.shape[0]} units x {self.indices.shape[1]})"


@dataclass(frozen=True, eq=False)
class Group:
    """Units that occupy the same places: what a paper calls a layer's channels.

    `name` is the module that first produces them. A frozen group is never cut, and `why` says what forbids it.
    """

    name: str
    width: int
    frozen: bool
    why: str | None
    members: tuple[Slice, ...]

    def __repr__(self) -> str:
        state = f", frozen: {self.why}" if self.frozen else ""
        return f"Group({self.name!r}, width={self.width}, {len(self.members)} members{state})"


@dataclass(frozen=True, eq=False)
class Grouping:
    """Labels -> units -> groups.

    `unit_of` numbers the unit of each label, `group_of` gives the group of each unit (-1: in no group, never cut), and
    `units[g]` lists the units of group g in their order.
    """

    groups: tuple[Group, ...]
    unit_of: np.ndarray
    group_of: np.ndarray
    units: tuple[np.ndarray, ...]


def slot_arrays(trace: Trace) -> tuple[np.ndarray, np.ndarray]:
    """For each label: its slot (place in `trace.slots`) and its index within the slot."""
    sizes = np.asarray(trace.sizes, np.int64)
    slot = np.repeat(np.arange(len(sizes)), sizes)
    starts = np.cumsum(sizes) - sizes
    return slot, np.arange(trace.total) - starts[slot]


def components(trace: Trace) -> np.ndarray:
    """Connected components of the ties: label -> component."""
    n = trace.total
    a, b, _ = tied_pairs(trace)
    links = coo_matrix((np.ones(len(a), bool), (a, b)), shape=(n, n))
    return connected_components(links, directed=False)[1].astype(np.int64)


def form_groups(trace: Trace, frozen: Sequence[tuple[np.ndarray, str]], vectors: Sequence[np.ndarray]) -> Grouping:
    """Groups of a trace. `frozen` adds reasons; `vectors` are label vectors over which every group must be uniform."""
    comp = components(trace)
    n_comp = int(comp.max(initial=-1)) + 1
    slot, index = slot_arrays(trace)
    reasons, reason = _reasons(trace, frozen, comp, n_comp)
    first = _first_produced(trace, comp, n_comp)
    signature = _signatures(comp, n_comp, slot, vectors, reason >= 0)
    real = np.ones(trace.total, bool)
    for made in trace.made.values():
        real[made.start : made.stop] = False
    visible = (first < trace.total * 2 + 1) | ((reason < 0) & (np.bincount(comp, minlength=n_comp) > 1))
    visible &= np.bincount(comp, real, minlength=n_comp) > 0

    shown = np.flatnonzero(visible)
    shown = shown[np.argsort(first[shown], kind="stable")]
    _, where, inverse = np.unique(signature[shown], return_index=True, return_inverse=True)
    rank = np.empty(len(where), np.int64)
    rank[np.argsort(where)] = np.arange(len(where))
    group_of, place_of = np.full(n_comp, -1), np.full(n_comp, -1)
    group_of[shown] = rank[inverse]
    widths = np.bincount(group_of[shown], minlength=len(where))
    order = shown[np.argsort(group_of[shown], kind="stable")]
    place_of[order] = np.arange(len(shown)) - np.repeat(np.cumsum(widths) - widths, widths)

    members = _members(trace, group_of[comp], place_of[comp], slot, index, widths)
    groups, names = [], dict[str, int]()
    producers = _producer_slots(trace, comp, slot)
    keys = list(trace.slots)
    for g, head in enumerate(shown[np.sort(where)]):
        name = _module_name(keys[producers[head]][0] if head in producers else members[g][0].param)
        count = names.get(name, 0)
        names[name] = count + 1
        why = reasons[reason[head]] if reason[head] >= 0 else None
        title = f"{name}:{count}" if count else name
        groups.append(Group(title, int(widths[g]), why is not None, why, tuple(members[g])))
    units = np.split(order, np.cumsum(widths)[:-1]) if len(widths) else []
    return Grouping(tuple(groups), comp, group_of, tuple(units))


def _reasons(
    trace: Trace, frozen: Sequence[tuple[np.ndarray, str]], comp: np.ndarray, n_comp: int
) -> tuple[list[str], np.ndarray]:
    """Per component: the index of the first reason that freezes it, or -1."""
    every = [*frozen, *((t.numpy(), why) for t, why in trace.frozen), *unmatched(trace)]
    reason = np.full(n_comp, -1)
    for i, (labels, _) in enumerate(every):
        units = comp[labels]
        reason[units[reason[units] < 0]] = i
    return [why for _, why in every], reason


def _first_produced(trace: Trace, comp: np.ndarray, n_comp: int) -> np.ndarray:
    """Per component: where it first comes out of a contraction; components that never do come last."""
    first = trace.total * 2 + 1 + np.arange(n_comp)
    if trace.produced:
        labels = torch.cat(trace.produced).numpy()
        position = np.flatnonzero(labels >= 0)[::-1]
        first[comp[labels[position]]] = position
    return first


def _producer_slots(trace: Trace, comp: np.ndarray, slot: np.ndarray) -> dict[int, int]:
    """Component -> slot of the label that first produced it."""
    if not trace.produced:
        return {}
    labels = torch.cat(trace.produced).numpy()
    labels = labels[labels >= 0][::-1]
    return dict(zip(comp[labels].tolist(), slot[labels].tolist(), strict=True))


def _signatures(
    comp: np.ndarray, n_comp: int, slot: np.ndarray, vectors: Sequence[np.ndarray], frozen: np.ndarray
) -> np.ndarray:
    """A hash of the multiset of slots that each component occupies (sum of random words)."""
    words = np.random.default_rng(0).integers(1, 2**63, int(slot.max(initial=-1)) + 2 + len(vectors), dtype=np.uint64)
    out = np.zeros(n_comp, np.uint64)
    np.add.at(out, comp, words[slot])
    for i, labels in enumerate(vectors):
        np.add.at(out, comp[labels], words[-2 - i])
    return out ^ np.where(frozen, words[-1], np.uint64(0))


def _members(
    trace: Trace, group_of: np.ndarray, place_of: np.ndarray, slot: np.ndarray, index: np.ndarray, widths: np.ndarray
) -> list[list[Slice]]:
    """Per group its slices; `group_of` and `place_of` are given for each label."""
    keys = list(trace.slots)
    members: list[list[Slice]] = [[] for _ in widths]
    params = np.array([key not in trace.made for key in keys], bool)
    ids = np.flatnonzero((group_of >= 0) & params[slot])
    width, length = int(widths.max(initial=0)) + 1, int(index.max(initial=0)) + 1
    rank = ((group_of[ids] * len(keys) + slot[ids]) * width + place_of[ids]) * length + index[ids]
    ids = ids[np.argsort(rank, kind="stable")]
    change = np.flatnonzero((np.diff(group_of[ids]) != 0) | (np.diff(slot[ids]) != 0)) + 1
    for piece in np.split(ids, change) if len(ids) else []:
        g, (param, dim) = int(group_of[piece[0]]), keys[slot[piece[0]]]
        members[g].append(Slice(param, dim, index[piece].reshape(widths[g], -1)))
    return members


def _module_name(param: str) -> str:
    head = param.split(".parametrizations.")[0]
    return head.rpartition(".")[0] if head == param and "." in param else head
