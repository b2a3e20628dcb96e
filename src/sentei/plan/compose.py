"""Two cuts in a row as one plan."""

from __future__ import annotations

import numpy as np

from sentei.errors import PlanError
from sentei.graph import ChannelGraph
from sentei.graph.resize import Cuts
from sentei.plan.plan import Plan


def compose(graph: ChannelGraph, plan: Plan, small_graph: ChannelGraph, small_plan: Plan) -> Plan:
    """The plan of the dense model that does in one cut what `plan` and then `small_plan` do in two.

    >>> small = cut(model, graph, plan)  # doctest: +SKIP
    >>> small_graph = trace(small, x)  # doctest: +SKIP
    >>> both = compose(graph, plan, small_graph, small_plan)  # doctest: +SKIP
    >>> cut(model, graph, both)  # equals cut(small, small_graph, small_plan)  # doctest: +SKIP

    Each unit of the dense model is followed through its first place in a parameter: the rank of that place
    among those that `plan` keeps is where it lies in the small model. Raises PlanError if `small_graph` is not
    the graph of the model that `plan` leaves.
    """
    first, second = graph.cuts(plan), small_graph.cuts(small_plan)
    _check_shapes(graph, first, small_graph)
    keep = {}
    for group in graph.groups:
        if group.frozen:
            continue
        units = np.asarray(plan.keep.get(group.name, np.arange(group.width)))
        place = group.members[0]
        index = place.indices[units, 0]
        kept = dict(first.get(place.param, ())).get(place.dim)
        position = index if kept is None else np.searchsorted(kept, index)
        stay = dict(second.get(place.param, ())).get(place.dim)
        keep[group.name] = units if stay is None else units[np.isin(position, stay)]
    return Plan(keep, graph.structure, note=small_plan.note)


def _check_shapes(graph: ChannelGraph, cuts: Cuts, small_graph: ChannelGraph) -> None:
    for name, shape in graph.params.items():
        left = list(shape)
        for dim, kept in cuts.get(name, ()):
            left[dim] = len(kept)
        found = small_graph.params.get(name)
        if found != tuple(left):
            raise PlanError(
                f"the second graph is not of the model that the first plan leaves: parameter {name} is {found} "
                f"there, expected {tuple(left)}"
            )
