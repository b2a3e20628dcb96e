"""Learning rates of optimizers whose state was loaded."""

import torch
from torch import nn

from sentei.train import Recipe
from sentei.train.optimizers import Optimizers


def test_rates_follow_the_schedule_after_a_state_was_loaded():
    """Loading a state puts other param groups in place of those there were."""
    model, recipe = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)), Recipe(lr=0.1)

    def factory(groups):
        return torch.optim.SGD([{**group, "lr": 0.1 * (i + 1)} for i, group in enumerate(groups)])

    optimizers = Optimizers(model, recipe, factory=factory)
    optimizers.main.load_state_dict(Optimizers(model, recipe, factory=factory).main.state_dict())
    optimizers.step(0.03)
    assert [round(g["lr"], 9) for g in optimizers.main.param_groups] == [0.03, 0.06]
