from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from sentei.errors import ConfigError, PlanError
from sentei.plan import CRITERIA, criterion
from sentei.plan.criteria import bn_scale, fpgm, l1, l2, random, taylor
from sentei.plan.testing import CriterionConformance


class TestRandom(CriterionConformance):
    criterion = random
    follows_units = False

    def test_another_seed_gives_other_scores(self):
        case = self.case()
        first, second = self.scores(case, 0), self.scores(case, 1)
        assert all(not np.array_equal(first[name], second[name]) for name in first)


class TestL1(CriterionConformance):
    criterion = l1


class TestL2(CriterionConformance):
    criterion = l2


class TestBNScale(CriterionConformance):
    criterion = bn_scale


class TestFPGM(CriterionConformance):
    criterion = fpgm


class TestTaylor(CriterionConformance):
    criterion = taylor


def one_group(width, *uses):
    """A graph with one group "units"; a use is (param, dim) or (param, dim, elements a unit)."""
    members = []
    for param, dim, *rest in uses:
        elements = rest[0] if rest else 1
        indices = np.arange(width * elements).reshape(width, elements)
        members.append(SimpleNamespace(param=param, dim=dim, indices=indices))
    group = SimpleNamespace(name="units", width=width, frozen=False, why=None, members=tuple(members))
    return SimpleNamespace(groups=(group,))


def pair():
    """conv -> norm -> relu -> flatten -> linear, 4 channels of 2x2 positions."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2, bias=False))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([0.5, -2.0, 0.0, 1.0]))
    names = (
        ("0.weight", 0),
        ("0.bias", 0),
        ("1.weight", 0),
        ("1.bias", 0),
        ("1.running_mean", 0),
        ("4.weight", 1, 4),
    )
    return model.eval(), one_group(4, *names)


def scaled(values):
    values = np.asarray(torch.as_tensor(values).detach().double())
    return values / values.mean()


@pytest.mark.parametrize(("score", "p"), [(l1, 1), (l2, 2)])
def test_magnitude_is_the_norm_of_all_weights_that_leave_with_the_unit(score, p):
    model, graph = pair()
    together = torch.cat([model[0].weight.flatten(1), model[4].weight.T.reshape(4, 8)], 1)
    np.testing.assert_allclose(score(model, graph)["units"], scaled(together.norm(p, dim=1)), rtol=1e-6)


def test_bn_scale_is_the_absolute_gamma():
    model, graph = pair()
    assert np.allclose(bn_scale(model, graph)["units"], scaled([0.5, 2.0, 0.0, 1.0]))


def test_bn_scale_falls_back_to_l1_only_where_some_other_group_has_a_norm():
    model, graph = pair()
    bare = SimpleNamespace(**{**vars(graph.groups[0]), "name": "bare", "members": graph.groups[0].members[-1:]})
    both = SimpleNamespace(groups=(graph.groups[0], bare))
    assert np.allclose(bn_scale(model, both)["bare"], l1(model, SimpleNamespace(groups=(bare,)))["bare"])
    with pytest.raises(PlanError, match="bn_scale needs BatchNorm"):
        bn_scale(model, SimpleNamespace(groups=(bare,)))


def test_groups_of_zero_gammas_score_zero():
    model, graph = pair()
    nn.init.zeros_(model[1].weight)
    assert bn_scale(model, graph)["units"].tolist() == [0, 0, 0, 0]


def test_fpgm_is_the_summed_distance_between_producing_filters():
    model, graph = pair()
    filters = model[0].weight.flatten(1)
    np.testing.assert_allclose(fpgm(model, graph)["units"], scaled(torch.cdist(filters, filters).sum(1)), rtol=1e-5)


def test_fpgm_of_equal_filters_is_zero():
    model, graph = pair()
    nn.init.ones_(model[0].weight)
    assert fpgm(model, graph)["units"].tolist() == [0, 0, 0, 0]


def test_taylor_is_the_squared_change_of_a_linear_loss_when_a_unit_is_removed():
    model, graph = pair()
    batches = [(torch.randn(5, 3, 2, 2), torch.randn(5, 2)) for _ in range(3)]

    def loss(output, y):
        return (output * y).sum()

    expected = torch.zeros(4)
    for unit in range(4):
        for x, y in batches:
            full = loss(model(x), y)
            kept = model[4].weight.detach().clone()
            kept[:, 4 * unit : 4 * unit + 4] = 0
            expected[unit] += (full - loss(model[:4](x) @ kept.T, y)).detach() ** 2
    scores = taylor(model, graph, batches=batches, step=lambda m, batch: loss(m(batch[0]), batch[1]))
    np.testing.assert_allclose(scores["units"], scaled(expected), rtol=1e-4, atol=1e-6)


def test_taylor_works_under_no_grad_and_with_frozen_weights():
    model, graph = pair()
    model.requires_grad_(False)
    with torch.no_grad():
        scores = taylor(model, graph, batches=[(torch.randn(5, 3, 2, 2), torch.tensor([0, 1, 0, 1, 1]))])
    assert scores["units"].any()
    assert not any(p.requires_grad for p in model.parameters())


def test_taylor_without_usable_data_is_refused():
    model, graph = pair()
    with pytest.raises(ConfigError, match="an iterable of what `step` takes"):
        taylor(model, graph)
    with pytest.raises(ConfigError, match="empty"):
        taylor(model, graph, batches=[])
    with pytest.raises(ConfigError, match="batch 0 is nan"):
        taylor(model, graph, batches=[(torch.full((1, 3, 2, 2), torch.nan), torch.tensor([0]))])
    assert all(p.requires_grad for p in model.parameters())


def test_a_transposed_conv_produces_along_dimension_one():
    model = nn.Sequential(nn.ConvTranspose2d(2, 3, 1), nn.Conv2d(3, 5, 1))
    graph = one_group(3, ("0.weight", 1), ("1.weight", 1))
    filters = model[0].weight.transpose(0, 1).flatten(1)
    np.testing.assert_allclose(fpgm(model, graph)["units"], scaled(torch.cdist(filters, filters).sum(1)), rtol=1e-5)


def test_units_of_several_channels_count_all_of_them():
    model = nn.Sequential(nn.Conv2d(1, 6, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1.0, 2, 3, 4, 5, 6]).reshape(6, 1, 1, 1))
    assert np.allclose(l1(model, one_group(3, ("0.weight", 0, 2)))["units"], scaled([3, 7, 11]))


def test_a_group_without_weights_is_scored_by_what_it_has():
    model, _ = pair()
    graph = one_group(4, ("1.weight", 0))
    batch = [(torch.randn(5, 3, 2, 2), torch.tensor([0, 1, 0, 1, 1]))]
    assert np.allclose(l1(model, graph)["units"], scaled([0.5, 2.0, 0.0, 1.0]))
    assert taylor(model, graph, batches=batch)["units"].any()


def test_frozen_groups_get_no_scores():
    model, graph = pair()
    graph.groups[0].frozen = True
    assert all(score(model, graph, batches=[]) == {} for score in (random, l1, l2, bn_scale, fpgm))


def test_registry():
    assert criterion("l1") is CRITERIA["l1"]
    assert set(CRITERIA) == {"random", "l1", "l2", "bn_scale", "fpgm", "taylor"}
    with pytest.raises(ConfigError, match="did you mean 'taylor'"):
        criterion("tailor")
