"""Trace, try a cut on meta tensors, and freeze or tie what did not follow. Also the structural proof of a real cut."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.dropout import _DropoutNd

import sentei.graph.rules  # noqa: F401  (registers the rules)
from sentei.errors import TraceError
from sentei.graph.cost import irregular_vectors
from sentei.graph.graph import ChannelGraph, HasKeep
from sentei.graph.groups import form_groups
from sentei.graph.inputs import Inputs
from sentei.graph.resize import cut_shape, modes_kept, named_tensors, swapped
from sentei.graph.tracer import Failure, LabelMode, Trace, as_numpy, run, settle_ties

MAX_ROUNDS = 60


@dataclass(frozen=True)
class Keep:
    """The least that the graph needs of a plan."""

    keep: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Mismatch:
    """Why a cut model is not wired as the graph says; `labels` are those at fault."""

    message: str
    labels: np.ndarray
    where: str


def trace(model: nn.Module, example_inputs: Any) -> ChannelGraph:
    """Find out which slices of which parameters must live or die together.

    >>> graph = sentei.trace(model, torch.zeros(1, 3, 224, 224))

    The model's own forward runs on meta tensors: no compute, no copy, and the model is left as it was. A tuple of
    example inputs is passed by position, a dict by keyword; only shapes and dtypes matter. Costs are counted for
    these inputs, so a batch of one gives MACs an image.

    Groups that do not survive a trial cut are frozen, and `Group.why` says what happened. Raises TraceError with the
    model's own error if its forward fails on the inputs.
    """
    if hasattr(model, "_orig_mod"):
        raise TraceError("the model is compiled: trace and cut the original module, then compile the cut one")
    inputs = example_inputs if isinstance(example_inputs, Inputs) else Inputs.of(example_inputs)
    choices: dict[int, int] = {}
    frozen: list[tuple[np.ndarray, str]] = []
    record = _first_trace(model, inputs, choices)
    for _ in range(MAX_ROUNDS):
        graph = _graph(model, inputs, record, frozen, choices)
        plan = trial_plan(graph)
        fault = mismatch(model, graph, plan, swap=True) if plan.keep else None
        if fault is None:
            return graph
        blamed = _blamed_groups(graph, fault)
        if _advance(record, graph, blamed, choices):
            record = _first_trace(model, inputs, choices)
        else:
            why = f"cannot shrink: {fault.message}" + (f" (in {fault.where})" if fault.where else "")
            frozen += [(graph.grouping.labels[g], why) for g in blamed]
    stuck = f"no cut of it was followed by the model in {MAX_ROUNDS} trials"
    frozen += [(graph.grouping.labels[i], stuck) for i, g in enumerate(graph.groups) if not g.frozen]
    return _graph(model, inputs, record, frozen, choices)


def trial_plan(graph: ChannelGraph, seed: int = 0) -> Keep:
    """Keep a random half of every unfrozen group, never a prefix by design."""
    rng = np.random.default_rng(seed)
    keep = {}
    for g in graph.groups:
        if not g.frozen and g.width > 1:
            low = min(2, g.width - 1)
            n = min(g.width - 1, max(low, round(g.width * rng.uniform(0.4, 0.7))))
            keep[g.name] = np.sort(rng.permutation(g.width)[:n])
    return Keep(keep)


def mismatch(model: nn.Module, graph: ChannelGraph, plan: HasKeep, swap: bool = False) -> Mismatch | None:
    """Trace a cut model and hold its ties against the graph's, restricted to what the plan keeps. None: all agree.

    With `swap`, `model` is the full model and is cut for the duration, on meta tensors.
    """
    mode = LabelMode({}, graph.choices, graph.trace_record.whole_groups, set(graph.trace_record.slots))
    cuts = graph.cuts(plan) if swap else {}
    attrs = graph.attributes(model, plan) if swap else []
    try:
        with modes_kept(model):
            _passes(mode, model, graph.inputs, cuts, attrs, trained=graph.trace_record.train_pass)
    except Exception:
        assert mode.failed is not None
        return _failure(mode, graph, plan, mode.failed)
    return _compare(mode.trace, graph, plan)


def _graph(
    model: nn.Module, inputs: Inputs, record: Trace, frozen: list[tuple[np.ndarray, str]], choices: dict[int, int]
) -> ChannelGraph:
    grouping = form_groups(record, frozen, irregular_vectors(record))
    buffers = {id(b) for m in model.modules() for b in m._buffers.values() if b is not None}
    shapes = {n: tuple(t.shape) for n, t in named_tensors(model).items() if id(t) not in buffers}
    return ChannelGraph(record, grouping, shapes, inputs, choices)


def _first_trace(model: nn.Module, inputs: Inputs, choices: dict[int, int]) -> Trace:
    mode = LabelMode({}, choices, slots=_labelled_dims(model))
    try:
        with modes_kept(model):
            _passes(mode, model, inputs, {}, [], trained=None)
    except Exception as error:
        where = f" in module {mode.failed.where!r}" if mode.failed and mode.failed.where else ""
        raise TraceError(
            f"the model's own forward failed on the example inputs {inputs}{where}: {type(error).__name__}: {error}"
        ) from error
    return mode.trace


def _passes(mode: LabelMode, model: nn.Module, inputs: Inputs, cuts: Any, attrs: Any, trained: bool | None) -> None:
    """Run in eval mode and, where parts of the model run only in training (auxiliary heads), in train mode too."""
    tensors, sources = _meta_tensors(model, cuts)
    mode.sources = sources
    with swapped(model, tensors, attrs):
        model.eval()
        run(mode, model, inputs.args, inputs.kwargs)
        unseen = {n for n, t in named_tensors(model).items() if t.ndim > 1} - {n for n, _ in mode.trace.slots}
        if trained or (trained is None and unseen):
            mode.count_cost = False
            model.train()
            for m in model.modules():
                if isinstance(m, (_NormBase, _DropoutNd)):
                    m.eval()
            mode.trace.train_pass = True
            if trained:
                run(mode, model, inputs.args, inputs.kwargs)
            else:
                with suppress(Exception):
                    run(mode, model, inputs.args, inputs.kwargs)
                mode.failed = None


def _labelled_dims(model: nn.Module) -> set[tuple[str, int]]:
    """Dimensions that may hold units: all but the kernel dimensions of convolutions."""
    kernels = {
        id(t)
        for m in model.modules()
        if isinstance(m, _ConvNd)
        for part in m.modules()
        for t in part._parameters.values()
        if t is not None
    }
    return {
        (n, d) for n, t in named_tensors(model).items() for d in range(min(t.ndim, 2) if id(t) in kernels else t.ndim)
    }


def _meta_tensors(model: nn.Module, cuts: Any) -> tuple[dict[int, Tensor], dict[int, str]]:
    """Stand-ins for parameters and buffers: meta tensors of the cut shape; integer tables keep their values."""
    tensors, sources = {}, {}
    for name, t in named_tensors(model).items():
        if not t.is_floating_point() or t.ndim == 0:
            tensors[id(t)] = t.detach().clone() if t.device.type != "meta" else t
            continue
        shape = cut_shape(t.shape, cuts.get(name, ()))
        tensors[id(t)] = torch.empty(shape, dtype=t.dtype, device="meta")
        sources[id(tensors[id(t)])] = name
    return tensors, sources


def _old_labels(new: Trace, graph: ChannelGraph, kept: np.ndarray) -> np.ndarray:
    """Map labels of the cut model's trace to labels of the graph, through the kept indices of each slot."""
    old = graph.trace_record
    starts = np.cumsum([0, *old.sizes])
    parts = []
    for key, s in new.slots.items():
        o = old.slots[key]
        ids = starts[o] + np.flatnonzero(kept[starts[o] : starts[o + 1]])
        parts.append(ids if len(ids) == new.sizes[s] else np.full(new.sizes[s], -1))
    return np.concatenate([*parts, np.zeros(0, np.int64)]).astype(np.int64)


def _failure(mode: LabelMode, graph: ChannelGraph, plan: HasKeep, failed: Failure) -> Mismatch:
    to_old = _old_labels(mode.trace, graph, graph.kept_labels(plan))
    labels = to_old[as_numpy(failed.layers)] if failed.layers else np.zeros(0, np.int64)
    return Mismatch(failed.message, labels[labels >= 0], failed.where)


def _compare(new: Trace, graph: ChannelGraph, plan: HasKeep) -> Mismatch | None:
    """Every tie of the cut model must be a tie of the graph between kept labels, one by one and in order."""
    old, kept = graph.trace_record, graph.kept_labels(plan)
    to_old = _old_labels(new, graph, kept)
    if (to_old < 0).any():
        bad = next(key for key, s in new.slots.items() if new.sizes[s] != int(_slot_kept(graph, kept, key).sum()))
        start = int(np.cumsum([0, *old.sizes])[old.slots[bad]])
        return Mismatch(f"{bad[0]} has the wrong size in dimension {bad[1]}", np.array([start]), bad[0])
    a, b, event = settle_ties(new)
    a, b = to_old[a], to_old[b]
    oa, ob, old_event = settle_ties(old)
    stay = kept[oa] & kept[ob]
    oa, ob, old_event = oa[stay], ob[stay], old_event[stay]
    vanished = [key for key in old.slots if key not in new.slots]
    if vanished:  # a dimension shrank to one element and carries no labels: ties must still lie within units
        comp = graph.grouping.group_of.astype(np.int64) * (1 << 32) + graph.grouping.unit_of
        wrong = np.flatnonzero((comp[a] != comp[b]) & (comp[a] >= 0) & (comp[b] >= 0))
    elif len(a) == len(oa):
        wrong = np.flatnonzero((a != oa) | (b != ob))
    else:
        n = min(len(a), len(oa))
        wrong = np.append(np.flatnonzero((a[:n] != oa[:n]) | (b[:n] != ob[:n])), n)
    if len(wrong):
        return _first_wrong(int(wrong[0]), new, old, (a, b, event), (oa, ob, old_event))
    if new.output_shapes != old.output_shapes:
        return Mismatch(
            f"the outputs are {new.output_shapes} instead of {old.output_shapes}", np.zeros(0, np.int64), ""
        )
    return None


def _first_wrong(i: int, new: Trace, old: Trace, mine: Any, theirs: Any) -> Mismatch:
    (a, b, event), (oa, ob, old_event) = mine, theirs
    labels = [x[i : i + 1] for x in (a, b, oa, ob) if i < len(x)]
    where = new.ties[event[i]].where if i < len(a) else old.ties[old_event[i]].where
    return Mismatch("channels no longer meet the same channels", np.concatenate(labels), where)


def _slot_kept(graph: ChannelGraph, kept: np.ndarray, key: tuple[str, int]) -> np.ndarray:
    starts = np.cumsum([0, *graph.trace_record.sizes])
    s = graph.trace_record.slots[key]
    return kept[starts[s] : starts[s + 1]]


def _blamed_groups(graph: ChannelGraph, fault: Mismatch) -> list[int]:
    """The unfrozen groups at fault: by label, else by module, else by the nearest enclosing module that has any."""
    free = {i for i, g in enumerate(graph.groups) if not g.frozen}
    found = free.intersection(graph.grouping.group_of[fault.labels].tolist())
    scope = fault.where
    while not found:
        prefix = scope + "." if scope else ""
        found = {i for i in free if any(m.param.startswith(prefix) for m in graph.groups[i].members)}
        if not scope:
            break
        scope = scope.rpartition(".")[0]
    return sorted(found or free)


def _advance(record: Trace, graph: ChannelGraph, blamed: Iterable[int], choices: dict[int, int]) -> bool:
    """Let the splits that touch the blamed groups shrink along their next axis. False if none is left to try."""
    ids = set(blamed)
    of = graph.grouping.group_of
    hit = {s.signature for s in record.splits if ids.intersection(of[s.labels.numpy().reshape(-1)].tolist())}
    moved = False
    for s in record.splits:
        if s.signature in hit:
            stage = choices.get(s.op, 0) + 1
            if stage < s.labels.ndim:
                choices[s.op] = stage
                moved = True
    return moved
