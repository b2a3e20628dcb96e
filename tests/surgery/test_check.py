"""A proof that accepts a wrong model proves nothing: each test breaks a cut and expects to be told."""

import numpy as np
import pytest
import torch
from torch import nn

from sentei import Plan, check, cut, retrace, trace
from sentei.errors import SenteiError, SurgeryError
from sentei.surgery.check import relative_error
from tests.proof import random_plan
from tests.random_networks import Block, conv, randomise

X = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def halves(m: Block, x: torch.Tensor) -> torch.Tensor:
    a, b = m.a(x).chunk(2, 1)
    return m.out(torch.cat([a * b.sigmoid(), m.c(a)], 1))


@pytest.fixture
def model() -> nn.Module:
    return randomise(Block(halves, a=conv(3, 16), c=conv(8, 6), out=conv(14, 3)).double().eval())


def test_report(model: nn.Module) -> None:
    graph = trace(model, X)
    plan = random_plan(graph, 0, 0.5)
    report = check(model, cut(model, graph, plan), graph, plan, X)
    assert report.max_error < 1e-12
    assert (report.tolerance, report.approximate) == (1e-9, ())
    model.float()
    report = check(model, cut(model, graph, plan), graph, plan, X.float())
    assert report.max_error < 1e-5
    assert report.tolerance == 1e-4


@pytest.mark.parametrize("name", ["a.weight", "a.bias", "c.weight", "out.weight", "out.bias"])
def test_one_wrong_weight(model: nn.Module, name: str) -> None:
    graph = trace(model, X)
    plan = random_plan(graph, 0, 0.5)
    small = cut(model, graph, plan)
    with torch.no_grad():
        small.get_parameter(name).view(-1)[0] += 1e-3
    retrace(small, graph, plan)  # the wiring is right ...
    with pytest.raises(SurgeryError, match=r"differs from the reference by .* more than 1e-09"):
        check(model, small, graph, plan, X)  # ... the numbers are not


@pytest.mark.parametrize("dim", [0, 1])
def test_two_swapped_channels(model: nn.Module, dim: int) -> None:
    graph = trace(model, X)
    plan = random_plan(graph, 0, 0.5)
    small = cut(model, graph, plan)
    order = [1, 0, *range(2, small.c.weight.shape[dim])]
    with torch.no_grad():
        small.c.weight.copy_(small.c.weight.index_select(dim, torch.tensor(order)))
    with pytest.raises(SurgeryError, match="differs"):
        check(model, small, graph, plan, X)


def test_other_units_than_planned(model: nn.Module) -> None:
    graph = trace(model, X)
    small = cut(model, graph, Plan({"a": [0, 1, 2]}, graph.structure))
    with pytest.raises(SurgeryError, match="differs"):
        check(model, small, graph, Plan({"a": [0, 1, 3]}, graph.structure), X)


def test_wrong_size(model: nn.Module) -> None:
    graph = trace(model, X)
    small = cut(model, graph, Plan({"a": [0, 1, 2]}, graph.structure))
    with pytest.raises(SurgeryError, match=r"parameter a\.(weight|bias) .*the plan leaves"):
        retrace(small, graph, Plan({"a": [0, 1, 2, 3]}, graph.structure))


def test_uneven_halves_are_seen_by_structure(model: nn.Module) -> None:
    """All shapes fit, but chunk(2) now mixes channels of both halves: only the wiring can tell without data."""
    graph = trace(model, X)
    plan = Plan({"a": np.arange(4)}, graph.structure)
    small = cut(model, graph, plan)
    small.fn = rolled
    with pytest.raises(SurgeryError, match="not wired like the original"):
        retrace(small, graph, plan)


def rolled(m: Block, x: torch.Tensor) -> torch.Tensor:
    a, b = m.a(x).roll(1, 1).chunk(2, 1)
    return m.out(torch.cat([a * b.sigmoid(), m.c(a)], 1))


def test_a_cut_that_fails_its_forward(model: nn.Module) -> None:
    graph = trace(model, X)
    plan = Plan({"a": np.arange(4)}, graph.structure)
    small = cut(model, graph, plan)
    small.c = conv(5, 6).double()
    with pytest.raises(SurgeryError):
        check(model, small, graph, plan, X)


def test_not_a_number_is_an_error(model: nn.Module) -> None:
    graph = trace(model, X)
    plan = random_plan(graph, 0, 0.5)
    small = cut(model, graph, plan)
    with torch.no_grad():
        small.out.bias[0] = float("nan")
    with pytest.raises(SurgeryError, match="nan"):
        check(model, small, graph, plan, X)


def test_modes_and_weights_are_left(model: nn.Module) -> None:
    graph = trace(model, X)
    plan = random_plan(graph, 0, 0.5)
    small = cut(model, graph, plan).train()
    model.train()
    before = [p.clone() for p in model.parameters()]
    check(model, small, graph, plan, X)
    assert model.training
    assert small.training
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_inputs_of_another_shape_or_kind(model: nn.Module) -> None:
    graph = trace(model, X)
    plan = random_plan(graph, 0, 0.5)
    small = cut(model, graph, plan)
    assert check(model, small, graph, plan, X[:1]).max_error < 1e-12
    with pytest.raises(SenteiError):
        check(model, small, graph, plan, torch.zeros(1, 5, 8, 8, dtype=torch.float64))


def test_statistics_over_kept_channels_only() -> None:
    """Layer norm over fewer channels is not the original function: check passes and says so."""
    model = Block(
        lambda m, x: m.out(m.norm(m.a(x).permute(0, 2, 3, 1))), a=conv(3, 8), norm=nn.LayerNorm(8), out=nn.Linear(8, 3)
    )
    randomise(model.double().eval())
    graph = trace(model, X)
    plan = random_plan(graph, 0, 0.5)
    report = check(model, cut(model, graph, plan), graph, plan, X)
    assert report.max_error < 1e-12
    assert report.approximate == ("norm",)


@pytest.mark.parametrize(
    ("a", "b", "error"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0),
        ([1.0, 2.0], [1.0, 4.0], 0.5),
        ([1.0], [1.0, 2.0], float("inf")),
        ([], [], 0),
        ([0.0], [0.0], 0),
    ],
)
def test_relative_error(a, b, error) -> None:
    assert relative_error(torch.tensor(a), torch.tensor(b)) == error


def test_relative_error_of_non_finite_values_never_passes() -> None:
    for a, b in [("nan", 1), (1, "nan"), ("inf", 1), (1, "inf")]:
        assert not relative_error(torch.tensor([float(a)]), torch.tensor([float(b)])) <= 1


def test_damaged_weights_are_not_blamed_on_the_cut(model: nn.Module) -> None:
    graph = trace(model, X)
    plan = random_plan(graph, 0, 0.5)
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    with pytest.raises(SurgeryError, match="original network's own output is not finite"):
        check(model, cut(model, graph, plan), graph, plan, X)


def test_a_function_instead_of_a_model() -> None:
    with pytest.raises(SenteiError, match="call the function that builds it"):
        trace(nn.Identity, X)  # type: ignore[arg-type]


def test_rounding_is_told_from_a_wrong_cut() -> None:
    """Large numbers that cancel: float32 is off by more than the tolerance, float64 shows that the cut is right."""

    def forward(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        y = m.a(x.flatten(1)) * 1e4
        return m.out(y + 1.0) - m.out(y)

    model = randomise(Block(forward, a=nn.Linear(192, 512), out=nn.Linear(512, 2)).eval())
    graph = trace(model, X.float())
    plan = random_plan(graph, 0, 0.5)
    small = cut(model, graph, plan)
    report = check(model, small, graph, plan, X.float())
    assert report.rounding is not None
    assert report.rounding > 1e-4
    assert report.max_error < 1e-9
    with torch.no_grad():
        small.out.weight[0] += 0.1
    with pytest.raises(SurgeryError, match="differs from the reference"):
        check(model, small, graph, plan, X.float())
