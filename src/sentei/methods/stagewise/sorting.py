"""From a network to an untrained supernet: which widths are searched, and in which order units stay."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
from torch import nn

from sentei.distributed import decided
from sentei.errors import BudgetError, ConfigError
from sentei.graph import ChannelGraph
from sentei.methods.common.genes import Genes, searched_groups
from sentei.plan import Budget, Constraints, criterion
from sentei.plan.allocate import told
from sentei.supernet.shares import shares
from sentei.supernet.stages import Stages
from sentei.supernet.training import SortedNet
from sentei.tasks import Task
from sentei.tasks.task import loss_of

Interfaces = Literal["whole", "searched"]


@dataclass(frozen=True)
class Sorting:
    """Which widths a supernet is trained for."""

    constraints: Constraints
    interfaces: Interfaces
    genes: Genes
    levels: int
    sort_by: str
    seed: int

    def __post_init__(self) -> None:
        if self.interfaces not in get_args(Interfaces):
            raise ConfigError(f"interfaces is {self.interfaces!r}; expected 'whole' or 'searched'")

    def sorted_net(
        self, model: nn.Module, graph: ChannelGraph, stages: Stages, task: Task, batches: Iterable[Any] | None
    ) -> SortedNet:
        """A sorted copy of the model; `batches` are for criteria that look at data."""
        free = np.concatenate([*stages.inside, *(stages.between if self.interfaces == "searched" else ())])
        inside = {graph.groups[g].name for g in free}
        bound = {graph.groups[g].name for bundle in graph.bundles for g in bundle}  # stages are searched one by one
        names = [name for name in searched_groups(graph, self.genes) if name in inside and name not in bound]
        score = partial(criterion(self.sort_by), model, graph, batches=batches, step=partial(loss_of, task))
        scores = decided(lambda: score(seed=self.seed))
        space = shares(graph, names, self.constraints, self.levels)
        return SortedNet.of(model, graph, stages, space, scores, task)

    def refuse(self, net: SortedNet, budget: Budget) -> None:
        """BudgetError for a budget that no narrow network meets, with the smallest cost and what keeps it up."""
        least, whole = net.graph.costs(net.tiny), net.graph.cost()
        for name, limit in budget.resolve(net.graph).items():
            smallest, full = float(getattr(least, name)), float(getattr(whole, name))
            if smallest > limit:
                raise BudgetError(
                    f"{told(name, limit)} are asked for, the narrowest network of the supernet has "
                    f"{told(name, smallest, unit=False)} ({smallest / full:.1%} of {told(name, full, unit=False)})"
                    f"{self._hint(net)}"
                )

    def _hint(self, net: SortedNet) -> str:
        groups = net.graph.groups
        between = [groups[g].name for at in net.stages.between for g in at]
        kept = [g.name for g in groups if not g.frozen and g.name not in (*net.space.names, *between)]
        hint = ""
        if kept:
            hint += f"; {', '.join(kept[:4])} stay whole (constraints, genes, or more than two stages)"
        if between and self.interfaces == "whole":
            hint += f"; {', '.join(between[:4])} stay whole between stages: interfaces='searched' narrows them"
        if len(net.stages) > 1:
            hint += "; fewer stages leave fewer widths whole"
        return hint


def refuse_several_limits(budget: Budget, instead: str = "") -> None:
    """ConfigError unless there is one limit on a sum over layers, which is what a merge of tables can keep."""
    if budget.memory is not None:
        raise ConfigError(f"memory is a peak, and the merge of tables adds up stages: limit another cost{instead}")
    if len(budget.limits) > 1:
        raise ConfigError(
            f"the merge of stage tables knows one limit, not {' and '.join(budget.limits)}; give one{instead}"
        )
