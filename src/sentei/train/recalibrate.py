"""Fresh BatchNorm statistics for a network whose weights or widths have changed."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from sentei.errors import DataError, TrainError
from sentei.tasks import Task
from sentei.tasks.task import called
from sentei.train.evaluate import CLASSIFICATION
from sentei.train.passes import evaluating
from sentei.train.synced import SyncedNorms


def recalibrate(model: nn.Module, batches: Iterable[Any], task: Task = CLASSIFICATION, shared: bool = False) -> int:
    """Replace the running statistics of every BatchNorm by their plain average over these batches.

    >>> recalibrate(model, data.train.batches(256, train=True, limit=2048))  # doctest: +SKIP
    19

    Only the normalisation layers see training mode, so dropout stays off; weights, modes and momentum are as
    before. Give the same batches to get the same statistics, and images augmented as in training: the weights were
    trained under such statistics, and those of clean images can cost points of accuracy. The task tells what of a
    batch the model is called with. `shared` says that each of several processes has a part of every batch. Returns the
    number of layers; a model without BatchNorm statistics is left alone, with a note in the log.

    Raises:
        DataError: there are no batches. TrainError: the statistics are not finite (the old ones are kept).
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    if not norms:
        logging.getLogger("sentei").info("%s has no BatchNorm statistics to recalibrate.", type(model).__name__)
        return 0
    stream = iter(batches)
    first = next(stream, None)
    if first is None:
        raise DataError("Recalibration needs at least one batch.")
    momenta = [norm.momentum for norm in norms]
    before = [{name: buffer.clone() for name, buffer in norm.named_buffers()} for norm in norms]
    try:
        with evaluating(model), torch.no_grad(), SyncedNorms() if shared else nullcontext():
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None  # cumulative average
                norm.training = True
            for batch in itertools.chain([first], stream):
                called(model, task.inputs(batch))
            if not all(bool(torch.isfinite(b).all()) for n in norms for b in n.buffers()):
                raise TrainError(
                    "Recalibration gave statistics that are not finite: the weights or the images are not."
                )
    except BaseException:
        for norm, buffers in zip(norms, before, strict=True):
            for name, buffer in buffers.items():
                norm.get_buffer(name).copy_(buffer)
        raise
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
    return len(norms)
