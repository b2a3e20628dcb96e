"""Trained networks that tests of the methods share; no test changes them."""

import pytest
import torch
from torch import nn

from sentei.data import Data
from sentei.models import build_model
from sentei.train import Recipe, fit
from tests.methods.networks import Three


def trained(model: type[nn.Module] | str, data: Data, epochs: int) -> nn.Module:
    torch.manual_seed(0)
    network = build_model(model) if isinstance(model, str) else model()
    return fit(network, data, Recipe(epochs=epochs, batch_size=64, lr=0.1), progress=False).model


@pytest.fixture(scope="session")
def digitsnet(data: Data) -> nn.Module:
    return trained("digitsnet", data, 6)


@pytest.fixture(scope="session")
def three(data: Data) -> nn.Module:
    return trained(Three, data, 4)
