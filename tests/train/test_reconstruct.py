"""Weights by least squares: they are those of the normal equations, and a cut network computes more of what it did."""

import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import sentei
from sentei.data import load_data
from sentei.models import build_model
from sentei.plan import Plan
from sentei.search import Recalibrate, Reconstruct
from sentei.surgery import cut
from sentei.train import Recipe, fit
from sentei.train import reconstruct as module
from sentei.train.reconstruct import Reconstruction, _sampled

KINDS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


@given(
    dims=st.integers(1, 3), kernel=st.integers(1, 3), stride=st.integers(1, 2), dilation=st.integers(1, 2),
    padding=st.sampled_from([0, 1, "same", "valid"]), mode=st.sampled_from(["zeros", "reflect", "circular"]),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_what_is_looked_at_makes_the_outputs(dims, kernel, stride, dilation, padding, mode, seed):
    torch.manual_seed(seed)
    stride = 1 if padding == "same" else stride
    if mode != "zeros" and padding == "same":
        padding = 1
    layer = KINDS[dims](3, 5, kernel, stride, padding, dilation, padding_mode=mode)
    x = torch.randn(2, 3, *(7, 6, 5)[:dims])
    outputs = layer(x).flatten(2)
    rows = _sampled(layer, x, torch.Generator().manual_seed(seed))
    places = torch.randperm(outputs.shape[2], generator=torch.Generator().manual_seed(seed))[: module.PLACES]
    made = rows @ layer.weight.flatten(1).T + layer.bias
    assert torch.allclose(made.reshape(2, len(places), 5), outputs[:, :, places].transpose(1, 2), atol=1e-5)


def test_linear_layers_are_looked_at_over_all_their_leading_dimensions():
    layer, x = nn.Linear(4, 3), torch.randn(2, 5, 6, 4)
    assert _sampled(layer, x, torch.Generator().manual_seed(0)).shape == (2 * module.PLACES, 4)
    assert _sampled(layer, x[:, 0, 0], torch.Generator()).shape == (2, 4)


@pytest.fixture(scope="module")
def trained_digits():
    data = load_data("digits")
    torch.manual_seed(0)
    model = build_model("digitsnet")
    return fit(model, data, Recipe(epochs=4, batch_size=64, lr=0.1), progress=False).model.eval(), data


class Net(nn.Module):
    def __init__(self, bias):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.second, self.last = nn.Conv2d(8, 6, 3, padding=1, bias=bias), nn.Linear(6, 4)

    def forward(self, x):
        return self.last(self.second(torch.relu(self.norm(self.first(x)))).mean((2, 3)))


@pytest.fixture(params=[True, False], ids=["bias", "no bias"])
def net(request):
    torch.manual_seed(0)
    return Net(request.param).eval()


IMAGES = torch.randn(40, 3, 4, 4, generator=torch.Generator().manual_seed(1))


def test_the_weights_are_those_of_the_normal_equations(net):
    graph = sentei.trace(net, IMAGES[:2])
    kept = np.array([0, 2, 3, 6])
    plan = Plan({"first": kept, "second": np.array([1, 2, 5])}, graph.structure)
    small = cut(net, graph, plan)
    Reconstruction(net, graph, [(IMAGES, None)]).apply(small, plan)
    with torch.no_grad():
        features = torch.relu(net.norm(net.first(IMAGES)))
        rows = nn.functional.unfold(features, 3, padding=1).transpose(1, 2).reshape(-1, 72).double()
        weight = net.second.weight.flatten(1).double()[[1, 2, 5]]
    mean = rows.mean(0) if net.second.bias is not None else torch.zeros(72)
    left = (torch.from_numpy(kept)[:, None] * 9 + torch.arange(9)).flatten()
    inputs, wanted = (rows - mean)[:, left], (rows - mean) @ weight.T
    pull = (module.RIDGE * inputs.square().mean() * len(rows)).sqrt()
    inputs = torch.cat([inputs, pull * torch.eye(36)])
    wanted = torch.cat([wanted, pull * weight[:, left].T])
    solved = torch.linalg.lstsq(inputs, wanted).solution.T
    assert torch.allclose(small.second.weight.flatten(1).double(), solved, atol=1e-5)


def test_a_cut_network_computes_more_of_what_it_did(net):
    graph = sentei.trace(net, IMAGES[:2])
    plan = sentei.uniform(graph, sentei.Budget(macs=0.4))
    plain = cut(net, graph, plan)
    better = copy.deepcopy(plain)
    Reconstruction(net, graph, [(IMAGES, None)]).apply(better, plan)
    with torch.no_grad():
        before, after = ((m(IMAGES) - net(IMAGES)).square().mean() for m in (plain, better))
    assert after < 0.6 * before


def test_what_is_cut_without_loss_stays_what_it_was(net):
    """A dead unit is all that goes: nothing has to be made up for."""
    with torch.no_grad():
        net.norm.weight[3], net.norm.bias[3] = 0.0, 0.0
    graph = sentei.trace(net, IMAGES[:2])
    plan = Plan({"first": np.delete(np.arange(8), 3)}, graph.structure)
    small = cut(net, graph, plan)
    Reconstruction(net, graph, [(IMAGES, None)]).apply(small, plan)
    with torch.no_grad():
        assert torch.allclose(small(IMAGES), net(IMAGES), atol=1e-5)


def test_batches_of_nothing_and_features_that_are_not_finite_change_nothing(net):
    graph = sentei.trace(net, IMAGES[:2])
    plan = sentei.uniform(graph, sentei.Budget(macs=0.4))
    for images in (IMAGES[:0], IMAGES / 0):
        plain = cut(net, graph, plan)
        small = copy.deepcopy(plain)
        Reconstruction(net, graph, [(images, None)]).apply(small, plan)
        assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), small.parameters(), strict=True))


def test_layers_that_it_is_not_for_keep_their_weights():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8), nn.ConvTranspose2d(8, 8, 2),
        nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 1)), nn.Flatten(), nn.Linear(8 * 9, 4),
    )  # fmt: skip
    images = torch.randn(20, 3, 6, 6)
    graph = sentei.trace(net, images[:2])
    plan = sentei.uniform(graph, sentei.Budget(macs=0.5))
    plain = cut(net, graph, plan)
    small = copy.deepcopy(plain)
    Reconstruction(net, graph, [(images, None)]).apply(small, plan)
    changed = {n for (n, a), b in zip(plain.named_parameters(), small.parameters(), strict=True) if not a.equal(b)}
    assert changed == {"5.weight", "5.bias"}


def test_a_structure_measures_better_and_the_same_in_another_process(trained_digits):
    model, data = trained_digits
    graph = sentei.trace(model, torch.zeros(1, 1, 8, 8))
    how = {"calibration_images": 500, "validation_images": 180, "bf16": False}
    widths = graph.widths(sentei.uniform(graph, sentei.Budget(macs=0.2)))
    plain, better = (kind(model, graph, data, **how) for kind in (Recalibrate, Reconstruct))
    assert better(widths)["fitness"] > plain(widths)["fitness"] + 0.02
    assert pickle.loads(pickle.dumps(better))(widths) == better(widths)
    assert plain.settings["fitness"] != better.settings["fitness"]
