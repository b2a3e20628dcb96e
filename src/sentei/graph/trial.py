"""Trace, try a cut on meta tensors, and freeze or tie what did not follow. Also the structural proof of a real cut."""

from __future__ import annotations

import copy
import gc
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
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
from sentei.graph.forward import as_numpy, output_tensors, run
from sentei.graph.graph import ChannelGraph, HasKeep
from sentei.graph.groups import form_groups
from sentei.graph.inputs import Inputs, arguments
from sentei.graph.record import Trace, tied_pairs
from sentei.graph.refusals import refuse, untraceable
from sentei.graph.resize import Attribute, Cuts, carries_units, cut_shape, modes_kept, named_tensors, swapped
from sentei.graph.tracer import LabelMode

MAX_ROUNDS = 60


@dataclass(frozen=True)
class Keep:
    """The least that the graph needs of a plan."""

    keep: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Mismatch:
    """Why a cut model is not wired as the graph says; `units` are those at fault."""

    message: str
    units: np.ndarray
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
    refuse(model)
    inputs = example_inputs if isinstance(example_inputs, Inputs) else Inputs.of(example_inputs)
    with _no_garbage_collection():
        return _settled(model, inputs, example_inputs)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """A trace makes many small tensors and no cycles; collecting in between costs more than the trace."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _settled(model: nn.Module, inputs: Inputs, example_inputs: Any) -> ChannelGraph:
    """Trace, try a cut, tie or freeze what did not follow, and again until a cut is followed everywhere."""
    choices: dict[int, int] = {}
    frozen: list[tuple[np.ndarray, str]] = []
    faults: list[tuple[np.ndarray, str]] = []
    named = named_tensors(model)
    record = _first_trace(model, named, inputs, choices, example_inputs)
    for _ in range(MAX_ROUNDS):
        graph = _graph(named, inputs, record, frozen)
        plan = trial_plan(graph)
        fault = mismatch(model, graph, plan, swap=True) if plan.keep else None
        if fault is None:
            alone = _single_units(graph, faults)
            return _graph(named, inputs, record, frozen + alone) if alone else graph
        blamed = _blamed_groups(graph, fault)
        why = f"cannot shrink: {fault.message}" + (f" (in {fault.where})" if fault.where else "")
        faults += [(_labels(graph, g), why) for g in blamed]
        if _advance(record, graph, blamed, choices):
            record = _first_trace(model, named, inputs, choices)
        else:
            frozen += [(_labels(graph, g), why) for g in blamed]
    stuck = f"no cut of it was followed by the model in {MAX_ROUNDS} trials"
    frozen += [(_labels(graph, i), stuck) for i, g in enumerate(graph.groups) if not g.frozen]
    return _graph(named, inputs, record, frozen)


def trial_plan(graph: ChannelGraph, seed: int = 0) -> Keep:
    """Keep about half of every unfrozen group: random units, and a number that no even split could pass by luck.

    Groups of one width keep different numbers, where there are enough: one that has the size of another by accident
    would else pass for one that follows it.
    """
    rng = np.random.default_rng(seed)
    keep = {}
    alike: dict[int, int] = {}
    for g in graph.groups:
        if not g.frozen and g.width > 1:
            n = np.arange(1, g.width)
            awkward = n[(n % 2 > 0) & (n % 3 > 0) & (n > 1)]
            choice = awkward if len(awkward) else n[-1:]
            nearest = choice[np.argsort(np.abs(choice - g.width * rng.uniform(0.4, 0.7)), kind="stable")]
            n = nearest[alike.get(g.width, 0) % min(len(nearest), 4)]
            alike[g.width] = alike.get(g.width, 0) + 1
            keep[g.name] = np.sort(rng.permutation(g.width)[:n])
    return Keep(keep)


def mismatch(
    model: nn.Module, graph: ChannelGraph, plan: HasKeep, inputs: Inputs | None = None, swap: bool = False
) -> Mismatch | None:
    """Run a cut model on the units of the graph: wherever two channels meet, they must be of one unit. None: they are.

    With `swap`, `model` is the full model and is cut for the duration, on meta tensors.
    """
    units, named = graph.slot_units(plan), named_tensors(model)
    cuts, attrs = (graph.cuts(plan), graph.attributes(model, plan)) if swap else ({}, [])
    wrong = None if swap else _wrong_shape(named, graph, plan)
    if wrong is not None:
        return wrong
    mode = LabelMode({}, units=units)
    try:
        with modes_kept(model):
            _passes(mode, model, named, inputs or graph.inputs, cuts, attrs, trained=graph.trace_record.train_pass)
    except Exception:
        assert mode.failed is not None
        return Mismatch(mode.failed.message, as_numpy(mode.failed.layers), mode.failed.where)
    a, b, event = tied_pairs(mode.trace)
    if len(a):
        where = mode.trace.ties[event[0]].where
        first = event == event[0]
        return Mismatch("channels no longer meet the same channels", np.concatenate([a[first], b[first]]), where)
    if inputs is None and mode.trace.output_shapes != graph.trace_record.output_shapes:
        shapes = f"{mode.trace.output_shapes} instead of {graph.trace_record.output_shapes}"
        return Mismatch(f"the outputs are {shapes}", np.zeros(0, np.int64), "")
    return None


def _wrong_shape(found: Mapping[str, Tensor], graph: ChannelGraph, plan: HasKeep) -> Mismatch | None:
    """The first parameter of a cut model whose shape is not what the plan leaves."""
    cuts = graph.cuts(plan)
    for name, shape in graph.params.items():
        expected = tuple(cut_shape(shape, cuts.get(name, ())))
        if name not in found or tuple(found[name].shape) != expected:
            have = tuple(found[name].shape) if name in found else "absent"
            text = f"parameter {name} has the wrong size: {have}, the plan leaves {expected}"
            return Mismatch(text, np.zeros(0, np.int64), "")
    return None


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


def _graph(
    named: Mapping[str, Tensor], inputs: Inputs, record: Trace, frozen: list[tuple[np.ndarray, str]]
) -> ChannelGraph:
    grouping = form_groups(record, frozen, irregular_vectors(record))
    shapes = {n: tuple(t.shape) for n, t in named.items() if isinstance(t, nn.Parameter)}
    return ChannelGraph(record, grouping, shapes, inputs)


def _first_trace(
    model: nn.Module, named: Mapping[str, Tensor], inputs: Inputs, choices: dict[int, int], example: Any = None
) -> Trace:
    mode = LabelMode({}, _labelled_dims(model, named), choices)
    try:
        with modes_kept(model):
            _passes(mode, model, named, inputs, {}, [], trained=None)
    except Exception as error:
        where = f" in module {mode.failed.where!r}" if mode.failed and mode.failed.where else ""
        own = _own_failure(model, example)
        if own is None:
            raise TraceError(untraceable(error, mode.failed.where if mode.failed else "")) from error
        raise TraceError(
            f"the model's own forward failed on the example inputs {inputs}{where}: {type(own).__name__}: {own}"
        ) from own
    if not mode.trace.contractions:
        raise TraceError("nothing to prune: the model's forward runs no convolution, matrix product or recurrent layer")
    return mode.trace


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
            copy.deepcopy(model).eval()(*args, **kwargs)
    except Exception as error:
        return error
    return None


def _passes(
    mode: LabelMode,
    model: nn.Module,
    named: Mapping[str, Tensor],
    inputs: Inputs,
    cuts: Cuts,
    attrs: Sequence[Attribute],
    trained: bool | None,
) -> None:
    """Run in eval mode and, where parts of the model run only in training (auxiliary heads), in train mode too."""
    tensors, sources = _meta_tensors(named, cuts)
    mode.sources = sources
    mode.trace.read.update(n for n, t in named.items() if not carries_units(t))
    with swapped(model, tensors, attrs):
        model.eval()
        run(mode, model, inputs.args, inputs.kwargs)
        unseen = {n for n, t in named.items() if t.ndim > 1} - {n for n, _ in mode.trace.slots}
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


def _meta_tensors(named: Mapping[str, Tensor], cuts: Cuts) -> tuple[dict[int, Tensor], dict[int, str]]:
    """Stand-ins for parameters and buffers: meta tensors of the cut shape; integer tables keep their values."""
    tensors, sources = {}, {}
    for name, t in named.items():
        if not carries_units(t) or t.ndim == 0:
            tensors[id(t)] = t.detach().clone() if t.device.type != "meta" else t
            if carries_units(t):
                sources[id(tensors[id(t)])] = name
            continue
        shape = cut_shape(t.shape, cuts.get(name, ()))
        tensors[id(t)] = torch.empty(shape, dtype=t.dtype, device="meta")
        sources[id(tensors[id(t)])] = name
    return tensors, sources


def _blamed_groups(graph: ChannelGraph, fault: Mismatch) -> list[int]:
    """The unfrozen groups at fault: by label, else by module, else by the nearest enclosing module that has any."""
    free = {i for i, g in enumerate(graph.groups) if not g.frozen}
    found = free.intersection(graph.grouping.group_of[fault.units[fault.units >= 0]].tolist())
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
    of = graph.grouping.group_of[graph.grouping.unit_of]
    hit = {s.signature for s in record.splits if ids.intersection(of[s.labels.numpy().reshape(-1)].tolist())}
    moved = False
    for s in record.splits:
        if s.signature in hit:
            stage = choices.get(s.op, 0) + 1
            if stage < s.labels.ndim:
                choices[s.op] = stage
                moved = True
    return moved
