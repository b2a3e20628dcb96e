"""Two cuts in a row equal the composed cut, bit for bit."""

import numpy as np
import pytest
import torch
from torch import nn

import sentei
from sentei.errors import PlanError
from sentei.models import build_model
from sentei.plan.compose import compose


class Flattened(nn.Module):
    """Units with several places each, a shuffle, and a concat."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, padding=1)
        self.b = nn.Conv2d(3, 6, 3, padding=1)
        self.mix = nn.Conv2d(14, 12, 1, groups=1)
        self.hidden = nn.Linear(12 * 16, 20)
        self.head = nn.Linear(20, 4)

    def forward(self, x):
        x = torch.cat([self.a(x), self.b(x)], 1).relu()
        x = self.mix(x)
        x = x.unflatten(1, (2, 6)).transpose(1, 2).flatten(1, 2)
        return self.head(self.hidden(x.flatten(1)).relu())


MODELS = {
    "flattened": (Flattened, (1, 3, 4, 4)),
    "resnet20": (lambda: build_model("resnet20"), (1, 3, 32, 32)),
    "mobilenetv2": (lambda: build_model("mobilenetv2"), (1, 3, 32, 32)),
    "densenet40": (lambda: build_model("densenet40"), (1, 3, 32, 32)),
    "googlenet": (lambda: build_model("googlenet"), (1, 3, 32, 32)),
    "shufflenet": (lambda: build_model("torchvision:shufflenet_v2_x0_5"), (1, 3, 64, 64)),
}


def random_plan(graph, rng, share):
    keep = {
        g.name: rng.choice(g.width, max(1, round(share * g.width)), replace=False)
        for g in graph.groups
        if not g.frozen and rng.random() < 0.8
    }
    return sentei.Plan(keep, graph.structure)


@pytest.mark.parametrize("name", MODELS)
def test_composed_cut_equals_two_cuts(name):
    make, shape = MODELS[name]
    model, x, rng = make().eval(), torch.randn(shape), np.random.default_rng(0)
    graph = sentei.trace(model, x)
    first = random_plan(graph, rng, 0.7)
    middle = sentei.cut(model, graph, first)
    middle_graph = sentei.trace(middle, x)
    assert [g.name for g in middle_graph.groups] == [g.name for g in graph.groups]
    second = random_plan(middle_graph, rng, 0.6)
    twice = sentei.cut(middle, middle_graph, second)

    both = compose(graph, first, middle_graph, second)
    once = sentei.cut(model, graph, both)

    assert [n for n, _ in once.named_parameters()] == [n for n, _ in twice.named_parameters()]
    assert all(torch.equal(a, b) for a, b in zip(once.state_dict().values(), twice.state_dict().values(), strict=True))
    assert torch.equal(once(x), twice(x))
    assert graph.cost(both) == middle_graph.cost(second)


def test_a_graph_of_another_model_is_refused():
    model, x = Flattened(), torch.zeros(1, 3, 4, 4)
    graph = sentei.trace(model, x)
    plan = sentei.Plan({"a": [0, 1]}, graph.structure)
    with pytest.raises(PlanError, match=r"parameter a\.weight is \(8, 3, 3, 3\) there, expected \(2, 3, 3, 3\)"):
        compose(graph, plan, graph, sentei.Plan({}))
