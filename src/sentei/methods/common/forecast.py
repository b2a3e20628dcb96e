"""What pruning will take, said before it begins."""

from __future__ import annotations

import time

import torch

from sentei.methods.common.method import Method
from sentei.methods.common.pruning import Pruning
from sentei.tasks.task import loss_of
from sentei.train.passes import evaluating

SAMPLES = 16


def forecast(pruning: Pruning, method: Method) -> str:
    """Training images, samples that structures are judged by, and about how long that takes here.

    >>> forecast(pruning, method)  # doctest: +SKIP
    '450,000 training images, up to 600,000 more to judge structures by, about 40 minutes on this machine'
    """
    recipe, data = pruning.recipe, pruning.data
    before, judged = sum(method.trains_on(data, recipe).values()), method.judges_on(len(data.val))
    total = pruning.total_images or before + recipe.epochs * data.epoch_images(recipe.batch_size, recipe.limit)
    step, forward = pace(pruning)
    parts = [f"{total:,} training images"]
    parts += [f"{before:,} of them before the fine-tuning"] if before else []
    parts += [f"up to {judged:,} more to judge structures by"] if judged else []
    return f"{', '.join(parts)}, about {lasting(total * step + judged * forward)} on this machine"


def pace(pruning: Pruning) -> tuple[float, float]:
    """Seconds a sample, of a training step and of a forward pass of the network as it will be small, roughly.

    Both go with the share of the MACs; a forward pass is a third of a step, and a teacher's is that of the whole one.
    """
    batch = next(iter(pruning.data.train.batches(SAMPLES, limit=SAMPLES)))
    whole = min(_step(pruning, batch) for _ in range(2)) / max(pruning.task.count(batch), 1)
    full = max(pruning.graph.cost().macs, 1)
    share = min(1.0, pruning.budget.resolve(pruning.graph).get("macs", full) / full)
    return whole * (share + pruning.taught / 3), whole * share / 3


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
