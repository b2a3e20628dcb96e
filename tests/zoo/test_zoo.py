"""Real architectures: random cuts equal their reference, by structure and by numbers, and come back from disk."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from sentei import check, cut, load, save, slim, trace
from tests.proof import assert_costs, assert_partition, count_params, outputs, random_plan, same_bits
from tests.zoo.families import CLASSIFIERS, QUICK, SEGMENTATION, TIMM, build

ALL = [*CLASSIFIERS, *SEGMENTATION, *(f"timm:{n}" for n in TIMM)]
RATIOS = (0.3, 0.5, 0.75)


@pytest.mark.parametrize("name", QUICK)
def test_family(name: str, tmp_path: Path) -> None:
    model, inputs = build(name, QUICK[name])
    graph = trace(model, inputs)
    assert_partition(graph)
    plan = random_plan(graph, 1, 0.5)
    small = cut(model, graph, plan)
    check(model, small, graph, plan, inputs)
    assert graph.cost(plan).params == count_params(small) < 0.6 * count_params(model)
    assert_costs(graph, plan, small, inputs)
    expected = outputs(small, inputs)
    with slim(model, graph, plan) as subnet:
        assert same_bits(outputs(subnet, inputs), expected)
    save(small, plan, tmp_path)
    assert same_bits(outputs(load(model, tmp_path).eval(), inputs), expected)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small"])
def test_gradients_of_slim_reach_the_full_parameters(name: str) -> None:
    model, inputs = build(name, 64)
    graph = trace(model, inputs)
    plan = random_plan(graph, 1, 0.5)
    small = cut(model, graph, plan)
    small(*inputs).square().sum().backward()
    with slim(model, graph, plan) as subnet:
        subnet(*inputs).square().sum().backward()
    cuts = graph.cuts(plan)
    for key, p in model.named_parameters():
        grad = p.grad
        for dim, idx in cuts.get(key, ()):
            grad = grad.index_select(dim, torch.from_numpy(idx))
        torch.testing.assert_close(grad, small.get_parameter(key).grad)


def test_googlenet_with_auxiliary_heads_trains_after_the_cut() -> None:
    model, _ = build("googlenet")
    x = torch.zeros(2, 3, 224, 224)
    graph = trace(model, x)
    small = cut(model, graph, random_plan(graph, 1, 0.3)).train()
    out = small(x)
    assert [t.shape for t in out] == [(2, 1000)] * 3
    assert small.aux1.fc1.out_features < 1024


def test_classifiers_keep_all_their_classes() -> None:
    """SqueezeNet's classifier is a convolution: nobody has to tell that it must stay."""
    model, inputs = build("squeezenet1_1", 64)
    graph = trace(model, inputs)
    assert outputs(cut(model, graph, random_plan(graph, 0, 0.3)), inputs)[0].shape == (1, 1000)


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_every_model(name: str, tmp_path: Path) -> None:
    model, inputs = build(name)
    graph = trace(model, inputs)
    assert_partition(graph)
    for seed, ratio in enumerate(RATIOS):
        plan = random_plan(graph, seed, ratio)
        small = cut(model, graph, plan)
        check(model, small, graph, plan, inputs)
        assert graph.cost(plan).params == count_params(small)
        if ratio == 0.5:
            assert graph.cost(plan).macs <= graph.cost().macs
            expected = outputs(small, inputs)
            with slim(model, graph, plan) as subnet:
                assert same_bits(outputs(subnet, inputs), expected)
            save(small, plan, tmp_path)
            fresh = copy.deepcopy(model)
            del small
            assert same_bits(outputs(load(fresh, tmp_path).eval(), inputs), expected)
    names_reason = [g for g in graph.groups if g.frozen and g.why]
    assert graph.prunable()[1] >= 0.6 or names_reason
