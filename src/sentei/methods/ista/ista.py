"""ISTA: drive BatchNorm scales to exact zeros in training and fold the constant channels away.

Ye, Lu, Lin, Wang: "Rethinking the Smaller-Norm-Less-Informative Assumption in Channel Pruning of Convolution Layers",
ICLR 2018 (arXiv 1802.00124). A round trains for an epoch with a Lasso on the scales. The paper has no budget: rho is
raised here from round to round until the live network meets it.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sentei.errors import BudgetError, ConfigError
from sentei.graph import ChannelGraph
from sentei.methods.common.genes import Genes, searched_groups
from sentei.methods.common.method import Found, Method
from sentei.methods.common.pruning import Pruning
from sentei.methods.ista.lasso import CostKind, Proximal, costs_of_units, lasso, live_plan, penalised
from sentei.methods.ista.rounds import Round, diagnose, next_rho, starting_point
from sentei.methods.ista.view import LassoView, picture
from sentei.plan import Budget, Constraints, Plan, allocate, note_on_widths, uniform
from sentei.runfiles import CURVE, remove_curve
from sentei.surgery import cut, save
from sentei.surgery.fold import Folded, Mode, fold
from sentei.surgery.scales import rescale, scales_of, unsilenced
from sentei.train import fit


@dataclass(frozen=True, kw_only=True)
class Ista(Method):
    """Sparsify BatchNorm scales by proximal gradient steps, then fold what has become constant.

    >>> sentei.prune(model, data, method=Ista(sparse_epochs=15), budget=sentei.Budget(macs=0.5))

    Widths are what training leaves: multiples (`round_to`) are not enforced, but `keep`, `min_width` and `max_ratio`
    hold. Weight decay, batch size and augmentation are those of the fine-tuning recipe.
    """

    rho: float | None = None
    """Weight of the penalty, the same in every epoch as in the paper; its size decides that of the result. Unless
    given, it rises until the budget is met."""
    growth: float = 1.5
    """Factor by which rho rises from epoch to epoch."""
    alpha: float | None = None
    """Scale gamma and beta by this and their readers' weights by its inverse, so that gammas move faster. Unless given,
    0.1, and with a fixed rho by the paper's rule: 1, 0.1, 0.01 or 0.001, about 100 steps of shrinking to zero."""
    sparse_epochs: int = 20
    """Epochs of sparse training, at most."""
    sparse_lr: float = 0.01
    """Learning rate of sparse training, constant."""
    cost: CostKind = "memory"
    """What a unit is penalised for: weights and feature maps as in the paper (memory), macs or params."""
    genes: Genes = "inner"
    """Groups that shrink: those inside branches, as in the paper, or residual streams too (all)."""
    fold: Mode = "exact"
    """How constants go: exact also at padded borders, or into biases alone as in the paper."""

    def __post_init__(self) -> None:
        rules = {
            "rho": (self.rho is None or self.rho > 0, "above 0"),
            "growth": (self.growth > 1, "above 1"),
            "alpha": (self.alpha is None or 0 < self.alpha <= 1, "above 0, at most 1"),
            "sparse_epochs": (self.sparse_epochs >= 1, "1 or more"),
            "sparse_lr": (self.sparse_lr > 0, "above 0"),
            "cost": (self.cost in ("memory", "macs", "params"), "memory, macs or params"),
            "genes": (self.genes in ("inner", "all"), "inner or all"),
            "fold": (self.fold in ("exact", "bias"), "exact or bias"),
        }
        for name, (valid, expected) in rules.items():
            if not valid:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; expected {expected}")

    @property
    def about(self) -> str:
        return "BatchNorm scales trained to exact zeros, constant channels folded away (ISTA)"

    @property
    def budgeted(self) -> bool:
        return self.rho is None

    def find(self, pruning: Pruning) -> Found:
        return _Search(self, pruning).result()


class _Search:
    """One run of ISTA: what is fixed before the first round, and the rounds."""

    def __init__(self, how: Ista, pruning: Pruning) -> None:
        self.how, self.pruning, self.graph = how, pruning, pruning.graph
        self.images = pruning.sample(8)
        names, self.left = shrinking(pruning.base, self.graph, how.genes, pruning.constraints.keep, self.images)
        others = [g.name for g in self.graph.groups if not g.frozen and g.name not in names]
        self.rest = [name for name in others if name not in self.left]
        self.constraints = replace(pruning.constraints.restricted(names), round_to=1)
        self.limits = pruning.budget.resolve(self.graph) if how.budgeted else {}
        if how.budgeted:
            self._refuse_budget()
        floors = self.constraints.ladder(self.graph).floor
        least = [int(floors[self.graph.index(n)]) for n in names]
        self.groups = penalised(pruning.base, self.graph, names, least)

    def _refuse_budget(self) -> None:
        """BudgetError before any training."""
        try:
            uniform(self.graph, self.pruning.budget, constraints=self.constraints)
        except BudgetError as error:
            whole = [*self.left, *self.rest]
            wider = "; --genes all narrows residual streams too" if self.how.genes == "inner" else ""
            raise BudgetError(f"{error} Here {', '.join(whole[:4]) or 'no group'} stay whole{wider}.") from None

    # -- the run

    def result(self) -> Found:
        pruning, how = self.pruning, self.how
        start = pruning.run.once("start", self._start)
        self.alpha, first = float(start["alpha"]), float(start["rho"])
        self.scaling = rescale(pruning.base, self.graph, [g.name for g in self.groups], self.alpha, self.images)
        self._tell_start(first)
        fell, guess = self._collapsed(start["value"]), pruning.task.guessing(pruning.data)
        rounds: list[Round] = []
        state = None
        with LassoView(self.groups, self.limits, self.graph, pruning.progress) as view:
            while len(rounds) < how.sparse_epochs and not (rounds and rounds[-1].ended):
                number = len(rounds) + 1
                rho = how.rho or next_rho(first, how.growth, rounds, fell)
                done = pruning.run.once(f"ista{number}", partial(self._round, state, rho, number, view))
                before, state = state, done["model"]
                rounds.append(Round.of(done["record"]))
                pruning.say(rounds[-1].line(number, self.graph.cost().macs, pruning.task.told))
                advice = diagnose(rounds, fell, guess)
                if advice:
                    pruning.say(f"  {advice}")
                if how.budgeted and not rounds[-1].ended and fell(rounds[-1]):
                    state = before
        return self._finish(state, rounds, start)

    def _collapsed(self, before: float | None) -> Callable[[Round], bool]:
        """Whether a round has destroyed the network."""
        task = self.pruning.task
        return lambda r: before is not None and r.value is not None and task.collapsed(r.value, before)

    def _start(self) -> dict[str, Any]:
        """The metric before, alpha and the first rho."""
        pruning, how = self.pruning, self.how
        if pruning.run.folder is not None:
            remove_curve(pruning.run.folder)
        gammas = torch.cat([g.norms(pruning.base) for g in self.groups]).double().cpu().numpy()
        costs = np.repeat(costs_of_units(self.graph, self.names, None, how.cost), [g.width for g in self.groups])
        steps = pruning.data.train.steps(pruning.recipe.batch_size, pruning.recipe.limit)
        alpha, rho = starting_point(how.alpha, how.rho, gammas, costs, how.sparse_lr, steps)
        return {"alpha": alpha, "rho": rho, "value": pruning.value(pruning.base), "seconds": {}}

    @property
    def names(self) -> list[str]:
        return [g.name for g in self.groups]

    def _tell_start(self, rho: float) -> None:
        units = sum(g.width for g in self.groups)
        self.pruning.say(
            f"Sparse training on {units:,} units of {len(self.groups)} groups: rho {rho:.2g}"
            f"{'' if self.how.rho else ', rising'}, alpha {self.alpha:g}, learning rate {self.how.sparse_lr:g}"
        )
        for name, why in self.left.items():
            self.pruning.say(f"  {name} stays whole: {why}")
        if self.rest and self.how.genes == "inner":
            self.pruning.say(f"  {', '.join(self.rest[:4])} kept whole as residual streams; --genes all includes them")
        if self.scaling.refused and self.alpha != 1:
            name, why = next(iter(self.scaling.refused.items()))
            self.pruning.say(f"  {len(self.scaling.refused)} groups keep alpha 1, {name} for instance: {why}")

    # -- one round

    def _round(self, state: dict[str, Tensor] | None, rho: float, number: int, view: LassoView) -> dict[str, Any]:
        """An epoch of training with the penalty."""
        pruning, started = self.pruning, time.perf_counter()
        model = self._model(state)
        costs = costs_of_units(self.graph, self.names, live_plan(model, self.graph, self.groups), self.how.cost)
        penalties = (rho * costs).tolist()
        step = Proximal(self.graph, self.groups, penalties, self.limits)

        def after_step(trained: nn.Module, lr: float) -> None:
            step(trained, lr)
            view.stepped(trained, penalties, number)

        recipe = replace(
            pruning.recipe, epochs=1, lr=self.how.sparse_lr, schedule="constant", warmup_epochs=0.0, ema_decay=None,
            seed=pruning.recipe.seed + 1009 * number,
        )  # fmt: skip
        plain = sorted({scale.gamma for g in self.groups for scale in g.scales})
        result = fit(
            model, pruning.data, recipe, task=pruning.task, name=f"ista {number}",
            teacher=pruning.base if pruning.distill else None, after_step=after_step, plain=plain,
            optimizer=pruning.optimizer, progress=False,
        )  # fmt: skip
        pruning.recalibrate(model)
        folded = self._folded(model, self.how.fold)
        cost = self.graph.cost(folded.plan)
        record = Round(
            rho=rho,
            loss=result.history[-1]["loss"],
            lasso=lasso(model, self.groups, penalties),
            zeros={g.name: int((g.norms(model) == 0).sum()) for g in self.groups},
            widths={g.name: g.width for g in self.groups},
            macs=cost.macs,
            params=cost.params,
            value=pruning.value(model),
            steps=step.steps,
            reached=step.reached,
            seconds=round(time.perf_counter() - started, 2),
        )
        view.rounded(record)
        self._keep(folded, number)
        return {
            "model": {name: t.detach().cpu() for name, t in model.state_dict().items()},
            "record": asdict(record),
            "seconds": {"sparsify": record.seconds},
        }

    def _model(self, state: dict[str, Tensor] | None) -> nn.Module:
        """The rescaled network, with the weights of a round or those of the start."""
        model = copy.deepcopy(self.pruning.base)
        if state is None:
            self.scaling.apply(model)
        else:
            model.load_state_dict(state)
        return model

    def _keep(self, folded: Folded, number: int) -> None:
        """Each round's network, folded and cut, as files: a point of the curve."""
        folder = self.pruning.run.folder
        if folder is not None:
            small = cut(folded.model, self.graph, folded.plan)
            place = folder / CURVE / f"{number:02d}"
            save(small, folded.plan, place, source=self.pruning.source, forward=self.pruning.task.part)

    def _folded(self, model: nn.Module, mode: Mode) -> Folded:
        plain = copy.deepcopy(model).eval()
        self.scaling.undo(plain)
        return fold(plain, self.graph, self.images, mode)

    # -- the end

    def _finish(self, state: dict[str, Tensor] | None, rounds: Sequence[Round], start: dict[str, Any]) -> Found:
        pruning = self.pruning
        done = pruning.run.once("cut1", partial(self._cut, state))
        if done["closed"]:
            pruning.say(f"Closed the gap to the budget with the {done['closed']} units of the smallest scales")
        pruning.say(f"Folded: {done['folded']}")
        pruning.tell_cut(done)
        plan = Plan.from_json(done["plan"])
        model = cut(pruning.base, self.graph, plan)
        model.load_state_dict(done["model"])
        advice = diagnose(rounds, self._collapsed(start["value"]), pruning.task.guessing(pruning.data))
        report = {
            "alpha": self.alpha, "rho": rounds[-1].rho, "left_whole": self.left, "not_rescaled": self.scaling.refused,
            "curve": [r.point(pruning.task.metric) for r in rounds], "fold": done["fold"], "closed": done["closed"],
            "diagnosis": advice,
        }  # fmt: skip
        if pruning.run.folder is not None:
            before = {g.name: g.norms(pruning.base).cpu() for g in self.groups}
            after = {g.name: g.norms(self._unscaled(state)).cpu() for g in self.groups}
            picture(before, after, pruning.run.folder / "gammas.png")
        pruning.seconds["sparsify"] = sum(r.seconds for r in rounds)
        return Found(model, plan, [done], {"ista": report})

    def _unscaled(self, state: dict[str, Tensor] | None) -> nn.Module:
        model = self._model(state)
        self.scaling.undo(model)
        return model

    def _cut(self, state: dict[str, Tensor] | None) -> dict[str, Any]:
        """Fold, and remove the smallest units as well where the budget is not met yet."""
        model, mode = self._model(state), self.how.fold
        folded, closed = self._folded(model, mode), 0
        limits = dict(self.limits)
        while not _holds(self.graph, folded.plan, self.limits):
            try:
                closed += self._silence_smallest(model, Budget(**{k: float(v) for k, v in limits.items()}))
            except BudgetError:  # there is no room for carriers
                if mode == "bias":
                    raise self._too_small(folded) from None
                mode, limits = "bias", dict(self.limits)
            folded = self._folded(model, mode)
            cost = self.graph.cost(folded.plan)
            over = max(getattr(cost, k) / v for k, v in self.limits.items())
            limits = {k: int(v / max(over, 1.001)) for k, v in limits.items()}
        plan = replace(folded.plan, note=note_on_widths(self.graph, self.graph.widths(folded.plan)))
        done = self.pruning.cut(folded.model, self.graph, plan)
        return {**done, "fold": asdict(folded.report), "folded": str(folded.report), "closed": closed}

    def _too_small(self, folded: Folded) -> BudgetError:
        left = {name: getattr(self.graph.cost(folded.plan), name) for name in self.limits}
        return BudgetError(
            f"what is left after sparse training, {left}, is above the limits {self.limits}, and the constraints "
            "allow no less: raise the budget, or loosen max_ratio, min_width or keep"
        )

    def _silence_smallest(self, model: nn.Module, budget: Budget) -> int:
        """Set the gammas of the smallest units to zero, so many that the budget holds; returns how many."""
        scores = {g.name: g.norms(model).double().cpu().numpy() for g in self.groups}
        plan = allocate(self.graph, budget, scores, constraints=self.constraints)
        count = 0
        for g in self.groups:
            live = torch.zeros(g.width)
            live[torch.from_numpy(plan.keep[g.name].copy())] = 1
            count += int(((live == 0) & (g.norms(model).cpu() > 0)).sum())
            g.multiply(model, live.to(self.pruning.data.device))
        return count


def _holds(graph: ChannelGraph, plan: Plan, limits: dict[str, int]) -> bool:
    cost = graph.cost(plan)
    return all(getattr(cost, name) <= limit for name, limit in limits.items())


def shrinking(
    model: nn.Module, graph: ChannelGraph, genes: Genes, keep: Sequence[str], images: Tensor
) -> tuple[list[str], dict[str, str]]:
    """Groups that zero scales can remove, and those that they cannot, each with the reason.

    ConfigError if there is none.
    """
    floor = Constraints(keep=tuple(keep)).ladder(graph).floor
    names = [n for n in searched_groups(graph, genes) if floor[graph.index(n)] < graph.group(n).width]
    left = {n: why for n in names if (why := _unusable(model, graph, n))}
    usable = [n for n in names if n not in left]
    seen = unsilenced(model, graph, usable, images) if usable else {}
    left |= {n: f"it varies where {where} reads it even if its scales are zero" for n, where in seen.items()}
    usable = [n for n in usable if n not in seen]
    if not usable:
        name, why = next(iter(left.items()), ("the network", "no group may shrink"))
        raise ConfigError(
            f"ista needs groups that BatchNorm scales can silence, and found none: {name}, for instance: {why}. "
            "Methods that need no BatchNorm: taylor, l1, uniform; retrain with BatchNorm (affine=True) to use ista"
        )
    return usable, left


def _unusable(model: nn.Module, graph: ChannelGraph, name: str) -> str | None:
    if any(graph.index(name) in bundle for bundle in graph.bundles):
        return "it must keep the same share as other groups"
    scales = scales_of(model, graph.group(name))
    if not scales:
        return "no BatchNorm with a scale (gamma) normalises it"
    frozen = [s.norm for s in scales if not model.get_parameter(s.gamma).requires_grad]
    return f"the scale of {frozen[0]} is frozen (requires_grad=False)" if frozen else None
