"""Networks that keep features from one pass to the next: a cut one begins without those of the whole network."""

from __future__ import annotations

from collections import deque

import pytest
import torch
from torch import Tensor, nn

from sentei import check, cut, load, save, slim, trace
from tests.proof import random_plan

SHAPE = (2, 3, 8, 8)


class Remembering(nn.Module):
    """Mixes in the features of the last pass, without asking whether they have the same width."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)
        self.kind, self.passes = kind, 0
        self.held = {"attribute": None, "list": [], "dict": {}, "deque": deque(maxlen=2), "absent": None}[kind]
        if kind == "absent":
            del self.held

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm(self.first(x)))
        self.passes += 1
        held = getattr(self, "held", None)
        if self.kind in ("attribute", "absent"):
            before, self.held = held, y
        elif self.kind == "dict":
            before, held["features"] = held.get("features"), y
        else:
            before = held[-1] if held else None
            held.append(y)
        return self.last(y if before is None else (y + before) / 2)


@pytest.mark.parametrize("kind", ["attribute", "list", "dict", "deque", "absent"])
def test_what_was_kept_in_earlier_passes_does_not_reach_the_cut_network(kind: str) -> None:
    torch.manual_seed(0)
    model, x = Remembering(kind).eval(), torch.randn(SHAPE)
    fresh = Remembering(kind).eval()
    fresh.load_state_dict(model.state_dict())
    graph = trace(model, x)
    plan = random_plan(graph, 1, 0.5)
    with torch.no_grad():
        expected = cut(fresh, graph, plan)(x)
        model(x), model(x)
        kept = model.held
        small = cut(model, graph, plan)
        assert check(model, small, graph, plan, x).max_error < 1e-6
        assert torch.equal(small(x), expected)
        assert check(model, small, graph, plan, x).max_error < 1e-6  # the cut network remembers by now, too
        with slim(model, graph, plan) as subnet:
            assert torch.equal(subnet(x), expected)
    assert model.held is kept, "the whole network keeps what it had"
    assert small.passes == 3


def test_a_plan_that_leaves_the_features_whole_leaves_what_was_kept() -> None:
    model, x = Remembering("attribute").eval(), torch.randn(SHAPE)
    graph = trace(model, x)
    with torch.no_grad():
        model(x)
        plan = random_plan(graph, 0, 1.0)
        small = cut(model, graph, plan)
        assert torch.equal(small.held, model.held)
        assert check(model, small, graph, plan, x).max_error == 0


def test_a_network_that_remembers_is_saved_without_its_answers_and_loads(tmp_path) -> None:
    model, x = Remembering("attribute").eval(), torch.randn(SHAPE)
    graph = trace(model, x)
    plan = random_plan(graph, 0, 0.5)
    small = cut(model, graph, plan)
    with torch.no_grad():
        expected = cut(model, graph, plan)(x)
        small(torch.randn(SHAPE))
    with pytest.warns(UserWarning, match="depend on what it saw before"):
        save(small, plan, tmp_path)
    with pytest.warns(UserWarning, match="depend on what it saw before"), torch.no_grad():
        assert torch.equal(load(Remembering("attribute"), tmp_path).eval()(x), expected)
