"""Tests that every criterion must pass, to subclass under pytest.

class TestMine(CriterionConformance):
    criterion = my_criterion
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sentei.graph import ChannelGraph, trace
from sentei.plan.criteria import Criterion, Scores

Case = tuple[nn.Module, ChannelGraph, Any]


class SmallNet(nn.Module):
    """Residual add, depthwise and transposed conv, flatten into a linear layer: each way a unit can meet a
    weight."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.wide = nn.Conv2d(8, 12, 1)
        self.wide_norm = nn.BatchNorm2d(12)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.back = nn.Conv2d(12, 8, 1)
        self.up = nn.ConvTranspose2d(8, 6, 2, stride=2)
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.hidden = nn.Linear(24, 10)
        self.head = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = x + self.back(self.depthwise(self.wide_norm(self.wide(x)).relu()))
        return self.head(self.hidden(self.pool(self.up(x).relu()).flatten(1)).relu())


def small_case() -> Case:
    """A seeded SmallNet with statistics that are not the initial ones, its graph and two batches."""
    generator = torch.Generator().manual_seed(0)
    model = SmallNet().eval()
    with torch.no_grad():
        for tensor in (*model.parameters(), *(b for b in model.buffers() if b.is_floating_point())):
            tensor.copy_(torch.rand(tensor.shape, generator=generator) - (0.5 if tensor.ndim > 1 else 0.0))
    x = torch.randn(2, 5, 3, 8, 8, generator=generator)
    y = torch.randint(0, 4, (2, 5), generator=generator)
    return model, trace(model, x[0]), list(zip(x, y, strict=True))


class CriterionConformance:
    """Shape, range, normalisation, determinism, no side effects, and scores that follow their units."""

    criterion: Criterion
    follows_units = True
    """False for a criterion whose scores do not depend on the model."""

    def case(self) -> Case:
        """A model, its graph and batches of (x, y); override to test on your own."""
        return small_case()

    def scores(self, case: Case, seed: int = 0) -> Scores:
        model, graph, batches = case
        return type(self).criterion(model, graph, batches=batches, seed=seed)

    def test_one_score_per_unit_of_every_group_that_may_shrink(self) -> None:
        case = self.case()
        shapes = {name: (s.shape, s.dtype) for name, s in self.scores(case).items()}
        assert shapes == {g.name: ((g.width,), np.float64) for g in case[1].groups if not g.frozen}

    def test_scores_are_finite_and_not_negative(self) -> None:
        for values in self.scores(self.case()).values():
            assert np.isfinite(values).all()
            assert (values >= 0).all()

    def test_mean_is_one_in_each_group(self) -> None:
        for values in self.scores(self.case()).values():
            assert np.isclose(values.mean(), 1) or not values.any()

    def test_same_seed_gives_the_same_scores(self) -> None:
        case = self.case()
        first, second = self.scores(case, 3), self.scores(case, 3)
        assert all(np.array_equal(first[name], second[name]) for name in first)

    def test_model_is_untouched(self) -> None:
        model, graph, batches = self.case()
        modules = list(model.modules())
        modules[1].train()
        parameters = list(model.parameters())
        parameters[0].requires_grad_(False)
        parameters[1].grad = torch.ones_like(parameters[1])
        before = copy.deepcopy(model.state_dict())
        modes, flags = [m.training for m in modules], [p.requires_grad for p in parameters]
        grads = [p.grad for p in parameters]

        self.scores((model, graph, batches))

        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert [m.training for m in modules] == modes
        assert [p.requires_grad for p in parameters] == flags
        assert all(p.grad is g for p, g in zip(parameters, grads, strict=True))
        assert torch.equal(grads[1], torch.ones_like(parameters[1]))  # type: ignore[arg-type]

    def test_scores_follow_their_units_when_those_are_reordered(self) -> None:
        if not self.follows_units:
            return
        model, graph, batches = self.case()
        before = self.scores((model, graph, batches))
        rng = np.random.default_rng(0)
        order = {g.name: rng.permutation(g.width) for g in graph.groups if not g.frozen}
        after = self.scores((_reordered(model, graph, order), graph, batches))
        for name, values in before.items():
            np.testing.assert_allclose(after[name], values[order[name]], rtol=1e-3, atol=1e-6)


def _reordered(model: nn.Module, graph: ChannelGraph, order: dict[str, np.ndarray]) -> nn.Module:
    """A copy in which unit i of a group is what unit order[i] was."""
    model = copy.deepcopy(model)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with torch.no_grad():
        for group in graph.groups:
            for use in group.members if group.name in order else ():
                tensor, old, new = (
                    tensors[use.param],
                    use.indices[order[group.name]].ravel(),
                    use.indices.ravel(),
                )
                tensor.index_copy_(use.dim, torch.as_tensor(new), tensor.index_select(use.dim, torch.as_tensor(old)))
    return model
