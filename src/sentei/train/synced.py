"""BatchNorm statistics over the whole batch, of which every process has a part."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from sentei.distributed import summed


class SyncedNorms(TorchFunctionMode):
    """While it is entered, batch normalisation in training takes mean and variance over all processes.

    >>> with SyncedNorms():  # doctest: +SKIP
    ...     loss = task.step(model, part_of_the_batch)

    It acts on what is called, not on modules, so that slim networks and functional calls are synchronised too, and on
    any device. What `torch.nn.SyncBatchNorm` computes, which knows no CPU.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _Norm.called(*args, **(kwargs or {})) if func is F.batch_norm else func(*args, **(kwargs or {}))


class _Norm:
    """`F.batch_norm`, with the signature of that."""

    @staticmethod
    def called(
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        if not training:
            return torch.batch_norm(
                input, weight, bias, running_mean, running_var, False, momentum, eps, torch.backends.cudnn.enabled
            )
        x = input if input.dtype == torch.float64 else input.float()
        over = [d for d in range(x.ndim) if d != 1]
        shape = [-1 if d == 1 else 1 for d in range(x.ndim)]
        count = summed(torch.tensor(float(x.numel() // x.shape[1]), device=x.device))
        mean = _Summed.apply(x.sum(over)) / count
        centred = x - mean.view(shape)
        variance = _Summed.apply(centred.square().sum(over)) / count
        if running_mean is not None and running_var is not None:
            with torch.no_grad():
                running_mean.lerp_(mean.to(running_mean.dtype), momentum)
                running_var.lerp_((variance * count / (count - 1)).to(running_var.dtype), momentum)
        out = centred * (variance + eps).rsqrt().view(shape)
        out = out if weight is None else out * weight.to(x.dtype).view(shape)
        return (out if bias is None else out + bias.to(x.dtype).view(shape)).to(input.dtype)


class _Summed(torch.autograd.Function):
    """The sum over all processes; each contributes to everybody's loss."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return summed(tensor.clone())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return summed(grad.clone())
