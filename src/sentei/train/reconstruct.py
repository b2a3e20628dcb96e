"""Weights that make up, as far as they can, for the inputs that a cut has taken from a layer: least squares.

He, Zhang, Sun, "Channel Pruning for Accelerating Very Deep Neural Networks" (ICCV 2017, arXiv 1707.06168), equation 1
with the channels given. Every layer is asked for what it made of the full network's features. Then everything follows
from the second moments of these features, and one pass over some images serves every structure of a search.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from sentei.graph import ChannelGraph
from sentei.graph.graph import HasKeep
from sentei.tasks import Task
from sentei.tasks.task import called
from sentei.train.evaluate import CLASSIFICATION
from sentei.train.passes import evaluating

PLACES = 16
"""Places of a feature map that are looked at in each image."""
WIDEST = 8192
"""Inputs of a layer, above which its moments would take too much memory: it keeps the weights that it has."""
RIDGE = 0.01
"""Pull towards the weights that the layer had, as a share of the mean square of its inputs."""

Layer = nn.Linear | _ConvNd


@dataclass
class Moments:
    """Of what a layer is given: sums over so many samples, float32 [n, n] and [n], in the order of its weights."""

    squares: Tensor
    sums: Tensor
    count: int

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.squares + other.squares, self.sums + other.sums, self.count + other.count)


class Reconstruction:
    """What the layers of a network are given, and the weights that follow for a structure.

    >>> reconstruction = Reconstruction(model, graph, batches)
    >>> small = cut(model, graph, plan)
    >>> reconstruction.apply(small, plan)

    Convolutions and linear layers whose inputs are cut get W' = argmin E |W x - W' x_S|^2 over what is left of their
    inputs, x_S, and with a bias also the one that keeps the mean. Grouped, transposed and very wide layers, and those
    whose weights are computed (parametrizations), keep what they were cut to. BatchNorm statistics are to be taken
    anew afterwards. A layer of n inputs takes 4 n^2 bytes: those of ResNet-50 475 MB.
    """

    def __init__(
        self, model: nn.Module, graph: ChannelGraph, batches: Iterable[Any], task: Task = CLASSIFICATION, seed: int = 0
    ) -> None:
        self.model, self.graph = model, graph
        self.moments: dict[str, Moments] = {}
        generator = torch.Generator().manual_seed(seed)
        layers = {name: cast(Layer, layer) for name, layer in model.named_modules() if _is_dense(layer)}

        def note(name: str, inputs: Tensor) -> None:
            if not inputs.numel():  # a detector that has found nothing
                return
            seen = _sampled(layers[name], inputs.detach().float(), generator)
            found = Moments(seen.T @ seen, seen.sum(0), len(seen))
            self.moments[name] = self.moments[name] + found if name in self.moments else found

        hooks = [
            layer.register_forward_pre_hook(lambda _, given, name=name: note(name, given[0]) if given else None)
            for name, layer in layers.items()
        ]
        try:
            with evaluating(model), torch.no_grad():
                for batch in batches:
                    called(model, task.inputs(batch))
        finally:
            for hook in hooks:
                hook.remove()
        self.moments = {n: m for n, m in self.moments.items() if bool(torch.isfinite(m.squares).all())}

    def apply(self, small: nn.Module, plan: HasKeep) -> None:
        """Change the weights of the network that `plan` leaves, in place."""
        cuts = self.graph.cuts(plan)
        with torch.no_grad():
            for name, moments in self.moments.items():
                kept = dict(cuts.get(f"{name}.weight", ()))
                if 1 in kept:
                    full, layer = (cast(Layer, m.get_submodule(name)) for m in (self.model, small))
                    _solve(full, layer, kept, moments)


def _is_dense(layer: nn.Module) -> bool:
    """Whether a layer has weights of its own, each output its own over all inputs, and not too many of them."""
    plain = isinstance(layer, nn.Linear) or (
        isinstance(layer, _ConvNd) and not isinstance(layer, _ConvTransposeNd) and layer.groups == 1
    )
    weight = layer._parameters.get("weight")
    return plain and weight is not None and weight[0].numel() <= WIDEST


def _sampled(layer: Layer, x: Tensor, generator: torch.Generator) -> Tensor:
    """What single outputs of a layer are made of, at some places of each image: [images * places, inputs]."""
    if isinstance(layer, nn.Linear):
        rows = x.reshape(len(x), -1, x.shape[-1]) if x.dim() > 1 else x[None, None]
        return rows[:, _drawn(rows.shape[1], generator)].reshape(-1, x.shape[-1])
    dims = len(layer.kernel_size)
    x = x if x.dim() == dims + 2 else x[None]
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    x = F.pad(x, layer._reversed_padding_repeated_twice, mode=mode)
    reach = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    outputs = [(size - r - 1) // s + 1 for size, r, s in zip(x.shape[2:], reach, layer.stride, strict=True)]
    places = np.unravel_index(_drawn(int(np.prod(outputs)), generator).numpy(), outputs)
    index = []
    for d, at in enumerate(places):
        offsets = torch.arange(layer.kernel_size[d]) * layer.dilation[d]
        along = torch.from_numpy(at)[:, None] * layer.stride[d] + offsets
        index.append(along.reshape(len(at), *(-1 if other == d else 1 for other in range(dims))).to(x.device))
    patches = x[(slice(None), slice(None), *index)]  # type: ignore[index]
    return patches.transpose(1, 2).reshape(len(x) * len(places[0]), -1)


def _drawn(count: int, generator: torch.Generator) -> Tensor:
    return torch.randperm(count, generator=generator)[:PLACES]


def _solve(full: Layer, small: Layer, kept: Mapping[int, np.ndarray], moments: Moments) -> None:
    """Weights of a layer [outputs, inputs, ...] by the normal equations, over what is left of its inputs."""
    weight, bias = full.weight.double(), full.bias
    if 0 in kept:
        rows = torch.from_numpy(kept[0]).to(weight.device)
        weight, bias = weight[rows], bias[rows] if bias is not None else None
    each = weight[0, 0].numel()
    left = torch.from_numpy(kept[1])[:, None] * each + torch.arange(each)
    inputs, weight = left.reshape(-1).to(weight.device), weight.flatten(1)
    square = moments.squares[inputs].double() / moments.count
    mean = moments.sums.double() / moments.count
    if bias is not None:  # it takes the mean, so that the weights are only asked for the rest
        square = square - torch.outer(mean[inputs], mean)
    own = square[:, inputs]
    pull = RIDGE * own.diagonal().mean().clamp_min(1e-12)
    own = own + pull * torch.eye(len(own), dtype=own.dtype, device=own.device)
    wanted = square @ weight.T + pull * weight[:, inputs].T
    solved = torch.cholesky_solve(wanted, torch.linalg.cholesky(own)).T
    small.weight.copy_(solved.reshape(small.weight.shape))
    if bias is not None and small.bias is not None:
        small.bias.copy_(bias.double() + weight @ mean - solved @ mean[inputs])
