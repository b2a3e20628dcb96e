"""How much each unit matters: one score per unit of every group that may shrink.

A criterion is a function `(model, graph, *, batches, step, seed) -> {group name: float64 [width]}`. Scores
are not negative and have mean 1 in each group (or are all zero), so that one threshold can compare groups of
different width and scale. To add one, write the function and put it into `CRITERIA`; `sentei.plan.testing`
has the tests that it must pass.

A unit has a part in several weights: *producers* compute it (dimension 0 of a conv or linear weight),
*consumers* read it (dimension 1; the other way round for transposed convs and embeddings). All of them leave
with it.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial, wraps
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvTransposeNd
from torch.utils._pytree import tree_map_only

from sentei.errors import ConfigError, PlanError
from sentei.graph import ChannelGraph, Group, Slice
from sentei.layout import arranged, differentiable_layout

Scores = dict[str, np.ndarray]
Step = Callable[[nn.Module, Any], Tensor]
"""The loss of a network on a batch, such as `Task.step`."""
Role = Literal["producer", "consumer", "gamma", "other"]


class Criterion(Protocol):
    """What every entry of `CRITERIA` looks like: all take the same keywords, with a use for them or without."""

    def __call__(
        self,
        model: nn.Module,
        graph: ChannelGraph,
        *,
        batches: Iterable[Any] | None = None,
        step: Step | None = None,
        seed: int = 0,
    ) -> Scores: ...


def uses(*keywords: str) -> Callable[[Callable[..., Scores]], Criterion]:
    """Makes a criterion of a function that takes some of the keywords of all criteria."""

    def criterion_of(score: Callable[..., Scores]) -> Criterion:
        @wraps(score)
        def scored(
            model: nn.Module,
            graph: ChannelGraph,
            *,
            batches: Iterable[Any] | None = None,
            step: Step | None = None,
            seed: int = 0,
        ) -> Scores:
            given = {"batches": batches, "step": step, "seed": seed}
            return score(model, graph, **{name: given[name] for name in keywords})

        return scored

    return criterion_of


@uses("seed")
def random(model: nn.Module, graph: ChannelGraph, *, seed: int = 0) -> Scores:
    """Uniform random scores, the control that every other criterion has to beat."""
    rng = np.random.default_rng(seed)
    return _per_group(graph, lambda group: torch.from_numpy(rng.random(group.width)))


@uses()
def l1(model: nn.Module, graph: ChannelGraph) -> Scores:
    """Sum of the absolute weights that leave with the unit.

    Li et al., "Pruning Filters for Efficient ConvNets" (2017, arXiv 1608.08710), score a filter by the
    weights that produce it. As in DepGraph (Fang et al. 2023, arXiv 2301.12900) the sum runs over all conv
    and linear weights of the group here, those that read the unit included, which also settles it for
    residual groups with many producers.
    """
    return _per_group(graph, lambda group: _magnitude(model, group))


@uses()
def l2(model: nn.Module, graph: ChannelGraph) -> Scores:
    """Euclidean norm of the weights that leave with the unit; the rest as for `l1`."""

    def norm(group: Group) -> Tensor:
        return _total(_sum(s, _tensor(model, s).square()) for s in _weights(model, group)).sqrt()

    return _per_group(graph, norm)


@uses()
def bn_scale(model: nn.Module, graph: ChannelGraph) -> Scores:
    """Sum of |gamma| over the BatchNorm layers that the unit passes through.

    Liu et al., "Learning Efficient Convolutional Networks through Network Slimming" (2017, arXiv 1708.06519).
    Groups without a BatchNorm, such as a classifier's hidden layer, get their l1 scores. PlanError if no
    group has one.
    """
    gammas = {g.name: [s for s in g.members if _role(model, s) == "gamma"] for g in _shrinking(graph)}
    if gammas and not any(gammas.values()):
        raise PlanError("bn_scale needs BatchNorm layers with a learned scale, and no group has one; use l1 or taylor")

    def scale(group: Group) -> Tensor:
        slices = gammas[group.name]
        return _total(_sum(s, _tensor(model, s).abs()) for s in slices) if slices else _magnitude(model, group)

    return _per_group(graph, scale)


@uses()
def fpgm(model: nn.Module, graph: ChannelGraph) -> Scores:
    """Sum of the distances from a unit's filters to those of all others: what lies near the centre is
    replaceable.

    He et al., "Filter Pruning via Geometric Median" (2019, arXiv 1811.00250), with the Euclidean distance
    (eq. 6). The filters of several producers count as one long filter.
    """

    def spread(group: Group) -> Tensor:
        gram = _total(rows @ rows.T for s in _weights(model, group, "producer") for rows in [_filters(model, s)])
        squared = gram.diagonal()[:, None] + gram.diagonal()[None, :] - 2 * gram
        return squared.clamp_min(0).fill_diagonal_(0).sqrt().sum(1)

    return _per_group(graph, spread)


@uses("batches", "step")
def taylor(
    model: nn.Module, graph: ChannelGraph, *, batches: Iterable[Any] | None = None, step: Step | None = None
) -> Scores:
    """Squared first-order change of the loss when the unit is removed, mean over batches.

    Molchanov et al., "Importance Estimation for Neural Network Pruning" (2019, arXiv 1906.10771), eq. 8: the
    square of the sum of weight times gradient over the parameters that are set to zero. To remove a unit is
    to zero the weights that read it, so the sum runs over its consumers (over its producers where nothing
    reads it through a weight). The model is in eval mode meanwhile; `step(model, batch)` is its loss on a batch,
    cross-entropy on (x, y) unless given. ConfigError without batches.
    """
    if batches is None:
        raise ConfigError("taylor needs data: pass batches, an iterable of what `step` takes")
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    model, layout = differentiable_layout(model, device)
    reads = {g.name: _weights(model, g, "consumer") for g in _shrinking(graph)}
    tensors = {s.param: _tensor(model, s) for slices in reads.values() for s in slices}
    if layout is not None:
        batches = (tree_map_only(Tensor, partial(arranged, layout=layout), batch) for batch in batches)
    total: dict[str, Tensor] = {}
    count = 0
    for products in _weight_times_gradient(model, tensors, batches, step or cross_entropy):
        count += 1
        for name, slices in reads.items():
            change = _total(_sum(s, products[s.param]) for s in slices).square()
            total[name] = total[name] + change if name in total else change
    if not count:
        raise ConfigError("taylor needs data: batches is empty")
    return _per_group(graph, lambda group: total[group.name] / count)


def cross_entropy(model: nn.Module, batch: Any) -> Tensor:
    """The loss of a classifier on (x, y)."""
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        raise ConfigError(
            f"a batch is a {type(batch).__name__}, not (x, y): give step=lambda model, batch: ..., the loss of a "
            "network on a batch, such as the `step` of a task"
        )
    x, y = batch
    return nn.functional.cross_entropy(model(x), y)


CRITERIA: dict[str, Criterion] = {
    "random": random,
    "l1": l1,
    "l2": l2,
    "bn_scale": bn_scale,
    "fpgm": fpgm,
    "taylor": taylor,
}


def criterion(name: str) -> Criterion:
    """The criterion of that name; ConfigError with the nearest name if there is none."""
    if name not in CRITERIA:
        near = difflib.get_close_matches(name, CRITERIA, n=1, cutoff=0)[0]
        raise ConfigError(f"no criterion {name!r}; did you mean {near!r}? There are {', '.join(CRITERIA)}")
    return CRITERIA[name]


def _shrinking(graph: ChannelGraph) -> list[Group]:
    return [g for g in graph.groups if not g.frozen]


def _per_group(graph: ChannelGraph, score: Callable[[Group], Tensor]) -> Scores:
    """Scores of each group that may shrink, divided by their mean."""
    scores = {}
    with torch.no_grad():
        for group in _shrinking(graph):
            values = score(group).double().cpu().numpy()
            scores[group.name] = values / (values.mean() or 1.0)
    return scores


def _total(parts: Iterable[Tensor]) -> Tensor:
    first, *rest = parts
    for part in rest:
        first = first + part
    return first


def _tensor(model: nn.Module, use: Slice) -> Tensor:
    path, _, leaf = use.param.rpartition(".")
    return getattr(model.get_submodule(path), leaf)


def _role(model: nn.Module, use: Slice) -> Role:
    path, _, leaf = use.param.rpartition(".")
    module = model.get_submodule(path)
    if isinstance(module, _BatchNorm) and leaf == "weight":
        return "gamma"
    # Free parameters (layer scale, position embeddings) have no inputs and outputs.
    if "weight" not in leaf or _tensor(model, use).ndim < 2 or use.dim > 1:
        return "other"
    output = 1 if isinstance(module, _ConvTransposeNd | nn.Embedding) else 0
    return "producer" if use.dim == output else "consumer"


def _weights(model: nn.Module, group: Group, role: Role | None = None) -> list[Slice]:
    """The group's places in weights of that role; failing that in all weights, or in anything with
    numbers."""
    roles = [(_role(model, s), s) for s in group.members]
    return (
        [s for r, s in roles if r == role]
        or [s for r, s in roles if r in ("producer", "consumer")]
        or [s for s in group.members if _tensor(model, s).is_floating_point()]
    )


def _sum(use: Slice, values: Tensor) -> Tensor:
    """Sum over the elements that each unit has of a tensor, float64 [width]."""
    others = [d for d in range(values.ndim) if d != use.dim]
    sums = values.sum(others, dtype=torch.float64) if others else values.double()
    return sums[torch.as_tensor(use.indices, device=values.device)].sum(1)


def _magnitude(model: nn.Module, group: Group) -> Tensor:
    return _total(_sum(s, _tensor(model, s).abs()) for s in _weights(model, group))


def _filters(model: nn.Module, use: Slice) -> Tensor:
    """The elements that each unit has of a weight, [width, elements], centred: distances stay, rounding
    shrinks."""
    weight = _tensor(model, use).detach()
    index = torch.as_tensor(use.indices, device=weight.device)
    rows = weight.index_select(use.dim, index.flatten()).movedim(use.dim, 0).reshape(len(index), -1)
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    return rows - rows.mean(0)


def _weight_times_gradient(
    model: nn.Module, tensors: dict[str, Tensor], batches: Iterable[Any], step: Step
) -> Iterator[dict[str, Tensor]]:
    """The product for every named tensor, batch by batch."""
    if not tensors:
        return
    device = next(iter(tensors.values())).device
    with _differentiable(model, list(tensors.values())):
        for i, batch in enumerate(batches):
            with torch.enable_grad():
                value = step(model, tree_map_only(Tensor, lambda t: t.to(device), batch))
            if not torch.isfinite(value):
                raise ConfigError(f"the loss of batch {i} is {value.item()}; scores need a finite loss")
            gradients = torch.autograd.grad(value, list(tensors.values()), allow_unused=True, materialize_grads=True)
            yield {name: w.detach() * g for (name, w), g in zip(tensors.items(), gradients, strict=True)}


@contextmanager
def _differentiable(model: nn.Module, tensors: list[Tensor]) -> Iterator[None]:
    """Eval mode and gradients for these tensors inside; modes and flags as they were outside."""
    modes = {m: m.training for m in model.modules()}
    flags = [t.requires_grad for t in tensors]
    model.eval()
    try:
        for t in tensors:
            t.requires_grad_(True)
        yield
    finally:
        for t, flag in zip(tensors, flags, strict=True):
            t.requires_grad_(flag)
        for module, mode in modes.items():
            module.training = mode
