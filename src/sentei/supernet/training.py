"""Weight-shared supernets: one network, trained so that its narrow versions work too.

Three rules of training, all on `slim`, hence for every network that can be traced:

- ``stagewise``: each step trains the full network on its task's loss, and the narrowest and some random subnets to
  imitate it stage by stage, each stage from the full network's features (after Zhang et al. 2020, arXiv 2011.04908; the
  losses are ours, see docs/stagewise.md).
- ``sandwich``: the same subnets imitate the outputs only (Yu and Huang 2019, arXiv 1903.05134).
- ``random-path``: random subnets alone, on the task's loss (Guo et al. 2019, arXiv 1904.00420).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from sentei.data.batches import mapped, pieces_of, tensors_of
from sentei.distributed import decided
from sentei.errors import ConfigError
from sentei.graph import ChannelGraph
from sentei.plan import Plan
from sentei.search import Space
from sentei.supernet.stages import Stages, visiting
from sentei.surgery import permute, slim
from sentei.tasks import Task
from sentei.tasks.task import checked_loss, loss_of, plainly, run_part
from sentei.train.checkpoint import digest
from sentei.train.evaluate import CLASSIFICATION

Rule = Literal["stagewise", "sandwich", "random-path"]
RULES: tuple[str, ...] = get_args(Rule)
FULL = "full"
"""Whose the loss of the full network is."""


@dataclass(frozen=True, eq=False)
class SortedNet:
    """A network whose units are sorted once by importance, so that a narrow one is the first units of each group.

    >>> net = SortedNet.of(model, graph, stages, space, scores)
    >>> with net.narrow(widths) as subnet: subnet(x)
    """

    model: nn.Module
    """The sorted network; training changes its weights."""
    graph: ChannelGraph
    stages: Stages
    space: Space
    order: Mapping[str, np.ndarray]
    """Place in the sorted network -> unit of the dense one, for each gene's group."""
    task: Task = CLASSIFICATION
    """What the network is for."""

    @classmethod
    def of(
        cls,
        model: nn.Module,
        graph: ChannelGraph,
        stages: Stages,
        space: Space,
        scores: Mapping[str, np.ndarray],
        task: Task = CLASSIFICATION,
    ) -> SortedNet:
        """Sort a copy of the model by scores, best first. Where the order of channels matters, it stays."""
        order = {}
        for group in map(graph.group, space.names):
            free = group.name in scores and not graph.ordered(group.name)
            order[group.name] = np.argsort(-scores[group.name], kind="stable") if free else np.arange(group.width)
        moved = {name: units for name, units in order.items() if not graph.ordered(name)}
        return cls(permute(model, graph, moved), graph, stages, space, order, task)

    @property
    def settings(self) -> dict[str, Any]:
        """What tells this supernet, with its weights of now, from any other."""
        return {"supernet": digest(self.model), "stages": list(self.stages.names)}

    @property
    def tiny(self) -> np.ndarray:
        """The narrowest network, int64 [n_groups]."""
        return self.space.widths([0] * len(self.space))

    def prefix(self, widths: np.ndarray) -> Plan:
        """The first units of each gene's group: a plan of the sorted network."""
        kept = zip(self.space.names, np.asarray(widths)[self.space.genes].tolist(), strict=True)
        return Plan({name: np.arange(width) for name, width in kept}, self.graph.structure)

    def plan(self, widths: np.ndarray) -> Plan:
        """The same units in the dense network's numbering."""
        return Plan({n: self.order[n][: len(k)] for n, k in self.prefix(widths).keep.items()}, self.graph.structure)

    def narrow(self, widths: np.ndarray) -> AbstractContextManager[nn.Module]:
        """Context in which the model runs at these widths (see `slim`)."""
        return slim(self.model, self.graph, self.prefix(widths))

    def unsorted(self) -> nn.Module:
        """A copy with the weights of now, its units back in the dense network's order."""
        back = {name: np.argsort(units) for name, units in self.order.items() if not self.graph.ordered(name)}
        return permute(self.model, self.graph, back)

    def kept(self, i: int, widths: np.ndarray) -> Tensor | None:
        """Channels at boundary i that a narrow network has; None where it has all."""
        if not np.isin(self.stages.between[i], self.space.genes).any():
            return None
        return self.stages.boundaries[i].kept(self.graph, self.prefix(widths))


@dataclass(frozen=True, eq=False)
class Target:
    """What a stage is to make of its input: the full network's features at a boundary, detached."""

    features: Tensor
    variance: Tensor

    @classmethod
    def of(cls, features: Tensor) -> Target:
        return cls(features, features.float().var().clamp_min(1e-8))

    def distance(self, found: Tensor, kept: Tensor | None, dim: int) -> tuple[Tensor, Tensor]:
        """Mean squared error over the variance, so that stages can be compared: 0 is equal, 1 no better than the mean.

        With `kept`, over these channels alone. Also returns what the next stage goes on with.
        """
        wanted = self.features if kept is None else self.features.index_select(dim, kept.to(found.device))
        return _SquaredError.apply(found, wanted) / self.variance, wanted


class _SquaredError(torch.autograd.Function):
    """Mean squared error, summed in float32. Keeps the difference only, in the precision of the features."""

    @staticmethod
    def forward(ctx: Any, found: Tensor, wanted: Tensor) -> Tensor:
        error = found - wanted
        ctx.save_for_backward(error)
        return error.square().sum(dtype=torch.float32) / error.numel()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (error,) = ctx.saved_tensors
        return error * (2 * grad / error.numel()).to(error.dtype), None


def stage_losses(
    net: SortedNet, widths: np.ndarray, batch: Any, targets: Sequence[Target], outputs: Any
) -> list[Tensor]:
    """How far each stage of a narrow network is from the full one, given the full one's input to the stage.

    `targets` are the full network's features at the boundaries, `outputs` what leaves it, detached. Boundaries count by
    `Target.distance` over the channels that the narrow network has, the last stage by what its task calls imitation
    (for classes the Kullback-Leibler divergence of the scores), failing that like a boundary. One pass of the network:
    at each boundary it goes on with the full network's features.
    """
    losses: list[Tensor] = []

    def visit(i: int, out: Tensor) -> Tensor:
        loss, wanted = targets[i].distance(out, net.kept(i, widths), net.stages.boundaries[i].dim)
        losses.append(loss)
        return wanted

    with net.narrow(widths) as subnet, visiting(subnet, net.stages.boundaries[: len(targets)], visit):
        found = run_part(net.task, subnet, net.task.inputs(batch))
    last = net.task.imitate(found, outputs, batch) if net.task.imitates else difference(found, outputs)
    return [*losses, last]


def difference(found: Any, wanted: Any) -> Tensor:
    """Mean squared error over the variance of each tensor among outputs, averaged: 0 is equal."""
    pairs = zip(tensors_of(found), tensors_of(wanted), strict=True)
    parts = [Target.of(b).distance(a, None, 1)[0] for a, b in pairs if b.is_floating_point() and b.numel() > 1]
    return torch.stack(parts).mean()


def detached(outputs: Any) -> Any:
    return mapped(outputs, lambda t: t.detach())


def full_pass(model: nn.Module, net: SortedNet, batch: Any, staged: bool = True) -> tuple[list[Target], Any]:
    """The full network's features at the boundaries, detached, and what leaves it."""
    targets: list[Target] = []

    def visit(i: int, out: Tensor) -> None:
        targets.append(Target.of(out.detach()))

    with visiting(model, net.stages.boundaries if staged else (), visit):
        return targets, run_part(net.task, model, net.task.inputs(batch))


@dataclass(eq=False)
class SupernetLoss:
    """The objective of a supernet's training, for `sentei.train.fit`: one call, gradients of every subnet."""

    net: SortedNet
    rule: Rule = "stagewise"
    subnets: int = 1
    """Random subnets a step."""
    chunk: int = 2**31
    """Images that are processed at once; a larger batch is split and its gradients are added up."""
    sums: dict[str, np.ndarray] = field(default_factory=dict)
    steps: int = 0

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise ConfigError(f"rule is {self.rule!r}; expected one of {', '.join(RULES)}")

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        widths, count = self.drawn(), self.net.task.count(batch)
        losses = [
            self._part(model, widths, part, self.net.task.count(part) / count)
            for part in pieces_of(batch, math.ceil(count / self.chunk))
        ]
        self.steps += 1
        return torch.stack(losses).sum()

    def drawn(self) -> dict[str, np.ndarray]:
        """Widths of this step's subnets, the same on every process; torch's generator decides, which `fit` seeds."""
        return decided(self._drawn)

    def _drawn(self) -> dict[str, np.ndarray]:
        rng, space = np.random.default_rng(int(torch.randint(2**62, ()))), self.net.space
        found = {f"random {i}": space.widths(space.random(rng)) for i in range(self.paths)}
        return found if self.rule == "random-path" else {"tiny": self.net.tiny, **found}

    @property
    def paths(self) -> int:
        """Random subnets a step; without full and narrowest network two more, for the same number of passes."""
        return self.subnets + 2 * (self.rule == "random-path")

    def _part(self, model: nn.Module, widths: Mapping[str, np.ndarray], batch: Any, share: float) -> Tensor:
        """Gradients of a piece of a batch, one network after another, so that only one is in memory."""
        shown: list[Tensor] = []
        for kind, losses in self.terms(model, widths, batch):
            (losses.sum() * share).backward()
            found = losses.detach() * share
            if kind != FULL:
                self._note(kind, found)
            if kind == FULL or self.rule == "random-path":
                shown.append(found.sum())
        return torch.stack(shown).mean()

    def terms(
        self, model: nn.Module, widths: Mapping[str, np.ndarray], batch: Any
    ) -> Iterator[tuple[str, Tensor]]:
        """What a batch minimises, network by network: whose it is, and its losses, one a stage or one in all.

        Each network runs when it is asked for. The losses may be differentiated there or later.
        """
        if self.rule == "random-path":
            for w in widths.values():
                with self.net.narrow(w) as subnet:
                    loss = loss_of(self.net.task, subnet, batch)
                yield "random", loss[None]
            return
        targets, outputs, loss = self._full(model, batch)
        yield FULL, loss[None]
        for name, w in widths.items():
            yield name.split()[0], torch.stack(stage_losses(self.net, w, batch, targets, outputs))

    def _full(self, model: nn.Module, batch: Any) -> tuple[list[Target], Any, Tensor]:
        """Features, detached outputs and loss of the full network; a model that returns its losses runs twice."""
        task, staged = self.net.task, self.rule == "stagewise"
        if task.steps_itself or task.part is not None:
            with torch.no_grad():
                targets, outputs = full_pass(model, self.net, batch, staged)
            return targets, detached(outputs), loss_of(task, model, batch)
        targets, outputs = full_pass(model, self.net, batch, staged)
        with plainly(task, "the loss"):
            loss = task.loss(outputs, batch)
        return targets, detached(outputs), checked_loss(task, loss)

    def narrowest(self, model: nn.Module) -> AbstractContextManager[nn.Module]:
        return self.net.narrow(self.net.tiny)

    # -- what is shown

    def _note(self, kind: str, losses: Tensor) -> None:
        share = 1 if kind == "tiny" else self.paths
        self.sums[kind] = self.sums.get(kind, 0.0) + losses.cpu().double().numpy() / share

    def status(self) -> str:
        """Mean loss of the narrowest and of random subnets, at each stage where they learn by stages."""
        parts = [f"{kind} {' '.join(f'{v:.2f}' for v in s / max(self.steps, 1))}" for kind, s in self.sums.items()]
        return "subnets: " + ", ".join(parts) if parts else ""

    def state_dict(self) -> dict[str, Any]:
        """What an epoch has summed up so far."""
        return {"sums": {kind: torch.from_numpy(s) for kind, s in self.sums.items()}, "steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.sums = {kind: s.numpy() for kind, s in state["sums"].items()}
        self.steps = state["steps"]

    def measured(self) -> dict[str, Any]:
        found = {f"{k}_losses": np.round(s / max(self.steps, 1), 5).tolist() for k, s in self.sums.items()}
        self.sums, self.steps = {}, 0
        return found
