"""The baselines: score the units, cut those with the lowest scores, at once or in several steps."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, get_args

from torch import nn

from sentei.data import Data
from sentei.distributed import decided
from sentei.errors import ConfigError
from sentei.graph import ChannelGraph
from sentei.methods.common.method import Found, Method
from sentei.methods.common.pruning import Pruning
from sentei.methods.common.timing import clock
from sentei.methods.oneshot.remaining import Remaining
from sentei.plan import Budget, Plan, allocate, criterion, uniform
from sentei.plan.compose import compose
from sentei.plan.ranking import Rank
from sentei.surgery import cut
from sentei.train import Recipe

Scope = Literal["global", "local"]

GOES = {
    "random": "random units",
    "l1": "small absolute weights",
    "l2": "small Euclidean norms",
    "bn_scale": "small BatchNorm scales",
    "fpgm": "filters nearest to all others",
    "taylor": "small estimated changes of the loss",
}


@dataclass(frozen=True)
class OneShot(Method):
    """Score, allocate, cut; with several steps, train and score again between the cuts.

    >>> sentei.prune(model, data, method=OneShot("taylor", steps=3))
    """

    criterion: str = "l1"
    """How units are scored: random, l1, l2, bn_scale, fpgm or taylor."""
    scope: Scope = "global"
    """Rank units over the whole network, or within each group, which then all keep the same share."""
    rank: Rank = "score"
    """Rank a removal by its score, or by its score for what it saves of the budget (per_cost)."""
    steps: int = 1
    """Cuts on the way; units are scored again before each."""
    step_epochs: int = 1
    """Epochs of training between two cuts."""

    def __post_init__(self) -> None:
        criterion(self.criterion)
        if self.scope not in ("global", "local"):
            raise ConfigError(f"scope is {self.scope!r}; expected 'global' or 'local'")
        if self.rank not in get_args(Rank):
            raise ConfigError(f"rank is {self.rank!r}; expected 'score' or 'per_cost'")
        for name, least in (("steps", 1), ("step_epochs", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected {least} or more")

    @property
    def about(self) -> str:
        low = GOES.get(self.criterion, f"low scores by {self.criterion}")
        return f"{low} of the whole network" if self.scope == "global" else f"{low}, the same share of each group"

    def trains_on(self, data: Data, recipe: Recipe) -> dict[str, int]:
        between = (self.steps - 1) * self.step_epochs
        return {"step_epochs": between * data.epoch_images(recipe.batch_size, recipe.limit)} if between else {}

    def find(self, pruning: Pruning) -> Found:
        graph = pruning.graph
        model, plan, cuts = pruning.base, Plan({}, graph.structure), []
        for step in range(1, self.steps + 1):
            before = model, plan
            done = pruning.run.once(f"cut{step}", partial(self._cut, pruning, model, plan, step), together=True)
            plan = Plan.from_json(done["plan"])
            model = cut(pruning.base, graph, plan)
            model.load_state_dict(done["model"])
            cuts.append(done)
            pruning.tell_cut(done)
            if step < self.steps:
                model = pruning.fit(model, replace(pruning.recipe, epochs=self.step_epochs), f"step{step}", plan=plan)
        return Found(model, plan, cuts, again=partial(self._again, pruning, *before, cuts))

    def _again(
        self, pruning: Pruning, model: nn.Module, plan: Plan, cuts: list[dict[str, Any]], budget: Budget, name: str
    ) -> Found:
        """The last cut under another budget."""
        other = pruning.under(budget)
        done = other.run.once(name, partial(self._cut, other, model, plan, self.steps), together=True)
        small = cut(pruning.base, pruning.graph, new := Plan.from_json(done["plan"]))
        small.load_state_dict(done["model"])
        pruning.tell_cut(done)
        return Found(small, new, [*cuts[:-1], done], again=partial(self._again, pruning, model, plan, cuts))

    def _cut(self, pruning: Pruning, model: nn.Module, plan: Plan, step: int) -> dict[str, Any]:
        seconds: dict[str, float] = {}
        dense, graph, constraints = pruning.graph, pruning.graph, pruning.constraints
        if step > 1:
            with clock(seconds, "trace"):
                graph = pruning.trace(model)
            constraints = Remaining.of(constraints, dense)
        budget = self.budget_of(pruning, step)
        with clock(seconds, "score"):
            uniform(graph, budget, constraints=constraints)  # refuse a budget before the scores' work
            scores = decided(lambda: self._scores(pruning, model, graph))
            small = allocate(graph, budget, scores, scope=self.scope, rank=self.rank, constraints=constraints)
        combined = small if step == 1 else compose(dense, plan, graph, small)
        done = pruning.cut(model, graph, small, combined)
        return {**done, "seconds": {**seconds, **done["seconds"]}}

    def _scores(self, pruning: Pruning, model: nn.Module, graph: ChannelGraph) -> dict[str, Any]:
        pruning.say(f"Scoring {sum(g.width for g in graph.groups if not g.frozen):,} units by {self.criterion} ...")
        return pruning.scores(self.criterion, model, graph)

    def budget_of(self, pruning: Pruning, step: int) -> Budget:
        """Limits fall geometrically from the full model to the budget: full * (limit / full) ** (step / steps)."""
        full, share = pruning.graph.cost(), step / self.steps
        limits = pruning.budget.resolve(pruning.graph)
        if share < 1:
            way = {name: getattr(full, name) * (limit / getattr(full, name)) ** share for name, limit in limits.items()}
            limits = {name: v if name == "latency_ms" else max(2, round(v)) for name, v in way.items()}
        return Budget(**{name: float(limit) for name, limit in limits.items()})
