"""Gradients in pieces and activations computed again: the same training in less memory."""

import copy
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
import torchvision
from torch import nn

from sentei.errors import ConfigError, TrainError
from sentei.models import build_model
from sentei.tasks import Classification
from sentei.train import Recipe, fit
from sentei.train.memory import MB, memory_of, training_bytes
from sentei.train.recompute import Recomputed, blocks

PLAIN = Recipe(epochs=1, batch_size=64, limit=320, lr=0.1, bf16=False)


def after(model: nn.Module, data, recipe: Recipe) -> dict[str, torch.Tensor]:
    network = copy.deepcopy(model)
    fit(network, data, recipe, progress=False)
    return network.state_dict()


def test_gradients_in_pieces_are_those_of_the_batch(data):
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.GroupNorm(2, 8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))
    whole = after(model, data, PLAIN)
    for pieces in (3, 64):
        found = after(model, data, replace(PLAIN, accumulate=pieces))
        assert all(torch.allclose(whole[n], found[n], atol=1e-6) for n in whole)


def test_recomputing_changes_neither_weights_nor_statistics(data):
    model = build_model("resnet20", in_channels=1)
    whole, found = (after(model, data, replace(PLAIN, limit=128, recompute=again)) for again in (False, True))
    assert all(torch.allclose(whole[n], found[n], atol=1e-6) for n in whole)


def test_recomputing_keeps_less(data):
    model, x = build_model("resnet20"), torch.randn(8, 3, 32, 32)

    def kept(context) -> int:
        held: dict[int, int] = {}

        def pack(t):
            held[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with context, torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            model(x).sum().backward()
        return sum(held.values())

    assert kept(Recomputed(model)) < kept(nullcontext())
    assert not any("forward" in vars(m) for m in model.modules())


@pytest.mark.parametrize(
    ("name", "count"),
    [("resnet18", 8), ("mobilenet_v2", 19), ("convnext_tiny", 22), ("densenet121", 7)],
)
def test_blocks_are_the_members_of_lists(name, count):
    assert len(blocks(torchvision.models.get_model(name, weights=None))) == count


def test_memory_is_told_before_and_kept(data, capsys):
    model = build_model("resnet20", in_channels=1)
    few = next(iter(data.train.batches(2, limit=2)))
    plain = memory_of(model, few, Classification(), PLAIN)
    less = memory_of(model, few, Classification(), replace(PLAIN, recompute=True))
    assert plain.fixed == less.fixed
    assert less.each < 0.6 * plain.each
    weights = sum(p.numel() * 4 for p in model.parameters())
    assert memory_of(model, few, Classification(), replace(PLAIN, ema_decay=0.9, optimizer="adamw")).fixed > 5 * weights
    limit = -(-plain.fixed // MB) + 1
    fit(model, data, replace(PLAIN, limit=64, train_memory_mb=limit))
    pieces = plain.pieces(64, limit)
    assert pieces > 3
    assert f"batches of 64 in {pieces} pieces, of {limit} MB allowed" in capsys.readouterr().out


def test_what_a_sample_keeps_is_what_autograd_keeps():
    model = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.ReLU(), nn.Conv2d(5, 2, 1))
    found = training_bytes(model, (torch.randn(2, 3, 4, 4), torch.zeros(2)), Classification())
    assert found == 4 * 16 * (3 + 5)  # inputs of the convolutions; the output of ReLU is one of them


def test_what_cannot_help_is_refused(data):
    with pytest.raises(ConfigError, match=r"accumulate is 65; expected 1 to batch_size, 64"):
        replace(PLAIN, accumulate=65)
    with pytest.raises(ConfigError, match="DigitsNet has none: leave --recompute out"):
        fit(build_model("digitsnet"), data, replace(PLAIN, recompute=True), progress=False)


def test_memory_that_no_sample_fits_into_is_refused(data):
    with pytest.raises(TrainError, match=r"train_memory_mb is 1\. Allow more, or --recompute"):
        fit(build_model("resnet20", in_channels=1), data, replace(PLAIN, train_memory_mb=1), progress=False)
