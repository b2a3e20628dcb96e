"""Weights under a norm: weight_norm is cut exactly, in both forms; spectral_norm is refused by name."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from sentei import Plan, check, cut, slim, trace
from tests.proof import outputs, prove, random_plan, relative_error, same_bits, zeroed_consumers

FORMS = [
    parametrizations.weight_norm,
    pytest.param(nn.utils.weight_norm, marks=pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")),
]


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def chain(norm: Any, **settings: Any) -> tuple[nn.Module, Tensor]:
    """Convolutions of all sorts and a linear layer, all under a norm."""
    torch.manual_seed(0)
    layers = [
        norm(nn.Conv1d(4, 12, 3, padding=1), **settings),
        nn.LeakyReLU(),
        norm(nn.Conv1d(12, 16, 3, padding=1, groups=4), **settings),
        norm(nn.ConvTranspose1d(16, 8, 4, 2, 1), **settings),
        nn.LeakyReLU(),
        nn.Flatten(),
        norm(nn.Linear(80, 6), **settings),
        nn.Linear(6, 3),
    ]
    model = nn.Sequential(*layers).double().eval()
    for name, p in model.named_parameters():
        if p.ndim < 2 or name.endswith(("_g", "original0")):  # magnitudes that are not the norms
            p.data = p.data * (0.5 + torch.rand(p.shape, dtype=p.dtype))
    with torch.no_grad():
        model(numbers(2, 4, 5))  # the old form keeps the weight of the last pass, which is copied only without history
    return model, numbers(2, 4, 5)


@pytest.mark.parametrize("dim", [0, 1, -1, None])
@pytest.mark.parametrize("norm", FORMS)
def test_weight_norm(norm: Any, dim: int | None) -> None:
    model, x = chain(norm, dim=dim)
    graph = trace(model, x)
    assert graph.prunable()[0] > 0.9
    for seed in range(4):
        plan = random_plan(graph, seed)
        small = cut(model, graph, plan)
        report = check(model, small, graph, plan, x)
        assert report.max_error < 1e-9
        assert report.approximate == ()
        assert relative_error(outputs(small, (x,)), outputs(zeroed_consumers(model, graph, plan), (x,))) < 1e-9
        with slim(model, graph, plan) as subnet:
            assert same_bits(outputs(subnet, (x,)), outputs(small, (x,)))


@pytest.mark.parametrize("norm", FORMS)
def test_files_costs_and_the_model(norm: Any, tmp_path: Any) -> None:
    model, x = chain(norm)
    before = copy.deepcopy(model)
    graph = trace(model, x)
    prove(model, graph, random_plan(graph, 1), (x,), tmp_path)
    assert same_bits(outputs(model, (x,)), outputs(before, (x,)))


@pytest.mark.parametrize("norm", FORMS)
def test_after_a_backward_pass(norm: Any) -> None:
    """The old form then keeps a weight with a history, which cannot be deep-copied."""
    model, x = chain(norm)
    model(x).sum().backward()
    graph = trace(model, x)
    plan = random_plan(graph, 0, 0.5)
    small = cut(model, graph, plan)
    check(model, small, graph, plan, x)
    assert small[0].out_channels == small[0].weight.shape[0] == 6
    small.train()(x).sum().backward()
    assert all(p.grad is not None for p in small.parameters())
    model.zero_grad()
    with slim(model.train(), graph, plan) as subnet:
        subnet(x).sum().backward()
    assert all(bool(p.grad.abs().sum() > 0) for n, p in model.named_parameters() if n.endswith(("_v", "original1")))


def test_no_direction_is_left() -> None:
    """All kept inputs of an output have zero weights."""
    model, x = chain(parametrizations.weight_norm)
    graph = trace(model, x)
    group, place = next((g, m) for g in graph.groups for m in g.members if m.param.startswith("6.") and m.dim == 1)
    kept = range(group.width // 2)
    with torch.no_grad():
        model[6].parametrizations.weight.original1[:, place.indices[kept].ravel()] = 0
    plan = Plan({group.name: kept}, graph.structure)
    small = cut(model, graph, plan)
    assert bool(torch.isfinite(outputs(small, (x,))[0]).all())
    check(model, small, graph, plan, x)


@pytest.mark.parametrize("norm", [parametrizations.spectral_norm, nn.utils.spectral_norm])
@pytest.mark.filterwarnings("ignore:.*spectral_norm:FutureWarning")
def test_spectral_norm_is_refused_by_name(norm: Any) -> None:
    model = nn.Sequential(nn.Conv1d(4, 12, 3), norm(nn.Conv1d(12, 12, 3)), nn.Conv1d(12, 12, 3), nn.Conv1d(12, 2, 1))
    graph = trace(model.eval(), torch.zeros(2, 4, 20))
    why = graph.group("0").why
    assert why is not None
    assert "spectral_norm" in why
    assert "remove_parametrizations" in why
    assert not graph.group("2").frozen


def test_masks_of_pruning_are_cut_too() -> None:
    x = numbers(2, 4, 20).float()
    model = nn.Sequential(nn.Conv1d(4, 12, 3), nn.ReLU(), nn.Conv1d(12, 12, 3), nn.ReLU(), nn.Conv1d(12, 2, 1)).eval()
    for layer in (model[0], model[2]):
        prune.l1_unstructured(layer, "weight", 0.5)
    model(x).sum().backward()
    graph = trace(model, x)
    plan = random_plan(graph, 0, 0.5)
    small = cut(model, graph, plan)
    assert check(model, small, graph, plan, x).approximate == ()
    assert small[2].weight.shape == small[2].weight_mask.shape == (6, 6, 3)
    assert small[2].in_channels == 6
