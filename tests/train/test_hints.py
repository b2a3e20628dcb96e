"""Features that a cut network is to share with the one that it was."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

import sentei
from sentei.errors import ConfigError
from sentei.methods.common.hints import hints_of, variances
from sentei.models import build_model
from sentei.plan import Plan
from sentei.train import Recipe, fit
from sentei.train.hints import Hints

QUICK = Recipe(epochs=2, batch_size=64, lr=0.02, limit=640, bf16=False)


class Net(nn.Module):
    """Two stages; the first ends before the pool."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, 12, 3, padding=1), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(12, 16, 3, 2, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.linear = nn.Linear(16, 10)

    def forward(self, x):
        return self.linear(self.second(self.first(x)).mean((2, 3)))


def cut_net(share=0.5):
    torch.manual_seed(0)
    model = Net().eval()
    graph = sentei.trace(model, torch.zeros(1, 1, 8, 8))
    scores = {g.name: torch.rand(g.width).numpy() for g in graph.groups if not g.frozen}
    fine = sentei.Constraints(round_to=1)
    plan = sentei.uniform(graph, sentei.Budget(macs=share), scores=scores, constraints=fine)
    return model, graph, plan, sentei.cut(model, graph, plan)


def distances(model, teacher, hints, x):
    with torch.no_grad(), Hints(hints).of(model) as found, Hints(hints).of(teacher) as wanted:
        model(x), teacher(x)
    return [float(h.distance(found[h.module], wanted[h.module])) for h in hints]


def test_a_kept_channel_is_compared_with_the_teacher_s_own():
    model, graph, plan, small = cut_net()
    x = torch.randn(5, 1, 8, 8)
    hints = hints_of(model, graph, plan)
    assert [h.module for h in hints] == ["first", "second"]
    assert hints[0].kept.tolist() == plan.keep["first.0"].tolist()
    first, second = distances(small, model, hints, x)
    assert first == 0  # nothing was cut before it
    assert second > 1e-3
    wrong = replace(hints[0], kept=torch.arange(len(hints[0].kept)))
    assert distances(small, model, [wrong], x)[0] > 1e-3


def test_a_distance_of_one_is_no_better_than_the_mean():
    model, graph, plan, small = cut_net(1.0)
    x = torch.randn(64, 1, 8, 8)
    hints = hints_of(model, graph, Plan({}, graph.structure))
    assert all(h.kept is None for h in hints)
    assert distances(small, model, hints, x) == [0, 0]
    told = variances(model, hints, x)
    hints = [replace(h, variance=told[h.module]) for h in hints]
    with torch.no_grad(), Hints(hints).of(model) as features:
        model(x)
    flat = {name: torch.full_like(t, float(t.mean())) for name, t in features.items()}
    assert float(Hints(hints).distance(flat, features)) == pytest.approx(1, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "size", "ends"),
    [
        ("resnet20", 32, ["layer1", "layer2", "layer3"]),
        ("torchvision:mobilenet_v2", 64, ["features.1", "features.3", "features.6", "features.13", "features"]),
        ("torchvision:densenet121", 64, ["features.pool0", *(f"features.transition{i}" for i in (1, 2, 3)),
                                         "features.denseblock4"]),
    ],
)  # fmt: skip
def test_networks_are_compared_at_the_end_of_each_size(name, size, ends):
    model = build_model(name).eval()
    graph = sentei.trace(model, torch.zeros(1, 3, size, size))
    assert [h.module for h in hints_of(model, graph, Plan({}, graph.structure))] == ends


def test_training_with_hints_ends_nearer_to_the_teacher(data):
    model, graph, plan, small = cut_net()
    x = next(iter(data.test.batches(200)))[0]
    fit(model, data, replace(QUICK, epochs=4, lr=0.1), progress=False)
    cut = sentei.cut(model, graph, plan)
    bare = hints_of(model, graph, plan)
    hints = [replace(h, variance=variances(model, bare, x)[h.module]) for h in bare]
    ends = []
    for weight in (0.0, 3.0):
        student = copy.deepcopy(cut)
        fit(student, data, replace(QUICK, hint_weight=weight), teacher=model, hints=Hints(hints), progress=False)
        ends.append(sum(distances(student.eval(), model.eval(), hints, x)))
    assert ends[1] < 0.7 * ends[0]


def test_hints_need_a_weight(data):
    with pytest.raises(ConfigError, match=r"hint_weight is -1"):
        Recipe(hint_weight=-1)
