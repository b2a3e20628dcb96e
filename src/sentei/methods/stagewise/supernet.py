"""The supernet in a training loop of one's own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sentei.data import Data
from sentei.errors import ConfigError, DataError
from sentei.graph import ChannelGraph
from sentei.methods.common.genes import Genes
from sentei.methods.common.pruning import DEFAULT_CONSTRAINTS, silent
from sentei.methods.stagewise.search import StageSearch
from sentei.methods.stagewise.sorting import Interfaces, Sorting, refuse_several_limits
from sentei.plan import Budget, Constraints, Plan, note_on_use
from sentei.plan.budget import refuse_other
from sentei.search.evaluators import check_validation
from sentei.supernet.proxies import StageDistances, SubnetMetric
from sentei.supernet.stages import Split, find_stages
from sentei.supernet.training import Rule, SortedNet, SupernetLoss
from sentei.surgery.check import check
from sentei.surgery.cut import cut
from sentei.tasks import Task, task_of
from sentei.tasks.pairs import Pairs
from sentei.train import recalibrate
from sentei.train.passes import device_of


class Supernet(nn.Module):
    """A weight-shared supernet for a training loop of your own: one network whose narrow versions work too.

    >>> supernet = sentei.Supernet(model, graph, sentei.Budget(macs=0.5), loss=torch.nn.functional.cross_entropy)
    >>> optimizer = torch.optim.AdamW(supernet.parameters())
    >>> for batch in loader:
    ...     optimizer.zero_grad()
    ...     supernet.loss(batch).backward()
    ...     optimizer.step()
    >>> plan = supernet.plan(batches=val_loader, calibration=loader)
    >>> small = supernet.network(plan)

    What `sentei.prune(method="stagewise")` does, without its loop. It is a module: `parameters`, `train`, `to` and
    `state_dict` are those of any other, its forward is `loss`. `supernet.model` is the full network, a copy of the
    given model with units sorted by importance; the model itself is untouched. The `state_dict` holds weights and the
    order of units, so that a new Supernet of the same model and options goes on from it.

    `stages`, `split`, `rule`, `interfaces`, `genes`, `levels`, `sort_by`, `subnets` and `constraints` are those of the
    method.

    Args:
        budget: what `plan` will be asked for. Given here, one that no narrow network meets is refused before training.
        task: what the network is for; classification of (images, labels) unless given.
        loss: in place of a task, a function of (output, target), for batches (input, target). The full network's
            outputs are then imitated by squared error, and the lowest loss decides in `plan`.
        batches: training batches for a `sort_by` that looks at data (taylor).
        seed: of the search, and of random scores. The widths of each step are drawn from torch's generator.

    Raises ConfigError for stages and options that do not fit, BudgetError for a budget out of reach.
    """

    order: Tensor

    def __init__(
        self,
        model: nn.Module,
        graph: ChannelGraph,
        budget: Budget | None = None,
        *,
        task: Task | None = None,
        loss: Callable[[Any, Any], Tensor] | None = None,
        stages: Sequence[str] = (),
        split: Split = "resolution",
        rule: Rule = "stagewise",
        interfaces: Interfaces = "whole",
        genes: Genes = "all",
        levels: int = 10,
        sort_by: str = "l1",
        subnets: int = 1,
        constraints: Constraints = DEFAULT_CONSTRAINTS,
        batches: Iterable[Any] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if isinstance(stages, str):
            raise ConfigError(f"stages is {stages!r}; expected several names, for instance ({stages!r},)")
        if subnets < 1:
            raise ConfigError(f"subnets is {subnets}; expected 1 or more")
        self.budget, self.seed = budget, seed
        self._sorting = Sorting(constraints, interfaces, genes, levels, sort_by, seed)
        parts = find_stages(model, graph, stages, split)
        net = self._sorting.sorted_net(model, graph, parts, _task(task, loss), batches)
        if budget is not None:
            self._refuse(net, budget)
        self._net, self._objective = net, SupernetLoss(net, rule, subnets)
        self.model = net.model
        self.register_buffer("order", torch.from_numpy(np.concatenate([net.order[n] for n in net.space.names])))
        self.losses: dict[str, Tensor] = {}
        """Of the last batch, detached: of the full network, the narrowest and random ones, one for each stage."""
        self.searched: dict[str, Any] = {}
        """What the last `plan` tried: the size of each stage's table and the structures measured as a whole."""
        self._data: Data | None = None

    @property
    def graph(self) -> ChannelGraph:
        """That of the given model, to which plans belong."""
        return self._net.graph

    @property
    def stages(self) -> tuple[str, ...]:
        """Up to the output of which module each stage goes."""
        return self._net.stages.names

    # -- training

    def loss(self, batch: Any) -> Tensor:
        """The losses of the full network and of the subnets on one batch, added up: a scalar to call `backward` on.

        Three networks run on the batch, and autograd keeps what all of them need until the backward pass: up to three
        times the memory of plain training. The batch has to be where the model is.
        """
        found: dict[str, Tensor] = {}
        for kind, losses in self._objective.terms(self.model, self._objective.drawn(), batch):
            found[kind] = found[kind] + losses if kind in found else losses
        self.losses = {kind: losses.detach() / self._runs(kind) for kind, losses in found.items()}
        return torch.stack([losses.sum() for losses in found.values()]).sum()

    def forward(self, batch: Any) -> Tensor:
        """`loss`, for what wraps a module and calls it."""
        return self.loss(batch)

    def _runs(self, kind: str) -> int:
        return self._objective.paths if kind == "random" else 1

    # -- search

    def plan(
        self,
        budget: Budget | None = None,
        *,
        batches: Iterable[Any],
        calibration: Iterable[Any],
        evaluations: int = 400,
        rounds: int = 4,
        candidates: int = 20,
        table_images: int = 500,
        calibration_images: int = 1000,
        validation_images: int = 2000,
        memory_mb: int = 4096,
        bf16: bool | None = None,
        progress: bool = False,
    ) -> Plan:
        """The best structure within a budget, by tables of stage distances and their merge; see docs/stagewise.md.

        >>> plan = supernet.plan(sentei.Budget(macs=0.3), batches=val_loader, calibration=train_loader)

        Args:
            budget: one limit; that of the supernet unless given.
            batches: held-out (input, target) batches, or what the task takes, by which structures are chosen: a loader
                or a list. Not those that will judge the result.
            calibration: training batches for BatchNorm statistics.

        The other options are those of the method. Raises BudgetError if no structure meets the budget, DataError for
        too few batches.
        """
        budget = budget or self.budget
        if budget is None:
            raise ConfigError("plan needs a budget, here or when the supernet is made")
        least = {"evaluations": evaluations, "rounds": rounds, "candidates": candidates, "memory_mb": memory_mb}
        for name, value in least.items():
            if value < 1:
                raise ConfigError(f"{name} is {value}; expected 1 or more")
        self._refuse(self._net, budget)
        data, net = self._given(batches, calibration, validation_images), self._sorted()
        found = StageSearch(
            net=net, budget=budget, evaluations=evaluations, rounds=rounds, candidates=candidates, say=silent,
            seed=self.seed, progress=progress,
            distances=StageDistances.of(net, data, table_images, memory_mb * 2**20, bf16),
            metric=SubnetMetric.of(net, data, validation_images, calibration_images, self.seed, bf16),
        )  # fmt: skip
        widths, report = found.result()
        self._data, self.searched = data, report["search"]
        return replace(net.plan(widths), note=note_on_use(self.graph, budget, widths, chosen=True))

    def network(self, plan: Plan, calibration: Iterable[Any] | None = None, images: int = 2048) -> nn.Module:
        """The network of a plan, cut out of the supernet's weights of now and proven by `check`.

        Its BatchNorm statistics are taken anew on `images` samples of `calibration`, unless given those of the last
        `plan`. It is of the given model's class, ready to be trained on. Raises SurgeryError if the cut is wrong.
        """
        data = self._data if calibration is None else Data.of(calibration, device=device_of(self.model))
        if data is None:
            raise ConfigError("network needs calibration batches: training batches for the BatchNorm statistics")
        whole = self._sorted().unsorted()
        small = cut(whole, self.graph, plan)
        args, named = self.graph.inputs.filled(device_of(whole))
        check(whole, small, self.graph, plan, named or args)
        recalibrate(small, data.train.batches(256, train=True, limit=images), self._net.task)
        return small

    def _given(self, batches: Iterable[Any], calibration: Iterable[Any], images: int) -> Data:
        data = Data.of(calibration, batches, device=device_of(self.model))
        if not len(data.val):
            raise DataError("there are no validation batches; plan chooses structures by what they measure there")
        check_validation(data, self._net.task, images)
        return data

    def _refuse(self, net: SortedNet, budget: Budget) -> None:
        refuse_other(budget)
        refuse_several_limits(budget)
        self._sorting.refuse(net, budget)

    def _sorted(self) -> SortedNet:
        """With the order of now, which a state may have brought."""
        places = np.cumsum([len(units) for units in self._net.order.values()])[:-1]
        orders = np.split(self.order.cpu().numpy(), places)
        return replace(self._net, order=dict(zip(self._net.order, orders, strict=True)))


def _task(task: Task | None, loss: Callable[[Any, Any], Tensor] | None) -> Task:
    if task is not None and loss is not None:
        raise ConfigError("task and loss are both given; a task has its own loss")
    return Pairs(loss) if loss is not None else task_of(task)
