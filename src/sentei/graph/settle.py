"""`trace`: find what belongs together, try cuts of it, and mend or freeze what the model does not follow."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from sentei.errors import SurgeryError, TraceError
from sentei.graph import labels as lab
from sentei.graph.bundles import steps_of
from sentei.graph.copying import rebuilt
from sentei.graph.cost import irregular_vectors
from sentei.graph.fields import OTHER, Field, fields
from sentei.graph.forward import output_tensors
from sentei.graph.graph import ChannelGraph
from sentei.graph.groups import components, form_groups
from sentei.graph.inputs import Inputs, arguments
from sentei.graph.record import Site, Split, Trace
from sentei.graph.refusals import refuse, untraceable
from sentei.graph.rehearsal import no_garbage_collection, rehearse
from sentei.graph.resize import named_tensors
from sentei.graph.tracer import LabelMode
from sentei.graph.trial import Keep, Mismatch, mismatch, trial_plan, trial_plans

MAX_ROUNDS = 200
PARTNERS = 6
"""Groups of fitting width that are tried as partners of one that cannot shrink alone."""
Pair = tuple[np.ndarray, np.ndarray]
"""Labels of two groups that must keep the same share."""


def trace(model: nn.Module, example_inputs: Any) -> ChannelGraph:
    """Find out which slices of which parameters must live or die together.

    >>> graph = sentei.trace(model, torch.zeros(1, 3, 224, 224))

    Copies of the model run its own forward on meta tensors: no compute, and whatever the forward does to the model's
    state, the model is left as it was. A tuple of example inputs is passed by position, a dict by keyword; only shapes
    and dtypes matter. Costs are counted for these inputs, so a batch of one gives MACs an image.

    Groups that do not survive trial cuts are frozen, and `Group.why` says what happened. Raises TraceError with the
    model's own error if its forward fails on the inputs, and if its output holds no tensor.
    """
    refuse(model)
    inputs = example_inputs if isinstance(example_inputs, Inputs) else Inputs.of(example_inputs)
    with no_garbage_collection():
        return _Settling(model, inputs, example_inputs).settle()


class _Settling:
    """What is believed of a model, mended until trial cuts are followed everywhere.

    `choices` are the axes along which splits shrink, `sites` plain values of modules that follow a width, `pairs`
    groups that must keep the same share, `frozen` labels that must stay, with the reason.
    """

    def __init__(self, model: nn.Module, inputs: Inputs, example: Any) -> None:
        self.model, self.inputs = model, inputs
        self.named = named_tensors(model)
        self.choices: dict[int, int] = {}
        self.tried: dict[int, set[int]] = {}
        self.sites: list[Site] = []
        self.pairs: list[Pair] = []
        self.frozen: list[tuple[np.ndarray, str]] = []
        self.faults: list[tuple[np.ndarray, str]] = []
        self.record = self._traced(self.choices, example)
        self.fields = fields(model, self.record)
        self._prefer_heads()

    # -- tracing

    def _traced(self, choices: Mapping[int, int], example: Any = None) -> Trace:
        mode = LabelMode({}, _labelled_dims(self.model, self.named), choices)
        try:
            rehearse(mode, self.model, self.inputs)
        except SurgeryError as error:
            raise TraceError(str(error)) from error
        except Exception as error:
            raise _refusal(self.model, self.inputs, example, mode, error) from error
        if not mode.trace.output_shapes:
            raise TraceError(
                "the model's output holds no tensor, so nothing could be proven of a cut: return tensors, or a container "
                "or object that holds them (not a function, a generator or the model itself)"
            )
        if not mode.trace.contractions:
            raise TraceError(
                "nothing to prune: the model's forward runs no convolution, matrix product or recurrent layer"
            )
        return mode.trace

    def _prefer_heads(self) -> None:
        """Where two activations are multiplied over one part of a split (attention), let whole heads go instead."""
        if not self.record.contracted:
            return
        comp = components(self.record)
        inner = np.unique(comp[np.concatenate([v.numpy() for v in self.record.contracted])])
        hit = [s for s in self.record.splits if s.view and np.isin(comp[s.labels.numpy().reshape(-1)], inner).any()]
        choices = {s.op: s.order.index(s.labels.ndim - 2) for s in hit}
        if not choices:
            return
        record = self._traced({**self.choices, **choices})
        before, after = self._graph(), _graph(self.named, self.inputs, record, [], [], [])
        for s in hit:
            if _has_free(before, s) and not _has_free(after, s):
                del choices[s.op]
        self.choices.update(choices)
        self.record = self._traced(self.choices)
        self.fields = fields(self.model, self.record)

    def _graph(
        self, sites: Sequence[Site] = (), pairs: Sequence[Pair] = (), unfollowed: Sequence[Field] = ()
    ) -> ChannelGraph:
        return _graph(
            self.named, self.inputs, self.record, self.frozen, [*self.sites, *sites], [*self.pairs, *pairs], unfollowed
        )

    # -- trials

    def settle(self) -> ChannelGraph:
        for _ in range(MAX_ROUNDS):
            graph = self._graph()
            plan, fault = self._first_fault(graph)
            if fault is None:
                alone = _single_units(graph, self.faults)
                self.frozen += alone
                return self._finished(self._graph() if alone else graph)
            self._mend(graph, plan, fault)
        stuck = f"no cut of it was followed by the model in {MAX_ROUNDS} trials"
        graph = self._graph()
        self.frozen += [(_labels(graph, i), stuck) for i, g in enumerate(graph.groups) if not g.frozen]
        return self._finished(self._graph())

    def _first_fault(self, graph: ChannelGraph) -> tuple[Keep, Mismatch | None]:
        plan = Keep({})
        for plan in trial_plans(graph):
            fault = self._try(graph, plan)
            if fault is not None:
                return plan, fault
        return plan, None

    def _try(self, graph: ChannelGraph, plan: Keep) -> Mismatch | None:
        return mismatch(self.model, graph, plan, swap=True) if plan.keep else None

    def _finished(self, graph: ChannelGraph) -> ChannelGraph:
        """Let numbers that the forward pass never reads follow the one width that they can mean."""
        taken = {(s.module, s.attr, s.path) for s in graph.sites}
        free = [f for f in self.fields if (f.module, f.attr, f.path) not in taken]
        rows = {f: {_row(graph, v): v for v in f.vectors} for f in free}
        follow = [
            f for f in free if isinstance(f.value, int) and not f.read and len(rows[f]) == 1 and not OTHER.search(f.attr)
        ]
        sites = [f.site(next(iter(rows[f].values()))) for f in follow]
        return self._graph(sites, unfollowed=[f for f in free if f not in follow and not OTHER.search(f.attr)])

    # -- mending

    def _mend(self, graph: ChannelGraph, plan: Keep, fault: Mismatch) -> None:
        """Find the groups at fault and what lets them shrink: numbers, partners, another axis; or freeze them."""
        groups, plan, fault = self._isolated(graph, plan, fault)
        self.faults += [(_labels(graph, g), fault.why()) for g in groups]
        if self._follow(graph, groups, plan, fault) or self._advance(graph, groups, plan):
            return
        self.frozen += [(_labels(graph, g), fault.why()) for g in groups]

    def _isolated(self, graph: ChannelGraph, plan: Keep, fault: Mismatch) -> tuple[list[int], Keep, Mismatch]:
        """The fewest groups of a plan that suffice to fail, and how they fail."""
        cut = {graph.index(name) for name in plan.keep}
        blamed = sorted(cut.intersection(graph.grouping.group_of[fault.units[fault.units >= 0]].tolist()))
        best = (sorted(cut), plan, fault)
        for suspects in (*([b] for b in blamed[:3]), blamed):
            found = self._fails(graph, plan, suspects)
            if found and found[2].at.op == fault.at.op:
                return found
        while len(best[0]) > 1:
            middle = len(best[0]) // 2
            halves = [self._fails(graph, plan, half) for half in (best[0][:middle], best[0][middle:])]
            smaller = [h for h in halves if h and len(h[0]) < len(best[0])]
            if not smaller:
                break
            best = next((h for h in smaller if h[2].at.op == best[2].at.op), smaller[0])
        return best

    def _fails(self, graph: ChannelGraph, plan: Keep, groups: Sequence[int]) -> tuple[list[int], Keep, Mismatch] | None:
        if not groups:
            return None
        closed = set(groups).union(*(b for b in graph.bundles if set(b).intersection(groups)))
        part = Keep({graph.groups[i].name: plan.keep[graph.groups[i].name] for i in sorted(closed)})
        fault = self._try(graph, part)
        return None if fault is None else (sorted(closed), part, fault)

    def _follow(self, graph: ChannelGraph, groups: list[int], plan: Keep, fault: Mismatch) -> bool:
        """Let plain numbers of modules follow the groups, let other groups keep the same share, or both."""
        numbers = self._numbers(graph, groups, fault.where)
        for partner in (None, *self._partners(graph, groups, fault.where)):
            pair = [] if partner is None else [(_labels(graph, groups[0]), _labels(graph, partner))]
            for sites in ([], *numbers) if pair else numbers:
                if self._helps(sites, pair, [*groups, *([] if partner is None else [partner])], fault):
                    self._adopt(graph, sites, pair, groups[0], partner, fault)
                    return True
        return False

    def _helps(self, sites: Sequence[Site], pairs: Sequence[Pair], groups: Iterable[int], fault: Mismatch) -> bool:
        """Whether a trial of these groups gets further than the fault."""
        graph = self._graph(sites, pairs)
        plan = trial_plan(graph, groups)
        if not plan.keep:
            return False
        found = self._try(graph, plan)
        if found is not None and found.at.op <= fault.at.op:
            return False
        again = self._try(graph, trial_plan(graph, groups, seed=1))
        return again is None or again.at.op > fault.at.op

    def _adopt(
        self, graph: ChannelGraph, sites: Sequence[Site], pairs: list[Pair], group: int, partner: int | None, fault: Mismatch
    ) -> None:
        """Believe what helped, and the same of all other modules of the kind if a trial lets them."""
        self.sites += sites
        self.pairs += pairs
        more_sites = list(self._alike(sites))
        more_pairs = [] if partner is None else list(_alike_pairs(self.model, graph, group, partner, fault.where))
        while more_sites or more_pairs:
            wider = self._graph(more_sites, [pair for _, pair in more_pairs])
            touched = _touched(wider, more_sites, [pair for _, pair in more_pairs])
            found = self._try(wider, trial_plan(wider, touched)) if touched else None
            concerned = {s.module for s in more_sites} | {m for m, _ in more_pairs}
            if found is None or found.where not in concerned or found.at.step > fault.at.step:
                self.sites += more_sites
                self.pairs += [pair for _, pair in more_pairs]
                return
            more_sites = [s for s in more_sites if s.module != found.where]
            more_pairs = [(m, pair) for m, pair in more_pairs if m != found.where]

    def _numbers(self, graph: ChannelGraph, groups: list[int], where: str) -> list[list[Site]]:
        """Sets of plain numbers, read by the module at fault or one around it, that may count units of the groups."""
        hit = np.isin(graph.grouping.group_of[graph.grouping.unit_of], groups)
        taken = {(s.module, s.attr, s.path) for s in graph.sites}
        found: dict[str, list[list[Site]]] = {}
        for f in self.fields:
            inside = where == f.module or where.startswith(f.module + ".") or not f.module
            if not f.read or not inside or not isinstance(f.value, int) or (f.module, f.attr, f.path) in taken:
                continue
            rows = {_row(graph, v): v for v in f.vectors if hit[v[v >= 0]].any()}
            if rows:
                found.setdefault(f.module, []).append([f.site(v) for v in list(rows.values())[:3]])
        sets: list[list[Site]] = []
        for module in sorted(found, key=len, reverse=True):
            options = found[module]
            sets += [[o[min(k, len(o) - 1)] for o in options] for k in range(max(map(len, options)))]
            if len(options) > 1:
                sets += [[site] for o in options[:6] for site in o]
        return sets

    def _alike(self, sites: Sequence[Site]) -> Iterator[Site]:
        """The same attributes of other modules of the same classes."""
        modules = dict(self.model.named_modules())
        place = {(f.module, f.attr, f.path): f for f in self.fields}
        wanted = {}
        for s in sites:
            vectors, own = place[s.module, s.attr, s.path].vectors, s.labels.numpy()
            wanted[type(modules[s.module]), s.attr, s.path] = next(i for i, v in enumerate(vectors) if v is own or np.array_equal(v, own))
        taken = {(s.module, s.attr, s.path) for s in self.sites}
        for f in self.fields:
            i = wanted.get((type(modules[f.module]), f.attr, f.path))
            if i is not None and (f.module, f.attr, f.path) not in taken and f.read:
                yield f.site(f.vectors[min(i, len(f.vectors) - 1)])

    def _partners(self, graph: ChannelGraph, groups: list[int], where: str) -> list[int]:
        """Groups that the module at fault works on too, whose width has a common factor with the group's; best first."""
        width = graph.groups[groups[0]].width
        of = graph.grouping.group_of[graph.grouping.unit_of]
        free = {i for i, g in enumerate(graph.groups) if not g.frozen and i not in groups}
        found: dict[int, tuple[bool, int]] = {}
        for seen in self.record.seen:
            if where == seen.module or where.startswith(seen.module + ".") or not seen.module:
                for i in free.intersection(np.unique(of[_flat(seen.layer)]).tolist()):
                    other = graph.groups[i].width
                    if np.gcd(width, other) > 1 and max(width, other) % min(width, other) == 0:
                        rank = (other != width, -len(seen.module))
                        found[i] = min(found.get(i, rank), rank)
        return sorted(found, key=lambda i: found[i])[:PARTNERS]

    def _advance(self, graph: ChannelGraph, groups: list[int], plan: Keep) -> bool:
        """Let the splits that touch the groups shrink along their next axis. False if none is left to try."""
        of = graph.grouping.group_of[graph.grouping.unit_of]
        ids = set(groups)
        hit = [s for s in self.record.splits if ids.intersection(of[s.labels.numpy().reshape(-1)].tolist())]
        heads = [s for s in hit if self.choices.get(s.op) and len(self.tried.get(s.op, ())) == 0]
        hit = heads or hit  # whole heads were only a wish: their insides may shrink
        signatures = {s.signature for s in hit}
        alike = [s for s in self.record.splits if s.signature in signatures]
        for splits in (alike, hit) if len(alike) > len(hit) else (hit,):
            choices = self._next(splits)
            if not choices:
                return False
            old, record = dict(self.choices), self.record
            self.choices.update(choices)
            self.record = self._traced(self.choices)
            if self._consistent() and (splits is hit or self._all_follow(splits)):
                self.fields = fields(self.model, self.record)
                return True
            self.choices, self.record = old, record
        return False

    def _consistent(self) -> bool:
        """Whether the full model itself meets its own channels, under the axes along which splits shrink."""
        return mismatch(self.model, self._graph(), Keep({}), swap=True) is None

    def _next(self, splits: Iterable[Split]) -> dict[int, int]:
        """The next axis of each split that has not been tried yet."""
        out = {}
        for s in splits:
            tried = self.tried.setdefault(s.op, set())
            tried.add(self.choices.get(s.op, 0))
            left = [i for i in range(s.labels.ndim) if i not in tried]
            if left:
                out[s.op] = left[0]
        return out

    def _all_follow(self, splits: Sequence[Split]) -> bool:
        """Whether the groups that these splits touch can be cut now."""
        graph = self._graph()
        of = graph.grouping.group_of[graph.grouping.unit_of]
        touched = {i for s in splits for i in np.unique(of[s.labels.numpy().reshape(-1)]).tolist() if i >= 0}
        plan = trial_plan(graph, touched)
        return bool(plan.keep) and self._try(graph, plan) is None


def _flat(layer: Tensor) -> np.ndarray:
    flat = lab.narrow(layer, lab.varying(layer)).reshape(-1).numpy()
    return np.asarray(flat[flat >= 0])


def _row(graph: ChannelGraph, vector: np.ndarray) -> bytes:
    """How a size depends on the widths of the groups: equal rows count the same."""
    return bytes(graph.costs_of.row(vector).tobytes())


def _has_free(graph: ChannelGraph, split: Split) -> bool:
    of = graph.grouping.group_of[graph.grouping.unit_of[split.labels.numpy().reshape(-1)]]
    return any(not graph.groups[i].frozen and graph.groups[i].width > 1 for i in np.unique(of[of >= 0]))


def _touched(graph: ChannelGraph, sites: Iterable[Site], pairs: Iterable[Pair]) -> set[int]:
    """Groups that some sites count or that some pairs bind."""
    of = graph.grouping.group_of[graph.grouping.unit_of]
    vectors = [s.labels.numpy() for s in sites] + [v for p in pairs for v in p]
    found = {int(i) for v in vectors for i in np.unique(of[v[v >= 0]])}
    return {i for i in found if i >= 0 and not graph.groups[i].frozen}


def _alike_pairs(model: nn.Module, graph: ChannelGraph, a: int, b: int, where: str) -> Iterator[tuple[str, Pair]]:
    """The same two groups, told by the parameters that hold them, in each other module of the same class."""
    modules = dict(model.named_modules())
    while where:
        prefix = where + "."
        slots = [
            next(((m.param.removeprefix(prefix), m.dim) for m in graph.groups[i].members if m.param.startswith(prefix)), None)
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
            if None not in pair and pair[0] != pair[1] and not any(graph.groups[i].frozen for i in pair if i is not None):
                yield name, (_labels(graph, pair[0]), _labels(graph, pair[1]))  # type: ignore[arg-type]


def _graph(
    named: Mapping[str, Tensor],
    inputs: Inputs,
    record: Trace,
    frozen: Sequence[tuple[np.ndarray, str]],
    sites: Sequence[Site],
    pairs: Sequence[Pair],
    unfollowed: Sequence[Field] = (),
) -> ChannelGraph:
    """The graph of a record. Groups of a pair that cannot keep the same share are frozen."""
    shapes = {n: tuple(t.shape) for n, t in named.items() if isinstance(t, nn.Parameter)}
    vectors = [*irregular_vectors(record), *(v[v >= 0] for v in (p.numpy() for p in record.picked))]
    frozen = list(frozen)
    while True:
        grouping = form_groups(record, frozen, vectors)
        bundles, rigid = _bundles(grouping.groups, grouping.group_of[grouping.unit_of], pairs)
        if not rigid:
            return ChannelGraph(record, grouping, shapes, inputs, sites, unfollowed, bundles)
        of = grouping.group_of[grouping.unit_of]
        frozen += [(np.flatnonzero(of == g), why) for g, why in rigid.items()]


def _bundles(groups: Sequence[Any], of: np.ndarray, pairs: Sequence[Pair]) -> tuple[list[tuple[int, ...]], dict[int, str]]:
    """Groups that keep the same share, as sorted tuples; and those that must be frozen for it, with the reason."""
    sets: list[set[int]] = []
    for pair in pairs:
        found = {int(i) for v in pair for i in np.unique(of[v]) if i >= 0}
        joined = found.union(*(s for s in sets if s & found))
        sets = [s for s in sets if not s & found] + [joined]
    rigid: dict[int, str] = {}
    for s in sets:
        stiff = [groups[i] for i in sorted(s) if groups[i].frozen]
        if stiff and len(stiff) < len(s):
            rigid |= {i: f"must keep the same share as {stiff[0].name}, which {_short(stiff[0].why)}" for i in s if not groups[i].frozen}
        elif not stiff and steps_of(groups[i].width for i in s) < 2:
            rigid |= dict.fromkeys(s, "must keep the same share as groups whose width has no common factor with it")
    return [tuple(sorted(s)) for s in sets if len(s) > 1], rigid


def _short(why: str) -> str:
    return why if len(why) < 120 else why[:117] + "..."


def _single_units(graph: ChannelGraph, faults: list[tuple[np.ndarray, str]]) -> list[tuple[np.ndarray, str]]:
    """Groups of one unit, which nothing can be removed from, with what forced its channels together."""
    out = []
    for i, g in enumerate(graph.groups):
        if g.width == 1 and not g.frozen:
            labels = _labels(graph, i)
            why = next((text for ids, text in faults if np.isin(labels, ids).any()), "is a single unit")
            out.append((labels, why))
    return out


def _labels(graph: ChannelGraph, group: int) -> np.ndarray:
    return np.flatnonzero(graph.grouping.group_of[graph.grouping.unit_of] == group)


def _labelled_dims(model: nn.Module, named: Mapping[str, Tensor]) -> set[tuple[str, int]]:
    """Dimensions that may hold units: all but the kernel dimensions of convolutions."""
    kernels = {
        id(t)
        for m in model.modules()
        if isinstance(m, _ConvNd)
        for part in m.modules()
        for t in part._parameters.values()
        if t is not None
    }
    return {(n, d) for n, t in named.items() for d in range(min(t.ndim, 2) if id(t) in kernels else t.ndim)}


def _refusal(model: nn.Module, inputs: Inputs, example: Any, mode: LabelMode, error: Exception) -> TraceError:
    where = f" in module {mode.failed.where!r}" if mode.failed and mode.failed.where else ""
    own = _own_failure(model, example)
    if own is None:
        return TraceError(untraceable(error, mode.failed.where if mode.failed else ""))
    return TraceError(
        f"the model's own forward failed on the example inputs {inputs}{where}: {type(own).__name__}: {own}"
    )


def _own_failure(model: nn.Module, example: Any) -> Exception | None:
    """What a copy of the model raises on real example inputs, without any tracing."""
    if example is None or isinstance(example, Inputs):
        return None
    args, kwargs = arguments(example)
    tensors = output_tensors([args, kwargs])
    if not tensors or any(t.is_meta for t in tensors):
        return None
    try:
        with torch.no_grad():
            rebuilt(model, {}).eval()(*args, **kwargs)
    except Exception as error:
        return error
    return None
