"""What timm builds from the settings that its networks keep works on cut networks too."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from timm.utils import reparameterize_model
from torch import nn

from sentei import cut, trace
from tests.proof import random_plan
from tests.zoo.families import reveal

CLASSIFIERS = (
    "resnet18", "convnext_atto", "efficientnet_b0", "mobilenetv3_small_050", "regnetx_002", "densenet121", "repvgg_a0",
)  # fmt: skip
WITH_FEATURES = ("resnet18", "convnext_atto", "regnetx_002", "efficientnet_b0")
FUSED = ("repvgg_a0", "fastvit_t8")


def and_slowly(fast: tuple[str, ...], *others: str) -> list:
    return [*fast, *(pytest.param(name, marks=pytest.mark.slow) for name in others)]


def halved(name: str, size: int) -> nn.Module:
    torch.manual_seed(0)
    options = {"img_size": size} if name.startswith("vit") else {}
    model = reveal(timm.create_model(name, **options)).eval()
    graph = trace(model, torch.zeros(1, 3, size, size))
    return cut(model, graph, random_plan(graph, 1, 0.5)).eval()


@pytest.mark.parametrize("name", and_slowly(CLASSIFIERS, "vgg11", "vit_tiny_patch16_224"))
def test_a_cut_network_gets_a_new_classifier(name: str) -> None:
    small = halved(name, 224 if name == "vgg11" else 64)
    small.reset_classifier(7)
    out = small(torch.randn(2, 3, *(2 * [224 if name == "vgg11" else 64])))
    assert out.shape == (2, 7)
    assert out.abs().sum() > 0


@pytest.mark.parametrize("name", WITH_FEATURES)
def test_a_cut_network_tells_the_widths_of_its_features(name: str) -> None:
    small = halved(name, 64)
    x = torch.randn(1, 3, 64, 64)
    last = small.forward_features(x)
    assert small.num_features == last.shape[1]
    found = [f.shape[1] for f in small.forward_intermediates(x, intermediates_only=True)]
    assert [info["num_chs"] for info in small.feature_info][-len(found) :] == found


@pytest.mark.parametrize("name", and_slowly(FUSED, "mobileone_s0", "repghostnet_050"))
def test_a_cut_network_is_fused_and_computes_the_same(name: str) -> None:
    small = halved(name, 64)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = small(x)
        fused = reparameterize_model(copy.deepcopy(small))
        found = fused(x)
    assert len(list(fused.parameters())) < len(list(small.parameters()))
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()
