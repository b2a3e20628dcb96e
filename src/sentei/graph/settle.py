"""`trace`: find what belongs together, try cuts of it, and mend or freeze what the model does not follow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import nn

from sentei.graph.belief import Belief, labels_of
from sentei.graph.fields import Field, only_meaning
from sentei.graph.first import first_pass
from sentei.graph.graph import ChannelGraph
from sentei.graph.inputs import Inputs
from sentei.graph.mend import Mender
from sentei.graph.part import Forward, check_forward
from sentei.graph.refusals import refuse
from sentei.graph.rehearsal import no_garbage_collection
from sentei.graph.resize import named_tensors
from sentei.graph.trial import Keep, Mismatch, trial_plans

MAX_ROUNDS = 200
Fault = tuple[list[int], Keep, Mismatch]
"""Groups whose cut fails, the plan that cuts them, and how it fails."""


def trace(model: nn.Module, example_inputs: Any, forward: Forward | None = None) -> ChannelGraph:
    """Find out which slices of which parameters must live or die together.

    >>> graph = sentei.trace(model, torch.zeros(1, 3, 224, 224))

    Copies of the model run its own forward on meta tensors: no compute, and whatever the forward does to the model's
    state, the model is left as it was. A tuple of example inputs is passed by position, a dict by keyword; only shapes
    and dtypes matter. Costs are counted for these inputs, so a batch of one gives MACs an image.

    Groups that do not survive trial cuts are frozen, and `Group.why` says what happened. Raises TraceError with the
    model's own error if its forward fails on the inputs, and if its output holds no tensor.

    A model that decides by values (a detector that sorts boxes) has a part that does not. `forward(model, *inputs)`
    runs it, and returns everything that the rest of the model takes from it, in any nesting: that is frozen as the
    model's outputs are, and parameters that the part never reads stay whole.

    >>> graph = sentei.trace(model, images, forward=lambda model, x: list(model.backbone(x).values()))
    """
    check_forward(forward)
    refuse(model)
    inputs = example_inputs if isinstance(example_inputs, Inputs) else Inputs.of(example_inputs)
    with no_garbage_collection():
        named = named_tensors(model)
        belief = Belief(named, inputs, first_pass(model, named, inputs, {}, forward, example_inputs), forward=forward)
        return _settled(Mender(model, belief))


def _settled(mender: Mender) -> ChannelGraph:
    """Try cuts, and mend or freeze what fails, until all are followed.

    What nothing helps is frozen, and tried once more if later mends helped others: it may need what they found.
    """
    belief, faults = mender.belief, list[tuple[np.ndarray, str]]()
    given_up, mended = list[tuple[np.ndarray, str]](), False
    mender.prefer_heads()
    for _ in range(MAX_ROUNDS):
        graph = belief.graph()
        found = _first_fault(mender, graph)
        if found is not None:
            groups, _, fault = found
            faults += [(labels_of(graph, g), fault.why()) for g in groups]
            if mender.mend(graph, groups, fault):
                mended = bool(given_up)
            else:
                given_up += [(labels_of(graph, g), fault.why()) for g in _culprits(graph, groups, fault)]
                belief.frozen = given_up
        elif mended:
            belief.frozen = given_up = []
            mended = False
        else:
            alone = _single_units(graph, faults)
            belief.frozen = [*given_up, *alone]
            return _finished(belief.graph() if alone else graph, mender.fields)
    graph, stuck = belief.graph(), f"no cut of it was followed by the model in {MAX_ROUNDS} trials"
    belief.frozen = [*given_up, *((labels_of(graph, i), stuck) for i, g in enumerate(graph.groups) if not g.frozen)]
    return _finished(belief.graph(), mender.fields)


def _first_fault(mender: Mender, graph: ChannelGraph) -> Fault | None:
    """The first trial that fails, narrowed down to the fewest groups that suffice to fail."""
    for plan in trial_plans(graph):
        fault = mender.attempt(graph, plan)
        if fault is not None:
            return _isolated(mender, graph, plan, fault)
    return None


def _isolated(mender: Mender, graph: ChannelGraph, plan: Keep, fault: Mismatch) -> Fault:
    cut = sorted(graph.index(name) for name in plan.keep)
    blamed = _culprits(graph, cut, fault, [])
    for suspects in (*([b] for b in blamed[:3]), blamed):
        found = _fails(mender, graph, plan, suspects)
        if found and found[2].at.op == fault.at.op:
            return found
    best: Fault = (cut, plan, fault)
    while len(best[0]) > 1:
        middle = len(best[0]) // 2
        halves = [_fails(mender, graph, plan, half) for half in (best[0][:middle], best[0][middle:])]
        smaller = [h for h in halves if h and len(h[0]) < len(best[0])]
        if not smaller:
            break
        best = next((h for h in smaller if h[2].at.op == best[2].at.op), smaller[0])
    return best


def _fails(mender: Mender, graph: ChannelGraph, plan: Keep, groups: Sequence[int]) -> Fault | None:
    """How the plan fails if it cuts only these groups, and those of their bundles."""
    closed = sorted(set(groups).union(*(b for b in graph.bundles if set(b).intersection(groups))))
    part = Keep({graph.groups[i].name: plan.keep[graph.groups[i].name] for i in closed})
    fault = mender.attempt(graph, part)
    return None if fault is None else (closed, part, fault)


def _culprits(
    graph: ChannelGraph, groups: Sequence[int], fault: Mismatch, otherwise: list[int] | None = None
) -> list[int]:
    """Those of the groups that the failing operation worked on; all of them if it worked on none."""
    hit = set(graph.grouping.group_of[fault.units[fault.units >= 0]].tolist())
    found = [g for g in groups if g in hit]
    return found or (list(groups) if otherwise is None else otherwise)


def _single_units(graph: ChannelGraph, faults: list[tuple[np.ndarray, str]]) -> list[tuple[np.ndarray, str]]:
    """Groups of one unit, which nothing can be removed from, with what forced its channels together."""
    out = []
    for i, g in enumerate(graph.groups):
        if g.width == 1 and not g.frozen:
            labels = labels_of(graph, i)
            why = next((text for ids, text in faults if np.isin(labels, ids).any()), "is a single unit")
            out.append((labels, why))
    return out


def _finished(graph: ChannelGraph, fields: Sequence[Field]) -> ChannelGraph:
    """Let numbers that the forward pass never reads follow the one width that they can mean."""
    return graph.following(*only_meaning(graph.costs_of.row, fields, graph.sites))
