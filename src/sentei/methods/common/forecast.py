"""What pruning will take, said before it begins."""

from __future__ import annotations

import time

import torch

from sentei.methods.common.method import Method
from sentei.methods.common.pruning import Pruning
from sentei.tasks.task import loss_of
from sentei.train.evaluate import evaluating

SAMPLES = 16


def forecast(pruning: Pruning, method: Method) -> str:
    """Training images, what of them is not fine-tuning, and about how long the training will take here.

    >>> forecast(pruning, method)  # doctest: +SKIP
    '450,000 training images, about 25 minutes on this machine'
    """
    recipe, data = pruning.recipe, pruning.data
    before = sum(method.trains_on(data, recipe).values())
    tuning = recipe.epochs * data.epoch_images(recipe.batch_size, recipe.limit)
    total = pruning.total_images or before + tuning
    if not total:
        return "no training"
    own = f", {before:,} of them before the fine-tuning" if before else ""
    return f"{total:,} training images{own}, about {lasting(total * seconds_an_image(pruning))} on this machine"


def seconds_an_image(pruning: Pruning) -> float:
    """Of a training step of the network as it will be small, roughly: of the whole one's, the share of its MACs.

    A teacher's forward pass costs about a third of what a step of the whole network does.
    """
    batch = next(iter(pruning.data.train.batches(SAMPLES, limit=SAMPLES)))
    took = min(_step(pruning, batch) for _ in range(2)) / max(pruning.task.count(batch), 1)
    full = max(pruning.graph.cost().macs, 1)
    share = min(1.0, pruning.budget.resolve(pruning.graph).get("macs", full) / full)
    return took * (share + pruning.distill / 3)


def _step(pruning: Pruning, batch: object) -> float:
    """Seconds of a forward and a backward pass of the whole network, which stays as it is."""
    trained = [p for p in pruning.base.parameters() if p.requires_grad]
    started = time.perf_counter()
    with evaluating(pruning.base), torch.enable_grad():
        loss = loss_of(pruning.task, pruning.base, batch)
        torch.autograd.grad(loss, trained, allow_unused=True)
    if pruning.data.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def lasting(seconds: float) -> str:
    """A time in words.

    >>> lasting(40), lasting(1500), lasting(9000)
    ('40 seconds', '25 minutes', '2.5 hours')
    """
    if seconds < 90:
        return f"{max(1, round(seconds))} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
