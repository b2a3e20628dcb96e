"""Whether a network is what a plan leaves of its dense model."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from sentei.errors import PlanError
from sentei.graph import Structure
from sentei.plan.plan import Plan
from sentei.surgery.history import History, history, kept_digest

WRAPPERS = (nn.DataParallel, DistributedDataParallel, AveragedModel)


def unwrapped(model: nn.Module) -> nn.Module:
    """The network inside DataParallel, DistributedDataParallel, an average of weights or torch.compile."""
    while True:
        if isinstance(model, WRAPPERS):
            model = model.module
        elif "_orig_mod" in model._modules:
            model = model.get_submodule("_orig_mod")
        else:
            return model


def check_belongs(small: nn.Module, plan: Plan, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """PlanError if the network is not what a cut with this plan leaves; `shapes` are those of its parameters."""
    structure = plan.structure
    assert structure is not None
    cuts = history(small)
    if len(cuts) > 1 and structure.fingerprint == cuts[-1][0] != cuts[0][0]:
        raise PlanError(
            f"cannot save: this network was cut {len(cuts)} times and the plan is that of the last cut only, so it "
            "could not be loaded onto the dense model. Save it with the plan of all cuts: "
            "sentei.compose(graph, plan, small_graph, small_plan)"
        )
    expected = structure.shapes(plan.keep)
    fault = None if expected is None else _first_fault(expected, shapes)
    if fault is not None:
        raise PlanError(f"cannot save: the network does not fit the plan: {fault}. {_advice(structure, cuts, shapes)}")
    if len(cuts) == 1 and cuts[0][1] != kept_digest(structure, plan.keep):
        raise PlanError(
            "cannot save: the network does not fit the plan: it was cut with a plan that keeps other units of the same "
            "groups. Save it with the plan that was given to `cut`"
        )


def _first_fault(expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]) -> str | None:
    for name in [*expected, *found]:
        a, b = expected.get(name), found.get(name)
        if a != b:
            shown = ["absent" if s is None else f"of shape {'x'.join(map(str, s)) or 'scalar'}" for s in (b, a)]
            return f"parameter {name} is {shown[0]} in the network and {shown[1]} after the cut that the plan describes"
    return None


def _advice(structure: Structure, cuts: History, found: Mapping[str, tuple[int, ...]]) -> str:
    """What to do about a network that does not fit."""
    if found == dict(structure.params):
        return "This is the dense network; save what `cut(model, graph, plan)` returned"
    if len(cuts) > 1:
        return (
            f"It was cut {len(cuts)} times: save it with the plan of all cuts, "
            "sentei.compose(graph, plan, small_graph, small_plan)"
        )
    if found.keys() != structure.params.keys():
        return (
            "`load` rebuilds the network from the dense model, so save it before layers are fused, added or taken out "
            "(and do that again after `load`), with the plan that cut it"
        )
    return (
        "Save it with the plan that cut it. A layer that was replaced after the cut cannot be rebuilt by `load`: "
        "replace it in the dense model first, then trace and cut"
    )
