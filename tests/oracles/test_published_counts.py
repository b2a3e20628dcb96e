"""Parameters and MACs of the papers' networks, against published and independently computed counts.

ABCPruner (Lin et al., IJCAI 2020) gives every prunable layer a gene h in 1..10 and keeps floor(c * h / 10) of its c
channels. The counts here (convolution, BatchNorm affine and linear parameters; MACs of convolutions and linear layers)
were computed from the architectures' layer tables, without this library.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from sentei import ChannelGraph, Plan, cut, trace
from sentei.models import build_model
from tests.proof import assert_costs

GOOGLENET_GENES = ("branch3.0", "branch5.0", "branch5.3")
"""In each Inception module: both 1x1 reductions and the first 3x3 of the 5x5 branch."""


class Oracle(NamedTuple):
    build: Callable[[], nn.Module]
    size: int
    is_gene: Callable[[str], bool]
    genes: int
    counts: dict[int, tuple[int, int]]


def zoo(name: str) -> Callable[[], nn.Module]:
    return lambda: build_model(name)


def resnet50() -> nn.Module:
    return torchvision.models.resnet50(weights=None)


ORACLES = {
    "vgg16": Oracle(zoo("vgg16"), 32, lambda g: True, 13, {
        10: (14_728_266, 313_201_664), 7: (7_201_823, 152_402_956), 5: (3_686_954, 78_744_064)}),
    "resnet56": Oracle(zoo("resnet56"), 32, lambda g: g.startswith("layer") and g.endswith("conv1"), 27, {
        10: (853_018, 125_485_696), 7: (587_428, 86_409_856), 5: (428_074, 62_964_352)}),
    "resnet110": Oracle(zoo("resnet110"), 32, lambda g: g.startswith("layer") and g.endswith("conv1"), 54, {
        10: (1_727_962, 252_887_680), 7: (1_189_582, 173_998_720), 5: (866_554, 126_665_344)}),
    "googlenet": Oracle(zoo("googlenet"), 32, lambda g: g.endswith(GOOGLENET_GENES), 27, {
        10: (6_166_250, 1_521_756_160), 7: (4_695_262, 1_131_720_384), 5: (3_766_690, 886_990_848)}),
    "resnet50": Oracle(resnet50, 224, lambda g: g.startswith("layer") and g.endswith(("conv1", "conv2")), 32, {
        10: (25_557_032, 4_089_184_256), 7: (16_945_246, 2_601_392_356), 5: (12_381_864, 1_822_031_872)}),
}  # fmt: skip


@cache
def traced(name: str) -> tuple[nn.Module, ChannelGraph]:
    oracle = ORACLES[name]
    model = oracle.build().eval()
    return model, trace(model, torch.zeros(1, 3, oracle.size, oracle.size))


def genes(name: str, h: int) -> Plan:
    """Keep floor(c * h / 10) of every layer that is a gene, spread over the layer."""
    _, graph = traced(name)
    chosen = [g for g in graph.groups if not g.frozen and ORACLES[name].is_gene(g.name)]
    assert len(chosen) == ORACLES[name].genes
    return Plan({g.name: np.linspace(0, g.width - 1, g.width * h // 10).astype(int) for g in chosen}, graph.structure)


@pytest.mark.parametrize("h", [10, 7, 5])
@pytest.mark.parametrize("name", ORACLES)
def test_counts(name: str, h: int) -> None:
    _, graph = traced(name)
    cost = graph.cost(genes(name, h))
    assert (cost.params, cost.macs) == ORACLES[name].counts[h]


@pytest.mark.parametrize("name", ["vgg16", "resnet56", "googlenet"])
def test_cut_models_really_have_them(name: str) -> None:
    model, graph = traced(name)
    plan = genes(name, 5)
    assert_costs(graph, plan, cut(model, graph, plan), (torch.zeros(1, 3, 32, 32),))


@pytest.mark.parametrize(
    ("name", "macs", "params"),
    [
        ("resnet18", 1_814_073_344, 11_689_512),
        ("mobilenet_v2", 300_774_272, 3_504_872),
        ("vgg16", 15_470_264_320, 138_357_544),
        ("densenet121", 2_834_161_664, 7_978_856),
    ],
)
def test_torchvision_models(name: str, macs: int, params: int) -> None:
    """Parameter counts as torchvision's documentation gives them; MACs of convolutions and linear layers."""
    with torch.device("meta"):
        model = torchvision.models.get_model(name, weights=None)
    cost = trace(model.eval(), torch.zeros(1, 3, 224, 224)).cost()
    assert (cost.params, cost.macs) == (params, macs)
