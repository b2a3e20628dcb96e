"""What `prune` says of itself, and of what was asked of it by the wrong name."""

import pytest
import torch
from torch import nn

import sentei
from sentei.errors import ConfigError
from sentei.models import build_model
from sentei.plan import CRITERIA
from sentei.train import Recipe


def test_a_limit_given_as_an_option_is_told_apart(data):
    with pytest.raises(ConfigError, match=r"macs is a limit of the budget.*budget=sentei.Budget\(macs=0.5\)"):
        sentei.prune(build_model("digitsnet"), data, method="taylor", macs=0.5)


def test_fine_tuning_that_makes_it_worse_is_warned_of(data, monkeypatch):
    values = iter([0.8, 0.3])
    monkeypatch.setattr("sentei.methods.common.pruning.Pruning.value", lambda self, model: next(values))
    told = []
    recipe = Recipe(epochs=1, limit=128, lr=0.5)
    result = sentei.prune(build_model("digitsnet"), data, method="l1", recipe=recipe, say=told.append)
    assert "validation accuracy 80.00% after the cut, 30.00% now" in result.summary["warnings"][-1]
    assert any("fine-tuning has made the network worse" in line for line in told)
    assert repr(result).startswith("PruneResult(l1: 4")


def test_criteria_refuse_what_they_do_not_know(data):
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
    graph = sentei.trace(model, torch.zeros(1, 1, 8, 8))
    for score in CRITERIA.values():
        with pytest.raises(TypeError, match="loss"):
            score(model, graph, batches=[], loss=lambda model, batch: 0)
