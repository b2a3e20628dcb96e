"""What lets groups shrink that the model did not let shrink: numbers that follow, partners, another axis of a split."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from torch import Tensor, nn

from sentei.graph import labels as lab
from sentei.graph.belief import Belief, Pair, groups_of_labels, labels_of
from sentei.graph.fields import fields, renewed
from sentei.graph.first import first_pass
from sentei.graph.graph import ChannelGraph
from sentei.graph.groups import components
from sentei.graph.record import Site, Split
from sentei.graph.trial import Keep, Mismatch, mismatch, trial_plan

PARTNERS = 6
"""Groups of fitting width that are tried as partners of one that cannot shrink alone."""


class Mender:
    """Changes a belief so that trials get further than they did."""

    def __init__(self, model: nn.Module, belief: Belief) -> None:
        self.model, self.belief = model, belief
        self.fields = fields(model, belief.record)
        self.tried: dict[int, set[int]] = {}
        """Axes along which each split was let shrink before, by operation."""

    def attempt(self, graph: ChannelGraph, plan: Keep) -> Mismatch | None:
        """How the model, cut by the plan, fails; None if it does not."""
        return mismatch(self.model, graph, plan, swap=True) if plan.keep else None

    def mend(self, graph: ChannelGraph, groups: list[int], fault: Mismatch) -> bool:
        """Let the groups, whose cut fails so, shrink after all. False if nothing helps."""
        return self._follow(graph, groups, fault) or self._advance(graph, groups)

    # -- numbers and partners

    def _follow(self, graph: ChannelGraph, groups: list[int], fault: Mismatch, further: bool = True) -> bool:
        """Let plain numbers of modules follow the groups, let other groups keep the same share, or both.

        A likely partner that fails by itself, and earlier, is mended first: with it no trial could get further.
        """
        for partner in (None, *self._partners(graph, groups, fault.where)):
            together = groups if partner is None else [*groups, *graph.bundle_of(partner)]
            pair = [] if partner is None else [(labels_of(graph, groups[0]), labels_of(graph, partner))]
            numbers = self._numbers(graph, together, fault)
            for sites in ([], *numbers) if pair else numbers:
                if self._helps(sites, pair, together, fault):
                    self._adopt(graph, sites, pair, groups[0], partner, fault)
                    return True
            if further and partner is not None and graph.groups[partner].width == graph.groups[groups[0]].width:
                own = self.attempt(graph, trial_plan(graph, [partner]))
                if own is not None and own.at.op < fault.at.op and self._follow(graph, [partner], own, further=False):
                    return True
        return False

    def _helps(self, sites: Sequence[Site], pairs: Sequence[Pair], groups: Iterable[int], fault: Mismatch) -> bool:
        """Whether a trial of these groups gets further than the fault."""
        graph = self.belief.graph(sites, pairs)
        plan = trial_plan(graph, groups)
        if not plan.keep:
            return False
        found = self.attempt(graph, plan)
        if found is not None and found.at.op <= fault.at.op:
            return False
        again = self.attempt(graph, trial_plan(graph, groups, seed=1))
        return again is None or again.at.op > fault.at.op

    def _adopt(
        self,
        graph: ChannelGraph,
        sites: Sequence[Site],
        pairs: list[Pair],
        group: int,
        partner: int | None,
        fault: Mismatch,
    ) -> None:
        """Believe what helped, and the same of all other modules of the kind if a trial lets them."""
        self.belief.sites += sites
        self.belief.pairs += pairs
        more_sites = list(self._alike(sites))
        more_pairs = [] if partner is None else list(_alike_pairs(self.model, graph, group, partner, fault.where))
        while more_sites or more_pairs:
            wider = self.belief.graph(more_sites, [pair for _, pair in more_pairs])
            touched = _touched(wider, more_sites, [pair for _, pair in more_pairs])
            found = self.attempt(wider, trial_plan(wider, touched)) if touched else None
            concerned = {s.module for s in more_sites} | {m for m, _ in more_pairs}
            if found is None or found.where not in concerned or found.at.step > fault.at.step:
                self.belief.sites += more_sites
                self.belief.pairs += [pair for _, pair in more_pairs]
                return
            more_sites = [s for s in more_sites if s.module != found.where]
            more_pairs = [(m, pair) for m, pair in more_pairs if m != found.where]

    def _numbers(self, graph: ChannelGraph, groups: list[int], fault: Mismatch) -> list[list[Site]]:
        """Sets of plain numbers, read by the module at fault or one around it, that may count units of the groups.

        All of one module together come first; then single ones, those that were read last before the fault first, and
        of these the smallest.
        """
        where, last = fault.where, {(r.module, r.attr): r.op for r in self.belief.record.reads if r.op < fault.at.op}
        hit = np.isin(groups_of_labels(graph), groups)
        taken = {(s.module, s.attr, s.path) for s in graph.sites}
        found: dict[str, list[list[Site]]] = {}
        for f in self.fields:
            inside = where == f.scope or where.startswith(f.scope + ".") or not f.scope
            if not f.read or not inside or not isinstance(f.value, int) or (f.module, f.attr, f.path) in taken:
                continue
            rows = {_row(graph, m.vector): m for m in reversed(f.candidates) if hit[m.vector[m.vector >= 0]].any()}
            if rows:
                found.setdefault(f.scope, []).append([f.site(m) for m in list(rows.values())[::-1][:3]])
        sets: list[list[Site]] = []
        for module in sorted(found, key=len, reverse=True):
            options = found[module]
            sets += [[o[min(k, len(o) - 1)] for o in options] for k in range(max(map(len, options)))]
            if len(options) > 1:
                single = [site for option in options for site in option]
                single.sort(key=lambda s: (-last.get((s.module, s.attr), 0), len(s.labels)))
                sets += [[site] for site in single[:12]]
        return sets

    def _alike(self, sites: Sequence[Site]) -> Iterator[Site]:
        """The same attributes of other modules of the same classes."""
        modules = dict(self.model.named_modules())
        place = {(f.module, f.attr, f.path): f for f in self.fields}
        wanted = {}
        for s in sites:
            found = place[s.module, s.attr, s.path].candidates
            wanted[type(modules[s.module]), s.attr, s.path] = next(
                i for i, m in enumerate(found) if m.origin == s.origin
            )
        taken = {(s.module, s.attr, s.path) for s in self.belief.sites}
        for f in self.fields:
            i = wanted.get((type(modules[f.module]), f.attr, f.path))
            if i is not None and (f.module, f.attr, f.path) not in taken and f.read:
                yield f.site(f.candidates[min(i, len(f.candidates) - 1)])

    def _partners(self, graph: ChannelGraph, groups: list[int], where: str) -> list[int]:
        """Groups that the module at fault works on too, of a width that is a multiple or a part; best first."""
        width = graph.groups[groups[0]].width
        of = groups_of_labels(graph)
        free = {i for i, g in enumerate(graph.groups) if not g.frozen and i not in groups}
        found: dict[int, tuple[bool, int]] = {}
        for seen in self.belief.record.seen:
            if where == seen.module or where.startswith(seen.module + ".") or not seen.module:
                for i in free.intersection(np.unique(of[_flat(seen.layer)]).tolist()):
                    other = graph.groups[i].width
                    if np.gcd(width, other) > 1 and max(width, other) % min(width, other) == 0:
                        rank = (other != width, -len(seen.module))
                        found[i] = min(found.get(i, rank), rank)
        return sorted(found, key=lambda i: found[i])[:PARTNERS]

    # -- axes of splits

    def prefer_heads(self) -> None:
        """Where two activations are multiplied over one part of a split (attention), let whole heads go instead."""
        record = self.belief.record
        if not record.contracted:
            return
        comp = components(record)
        inner = np.unique(comp[np.concatenate([v.numpy() for v in record.contracted])])
        hit = [s for s in record.splits if s.view and np.isin(comp[s.labels.numpy().reshape(-1)], inner).any()]
        kinds = [(s.signature[0], s.labels.shape[-2:]) for s in hit]  # q, k and v together
        several = len({(module, size) for module, (_, size) in kinds}) < len(set(kinds))
        if several and self._let_heads_go(hit, all_or_none=True):  # stages that differ in the number of heads only
            return
        for kind in dict.fromkeys(reversed(kinds)):
            self._let_heads_go([s for s, other in zip(hit, kinds, strict=True) if other == kind])

    def _let_heads_go(self, splits: Sequence[Split], all_or_none: bool = False) -> bool:
        """Whether all of the splits can shrink by whole heads. Those that cannot, or all, are left as they were."""
        before, old = self.belief.graph(), {s.op: self.belief.choices.get(s.op, 0) for s in splits}
        self._retrace({s.op: s.order.index(s.labels.ndim - 2) for s in splits})
        after = self.belief.graph()
        lost = [s.op for s in splits if _has_free(before, _of(s)) and not _has_free(after, _of(s))]
        self._retrace({op: old[op] for op in (old if lost and all_or_none else lost)})
        return not lost

    def _advance(self, graph: ChannelGraph, groups: list[int]) -> bool:
        """Let the splits that touch the groups shrink along their next axis. False if none is left to try."""
        splits, of, ids = self.belief.record.splits, groups_of_labels(graph), set(groups)
        hit = [s for s in splits if ids.intersection(of[s.labels.numpy().reshape(-1)].tolist())]
        heads = [s for s in hit if self.belief.choices.get(s.op) and not self.tried.get(s.op)]
        hit = heads or hit  # whole heads were only a wish: their insides may shrink
        signatures = {s.signature for s in hit}
        alike = [s for s in splits if s.signature in signatures]
        parts = [labels_of(graph, g) for g in groups]
        if len(alike) > len(hit) and self._try_axes(self._next(alike), parts, alike):
            return True
        while choices := self._next(hit):
            if self._try_axes(choices, parts):
                return True
            for op, axis in choices.items():
                self.tried[op].add(axis)
        return False

    def _try_axes(self, choices: dict[int, int], parts: Sequence[np.ndarray], follow: Sequence[Split] = ()) -> bool:
        """Adopt other axes if they freeze none of the parts' labels, and if cuts of what `follow` names succeed."""
        if not choices:
            return False
        belief = self.belief
        old, record, sites = dict(belief.choices), belief.record, belief.sites
        self._retrace(choices)
        graph = belief.graph()
        if (
            not any(_has_frozen(graph, p) for p in parts)
            and self._consistent()
            and (not follow or self._all_follow(follow))
        ):
            return True
        belief.choices, belief.record, belief.sites = old, record, sites
        self.fields = fields(self.model, record)
        return False

    def _retrace(self, choices: dict[int, int]) -> None:
        """Trace anew with other axes."""
        if choices:
            belief = self.belief
            belief.choices = {**belief.choices, **choices}
            belief.record = first_pass(self.model, belief.named, belief.inputs, belief.choices, belief.forward)
            belief.sites = renewed(belief.sites, belief.record)
            self.fields = fields(self.model, belief.record)

    def _consistent(self) -> bool:
        """Whether the full model itself meets its own channels, under the axes along which splits shrink."""
        return mismatch(self.model, self.belief.graph(), Keep({}), swap=True) is None

    def _next(self, splits: Iterable[Split]) -> dict[int, int]:
        """The next axis of each split that has not been tried yet."""
        out = {}
        for s in splits:
            tried = self.tried.setdefault(s.op, set())
            tried.add(self.belief.choices.get(s.op, 0))
            left = [i for i in range(s.labels.ndim) if i not in tried]
            if left:
                out[s.op] = left[0]
        return out

    def _all_follow(self, splits: Sequence[Split]) -> bool:
        """Whether the groups that these splits touch can be cut now."""
        graph = self.belief.graph()
        of = groups_of_labels(graph)
        touched = {i for s in splits for i in np.unique(of[s.labels.numpy().reshape(-1)]).tolist() if i >= 0}
        plan = trial_plan(graph, touched)
        return bool(plan.keep) and self.attempt(graph, plan) is None


def _flat(layer: Tensor) -> np.ndarray:
    flat = lab.narrow(layer, lab.varying(layer)).reshape(-1).numpy()
    return np.asarray(flat[flat >= 0])


def _row(graph: ChannelGraph, vector: np.ndarray) -> bytes:
    """How a size depends on the widths of the groups: equal rows count the same."""
    return bytes(graph.costs_of.row(vector).tobytes())


def _of(split: Split) -> np.ndarray:
    return np.asarray(split.labels.numpy().reshape(-1))


def _has_free(graph: ChannelGraph, labels: np.ndarray) -> bool:
    of = groups_of_labels(graph)[labels]
    return any(not graph.groups[i].frozen and graph.groups[i].width > 1 for i in np.unique(of[of >= 0]))


def _has_frozen(graph: ChannelGraph, labels: np.ndarray) -> bool:
    of = groups_of_labels(graph)[labels]
    return any(graph.groups[i].frozen for i in np.unique(of[of >= 0]))


def _touched(graph: ChannelGraph, sites: Iterable[Site], pairs: Iterable[Pair]) -> set[int]:
    """Groups that some sites count or that some pairs bind."""
    of = groups_of_labels(graph)
    vectors = [s.labels.numpy() for s in sites] + [v for p in pairs for v in p]
    found = {int(i) for v in vectors for i in np.unique(of[v[v >= 0]])}
    return {i for i in found if i >= 0 and not graph.groups[i].frozen}


def _alike_pairs(model: nn.Module, graph: ChannelGraph, a: int, b: int, where: str) -> Iterator[tuple[str, Pair]]:
    """The same two groups, told by the parameters that hold them, in each other module of the same class."""
    modules = dict(model.named_modules())
    while where:
        prefix = where + "."
        slots = [
            next(
                ((m.param.removeprefix(prefix), m.dim) for m in graph.groups[i].members if m.param.startswith(prefix)),
                None,
            )
            for i in (a, b)
        ]
        if None not in slots:
            break
        where = where.rpartition(".")[0]
    else:
        return
    holder = {(m.param, m.dim): i for i, g in enumerate(graph.groups) for m in g.members}
    for name, module in modules.items():
        if type(module) is type(modules[where]) and name != where:
            pair = [holder.get((f"{name}.{slot[0]}", slot[1])) for slot in slots if slot]
            if (
                None not in pair
                and pair[0] != pair[1]
                and not any(graph.groups[i].frozen for i in pair if i is not None)
            ):
                yield name, (labels_of(graph, pair[0]), labels_of(graph, pair[1]))  # type: ignore[arg-type]
