"""What every cut must satisfy, held against code that shares nothing with the tracer wherever possible."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.utils.flop_counter import FlopCounterMode

from sentei import ChannelGraph, Plan, check, cut, load, retrace, save, slim
from sentei.graph.outputs import output_tensors
from sentei.surgery import CheckReport
from tests.random_networks.blocks import Block


def random_plan(graph: ChannelGraph, seed: int, ratio: float | None = None) -> Plan:
    """Random units of every unfrozen group: any width >= 1, or the given share of each width; groups that keep the
    same share as many as the one that keeps most."""
    rng = np.random.default_rng(seed)
    keep = {}
    for g in graph.groups:
        if not g.frozen:
            width = int(rng.integers(1, g.width + 1)) if ratio is None else max(1, round(ratio * g.width))
            keep[g.name] = rng.permutation(g.width)[:width]
    return Plan(graph.bind(keep), graph.structure)


def outputs(model: nn.Module, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    with torch.no_grad():
        return output_tensors(model(*inputs))


def same_bits(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def measured_macs(model: nn.Module, inputs: tuple[Tensor, ...]) -> int:
    """Half of what PyTorch's own counter sees; fused attention kernels, which it cannot see into, are switched off."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            model(*inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    flops = counter.get_total_flops()
    assert flops % 2 == 0
    return flops // 2


def count_params(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def assert_costs(graph: ChannelGraph, plan: Plan | None, model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """`graph.cost(plan)` is what PyTorch counts on the cut model."""
    cost = graph.cost(plan)
    assert cost.params == count_params(model)
    if multiplies_by_one(graph, plan, model):
        return
    assert cost.macs == measured_macs(model, inputs)


def multiplies_by_one(graph: ChannelGraph, plan: Plan | None, model: nn.Module) -> bool:
    """torch.einsum over a dimension of one element is an elementwise product, in which its counter sees no MACs."""
    narrow = any(len(k) == 1 for k in (plan.keep if plan else {}).values())
    return narrow and any(isinstance(m, Block) for m in model.modules())


def assert_partition(graph: ChannelGraph) -> None:
    """No place in a parameter belongs to two units, and every member covers each unit equally often."""
    seen: dict[tuple[str, int], list[np.ndarray]] = {}
    for g in graph.groups:
        assert (g.why is not None) == g.frozen
        for m in g.members:
            assert m.indices.dtype == np.int64
            assert m.indices.shape[0] == g.width
            seen.setdefault((m.param, m.dim), []).append(m.indices.ravel())
    for place, parts in seen.items():
        flat = np.concatenate(parts)
        assert len(np.unique(flat)) == len(flat), place
    assert len({g.name for g in graph.groups}) == len(graph.groups)


def zeroed_consumers(model: nn.Module, graph: ChannelGraph, plan: Plan) -> nn.Module:
    """The reference of a cut, made by hand: a copy of the full model with zero weights for what is removed.

    Only what reads a unit is zeroed, so anything else that a removed unit leaks into shows up as a difference. Exact
    for networks in which only convolutions, linear and recurrent layers mix channels. A module's `reads` names its own
    parameters with the dimension that reads; `zero` layers whose outputs are multiplied with each other (attention):
    there the output itself is silenced.
    """
    new = copy.deepcopy(model)
    readers = dict[tuple[str, int], Tensor]()
    for name, module in list(new.named_modules()):
        if isinstance(module, (nn.Linear, _ConvNd)):
            place = weight_without_norm(module)
            readers[f"{name}.{place}", 0 if isinstance(module, _ConvTransposeNd) else 1] = module.weight
        elif isinstance(module, nn.MultiheadAttention):
            readers |= {(f"{name}.{k}", 1): w for k, w in module.named_parameters() if k.endswith("proj_weight")}
        elif isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
            readers |= {(f"{name}.{k}", 1): w for k, w in module.named_parameters() if "weight" in k}
        for key, _, dim in (place.rpartition(".") for place in getattr(module, "reads", ())):
            readers[f"{name}.{key}", int(dim)] = getattr(module, key)
        for key in getattr(module, "zero", ()):
            readers |= {(f"{name}.{key}.{k}", 0): p for k, p in getattr(module, key).named_parameters()}
    with torch.no_grad():
        for name, kept in plan.keep.items():
            group = graph.group(name)
            gone = np.setdiff1d(np.arange(group.width), kept)
            for m in group.members:
                if (m.param, m.dim) in readers:
                    readers[m.param, m.dim].index_fill_(m.dim, torch.from_numpy(m.indices[gone].ravel()), 0)
    return new


def weight_without_norm(module: nn.Module) -> str:
    """Make a weight under weight_norm a plain parameter; returns where its directions were kept."""
    if nn.utils.parametrize.is_parametrized(module, "weight") and hasattr(module.parametrizations.weight, "original1"):
        weight = module.weight.detach()  # copies share their class, so PyTorch's own removal would harm the original
        module.__class__ = type(module).__bases__[0]
        del module._modules["parametrizations"]
        module.register_parameter("weight", nn.Parameter(weight))
        return "parametrizations.weight.original1"
    if hasattr(module, "weight_v"):
        nn.utils.remove_weight_norm(module)
        return "weight_v"
    return "weight"


def relative_error(found: list[Tensor], expected: list[Tensor]) -> float:
    assert [t.shape for t in found] == [t.shape for t in expected]
    return max(
        float((a - b).abs().max() / b.abs().max().clamp_min(1e-30)) for a, b in zip(found, expected, strict=True)
    )


def prove(
    model: nn.Module, graph: ChannelGraph, plan: Plan, inputs: tuple[Tensor, ...], folder: Path | None = None
) -> tuple[nn.Module, CheckReport]:
    """Cut and hold the result against everything that must be true of it. With `folder`, also through a file."""
    before = copy.deepcopy(model.state_dict())
    small = cut(model, graph, plan)
    assert type(small) is type(model)
    assert list(small.state_dict()) == list(before)
    report = check(model, small, graph, plan, inputs)
    retrace(small, graph, plan)
    assert_costs(graph, plan, small, inputs)
    expected = outputs(forgetful(graph, small), inputs)
    with slim(forgetful(graph, model), graph, plan) as subnet:
        assert same_bits(outputs(subnet, inputs), expected)
    if folder is not None:
        save(graph.without_memory(small), plan, folder)
        fresh = forgetful(graph, model)
        with torch.no_grad():
            for p in fresh.parameters():
                p.fill_(0.125)
        assert same_bits(outputs(load(fresh, folder).eval(), inputs), expected)
    after: dict[str, Any] = model.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)
    return small, report


def forgetful(graph: ChannelGraph, model: nn.Module) -> nn.Module:
    """A copy that has seen nothing yet: some networks mix in what they remember of their last call."""
    return copy.deepcopy(graph.without_memory(model))


def state(model: nn.Module) -> dict[str, Any]:
    """Everything that the modules of a model keep for themselves, copied: tensors, plain attributes, modes."""
    return {name: {k: _copied(v) for k, v in vars(m).items() if k != "_modules"} for name, m in model.named_modules()}


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {k: _copied(v) for k, v in value.items()}
    return type(value)(_copied(v) for v in value) if type(value) in (list, tuple) else value


def alike(a: Any, b: Any) -> bool:
    """Whether two states are the same, bit for bit."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return isinstance(a, Tensor) and isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict) and isinstance(b, dict):
        return list(a) == list(b) and all(alike(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(alike, a, b))
    return a is b or bool(a == b)


def assert_right(model: nn.Module, graph: ChannelGraph, plan: Plan, inputs: tuple[Tensor, ...]) -> None:
    """A plan that a graph allows is a right cut, `slim` computes the same bits, and the model is what it was.

    Nothing is sorted out by `check` beforehand. Where zeroing is not removing (statistics over channels, attention over
    units that no weight reads), `check` compares with a network whose statistics see what is kept.
    """
    before = state(model)
    small = cut(model, graph, plan)
    report = check(model, small, graph, plan, inputs)
    assert alike(state(model), before)
    found = outputs(copy.deepcopy(small), inputs)
    if not report.approximate and not any(getattr(m, "adds", False) for m in model.modules()):
        silenced = zeroed_consumers(model, graph, plan)
        assert relative_error(found, outputs(silenced, inputs)) < 1e-9
    with slim(copy.deepcopy(model), graph, plan) as subnet:
        assert same_bits(outputs(subnet, inputs), found)
    assert alike(state(model), before)
