"""ISTA inside any training loop: proximal steps on BatchNorm scales, round by round, until a budget is met.

Ye, Lu, Lin, Wang: "Rethinking the Smaller-Norm-Less-Informative Assumption in Channel Pruning of Convolution Layers",
ICLR 2018 (arXiv 1802.00124). The paper has no budget: rho is raised here from round to round until the live network
meets it. The method `Ista` drives what stands here.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sentei.errors import BudgetError, CheckpointError, ConfigError
from sentei.graph import ChannelGraph
from sentei.methods.common.genes import Genes
from sentei.methods.common.pruning import DEFAULT_CONSTRAINTS
from sentei.methods.ista.groups import shrinking
from sentei.methods.ista.lasso import CostKind, Proximal, costs_of_units, lasso, live_plan, penalised
from sentei.methods.ista.rounds import Round, diagnose, next_rho, starting_point
from sentei.plan import Budget, Constraints, Plan, allocate, note_on_widths, uniform
from sentei.plan.budget import refuse_other
from sentei.surgery.check import CheckReport, check
from sentei.surgery.cut import cut
from sentei.surgery.fold import Folded, Mode
from sentei.surgery.fold import fold as fold_away
from sentei.surgery.scales import rescale
from sentei.train.optimizers import parameter_groups

Collapsed = Callable[[float, float], bool]
"""Whether a network that measured the second value is destroyed, now that it measures the first."""


@dataclass(frozen=True)
class Conclusion:
    """The network at the end: `folded.model` is to be cut with `plan`; `closed` units went to close the gap."""

    folded: Folded
    plan: Plan
    closed: int


class Sparsifier:
    """ISTA for a training loop of your own: BatchNorm scales (gammas) shrink to exact zeros, then are folded away.

    >>> graph = sentei.trace(model, x)
    >>> sparsifier = sentei.Sparsifier(model, graph, x, budget=sentei.Budget(macs=0.5), lr=0.01, steps=len(loader))
    >>> optimizer = torch.optim.SGD(sparsifier.parameter_groups(weight_decay=5e-4), lr=0.01, momentum=0.9)
    >>> for epoch in range(20):
    ...     for images, labels in loader:
    ...         optimizer.zero_grad()
    ...         F.cross_entropy(model(images), labels).backward()
    ...         optimizer.step()
    ...         sparsifier.step()                     # after each step of the optimizer
    ...     sentei.train.recalibrate(model, loader)
    ...     if sparsifier.next_round(accuracy(model)):  # the budget is met
    ...         break
    >>> small, plan = sparsifier.finish()             # smaller, proven; train it on without a Sparsifier

    `model` is trained in place, and creating a Sparsifier changes its numbers at once: gammas and betas are scaled by
    alpha and the weights of their readers by 1/alpha, which leaves what it computes as it is and makes gammas move
    faster. `finish` undoes that on a copy. A round is whatever lies between two calls of `next_round`, an epoch for
    instance. In a round that meets the budget the penalty ends and the zeros are held.

    Gammas take plain gradient steps: momentum or weight decay, or an optimizer that rescales gradients, would fight
    the penalty. `parameter_groups` gives them to SGD as a group without both. For other optimizers (Adam, ...) say
    `own_steps=True`: then the groups leave them out and `step` takes their gradient step itself. They are never to be
    in an optimizer by any other way.

    Args:
        inputs: what the model is called with, a few real samples on its device: a tensor or tuple (positional), or a
            dict (keywords). Constant channels are found on them, and the cut is proven.
        budget: rho rises from round to round until the live network meets it. rho: fixed, as in the paper; its size
            decides that of the result, and no budget is taken. One of the two.
        lr: learning rate of the gammas, the one that `step` uses unless told otherwise. 0.01 is a good start.
        steps: optimizer steps in a round, from which the first rho follows; needed with a budget, roughly right is
            enough.
        growth: factor by which rho rises; it rises faster while the scales stand still, and waits while many go.
        alpha: the scaling; 0.1, and with a fixed rho by the paper's rule, 1, 0.1, 0.01 or 0.001.
        cost: what a unit is penalised for, "memory" (weights and feature maps, the paper's), "macs" or "params".
        genes: groups that shrink, "inner" (inside branches, as in the paper) or "all" (residual streams too).
        fold: "exact" folds constants exactly at padded borders too, "bias" into biases alone, as the paper.
        constraints: `keep`, `min_width` and `max_ratio` hold. Widths are what training leaves; `round_to` is ignored.
        lower_is_better: of the metric that `next_round` is given.
        before: the metric of the model as given, against which a round that destroys the network is told; unless given,
            that of the first round.
        collapsed: `collapsed(now, before)` tells it in place of the rule: less than half, or more than four times
            where lower is better.
        own_steps: take the gradient steps of the gammas in `step`, by their `.grad`, which is then dropped.

    With a budget, the weights at the start of a round are kept on the CPU, to go back to if it destroys the network.

    Raises ConfigError for settings out of range and for a network without BatchNorm scales that could silence a
    channel, BudgetError for a budget out of reach, PlanError if graph and model do not fit; nothing is changed then.
    """

    def __init__(
        self,
        model: nn.Module,
        graph: ChannelGraph,
        inputs: Any,
        *,
        lr: float,
        budget: Budget | None = None,
        rho: float | None = None,
        steps: int | None = None,
        growth: float = 1.5,
        alpha: float | None = None,
        cost: CostKind = "memory",
        genes: Genes = "inner",
        fold: Mode = "exact",
        constraints: Constraints = DEFAULT_CONSTRAINTS,
        lower_is_better: bool = False,
        before: float | None = None,
        collapsed: Collapsed | None = None,
        own_steps: bool = False,
    ) -> None:
        check_settings(rho, growth, alpha, cost, genes, fold)
        _check_goal(budget, rho, lr, steps)
        graph.check_fits(model)
        self.model, self.graph, self.inputs = model, graph, inputs
        self.lr, self.fixed, self.growth, self.cost, self.genes, self.mode = lr, rho, growth, cost, genes, fold
        self.own_steps, self.before = own_steps, before
        self.collapsed = collapsed or (_risen if lower_is_better else _fallen)
        self.names, self.left = shrinking(model, graph, genes, constraints.keep, inputs)
        others = [g.name for g in graph.groups if not g.frozen and g.name not in self.names]
        self.rest = [name for name in others if name not in self.left]
        self.constraints = replace(constraints.restricted(self.names), round_to=1)
        self.limits = {} if budget is None else budget.resolve(graph)
        if budget is not None:
            self._refuse_budget(budget)
        floors = self.constraints.ladder(graph).floor
        self.groups = penalised(model, graph, self.names, [int(floors[graph.index(n)]) for n in self.names])
        self.alpha, self.first = self._starting_point(alpha, steps)
        self.scaling = rescale(model, graph, self.names, self.alpha, inputs)
        self.scaling.apply(model)
        self.rounds: list[Round] = []
        """What each round has brought: rho, zeros, MACs and parameters of the folded network, the metric."""
        self.passed: Folded | None = None
        """The network at the end of the last round, folded: `sentei.cut(passed.model, graph, passed.plan)` is a smaller
        network too, one for each round."""
        self.closed = 0
        """Units that `finish` removed although their scales were not zero, because the budget was not met."""
        self.report: CheckReport | None = None
        """The proof of the cut, after `finish`."""
        self._begin()

    def _refuse_budget(self, budget: Budget) -> None:
        """BudgetError before any training."""
        try:
            uniform(self.graph, budget, constraints=self.constraints)
        except BudgetError as error:
            whole = [*self.left, *self.rest]
            wider = "; --genes all narrows residual streams too" if self.genes == "inner" else ""
            raise BudgetError(f"{error} Here {', '.join(whole[:4]) or 'no group'} stay whole{wider}.") from None

    def _starting_point(self, alpha: float | None, steps: int | None) -> tuple[float, float]:
        gammas = torch.cat([g.norms(self.model) for g in self.groups]).double().cpu().numpy()
        costs = np.repeat(costs_of_units(self.graph, self.names, None, self.cost), [g.width for g in self.groups])
        return starting_point(alpha, self.fixed, gammas, costs, self.lr, steps or 1)

    # -- what the optimizer needs

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The gammas by name. They take plain gradient steps, without momentum and weight decay."""
        names = sorted({scale.gamma for g in self.groups for scale in g.scales})
        return {name: self.model.get_parameter(name) for name in names}

    def parameter_groups(self, weight_decay: float = 0.0, lr: float | None = None) -> list[dict[str, Any]]:
        """All parameters that require gradients, as groups for an optimizer.

        >>> torch.optim.SGD(sparsifier.parameter_groups(weight_decay=5e-4), lr=0.05, momentum=0.9)

        Weights decay; biases, norms and other vectors do not. The last group holds the gammas, with the Sparsifier's
        learning rate and neither momentum nor weight decay; with `own_steps` it is left out. `lr` is that of the other
        groups, the optimizer's own unless given.
        """
        groups, gammas = parameter_groups(self.model, weight_decay, list(self.parameters))
        if lr is not None:
            groups = [{**group, "lr": lr} for group in groups]
        own = {"params": gammas, "weight_decay": 0.0, "momentum": 0.0, "lr": self.lr}
        return groups if self.own_steps else [*groups, own]

    # -- in the loop

    def step(self, lr: float | None = None) -> None:
        """The proximal step, after each step of the optimizer.

        `lr` is the learning rate of the gammas in this step: give it where a schedule changes it
        (`optimizer.param_groups[-1]["lr"]`).
        """
        self._refuse_finished("step")
        lr = self.lr if lr is None else lr
        if self.own_steps:
            self._gradient_steps(lr)
        self.proximal(self.model, lr)

    def _gradient_steps(self, lr: float) -> None:
        moved = [p for p in self.parameters.values() if p.grad is not None]
        if not moved:
            raise ConfigError("no gamma has a gradient: call step() after backward() and before they are set to zero")
        with torch.no_grad():
            for p in moved:
                p.add_(p.grad, alpha=-lr)  # type: ignore[arg-type]
                p.grad = None  # no optimizer knows them, so that none would

    def next_round(self, value: float | None = None, loss: float | None = None) -> bool:
        """End a round and set rho for the next one; True once the budget is met, never with a fixed rho.

        A round that has destroyed the network is taken back: the model gets the weights with which it began, and rho
        rises less.

        Args:
            value: the metric on validation data, of the model as it is now. Renew the BatchNorm statistics first
                (`sentei.train.recalibrate(model, loader)`): a running average lags behind scales that move fast, and a
                sound network looks like one that is destroyed.
            loss: mean training loss of the round; if it jumps, rho waits.
        """
        self._refuse_finished("next_round")
        value, loss = _number("value", value), _number("loss", loss)
        if not self.proximal.steps:
            raise ConfigError("this round had no step: call step() after each step of the optimizer")
        self.rounds.append(self._round(value, loss))
        if self.met:
            return True
        if self.limits and self.fell(self.rounds[-1]):
            self.model.load_state_dict(self._kept)
        self._begin()
        return False

    def _begin(self) -> None:
        """A new round, with the penalty of the channels that are left."""
        self.rho = self.fixed or next_rho(self.first, self.growth, self.rounds, self.fell)
        costs = costs_of_units(self.graph, self.names, live_plan(self.model, self.graph, self.groups), self.cost)
        self.proximal = Proximal(self.graph, self.groups, (self.rho * costs).tolist(), self.limits)
        self._kept = _weights(self.model) if self.limits else {}
        self.began = time.perf_counter()

    def _round(self, value: float | None, loss: float | None) -> Round:
        self.passed = self._folded(self.model, self.mode)
        cost = self.graph.cost(self.passed.plan)
        return Round(
            rho=self.rho,
            loss=loss,
            lasso=lasso(self.model, self.groups, self.proximal.penalties),
            zeros={g.name: int((g.norms(self.model) == 0).sum()) for g in self.groups},
            widths={g.name: g.width for g in self.groups},
            macs=cost.macs,
            params=cost.params,
            value=value,
            steps=self.proximal.steps,
            reached=self.proximal.reached,
            seconds=round(time.perf_counter() - self.began, 2),
        )

    @property
    def met(self) -> bool:
        """Whether the live network meets the budget."""
        return self.proximal.reached is not None

    def fell(self, r: Round) -> bool:
        """Whether a round has destroyed the network."""
        before = self.before if self.before is not None or not self.rounds else self.rounds[0].value
        return before is not None and r.value is not None and self.collapsed(r.value, before)

    @property
    def advice(self) -> str | None:
        """What goes wrong and what to change (section 4.3 of the paper); None if nothing does."""
        return diagnose(self.rounds, self.fell) if self.rounds else None

    def __repr__(self) -> str:
        if not self.rounds:
            return f"Sparsifier({len(self.groups)} groups, rho {self.rho:.2g}, alpha {self.alpha:g})"
        now, full = self.rounds[-1], max(self.graph.cost().macs, 1)
        return (
            f"Sparsifier(round {len(self.rounds)}: rho {now.rho:.2g}, {now.sparsity:.1%} zero, "
            f"{now.macs / full:.1%} of the MACs{', budget met' if self.met else ''})"
        )

    # -- the end

    def finish(self) -> tuple[nn.Module, Plan]:
        """The smaller network, in evaluation mode, and the plan that leads to its shapes.

        On a copy the scaling is undone and what is constant folded into what stays; where the budget is not met, the
        units of the smallest scales go as well (`closed`); then it is cut and proven (`report`). Train the result on
        without a penalty: it has parameters of its own, so give them to a new optimizer.

        Raises BudgetError if the constraints leave no way to meet the budget, SurgeryError if the proof fails.
        """
        self._refuse_finished("finish")
        end = self.conclude()
        small = cut(end.folded.model, self.graph, end.plan)
        self.report = check(end.folded.model, small, self.graph, end.plan, self.inputs)
        self.closed = end.closed
        return small, end.plan

    def conclude(self) -> Conclusion:
        """Fold, and remove the smallest units as well where the budget is not met yet; the model stays as it is."""
        model, mode = copy.deepcopy(self.model), self.mode
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
            limits = {k: v / max(over, 1.001) for k, v in limits.items()}
        note = note_on_widths(self.graph, self.graph.widths(folded.plan))
        return Conclusion(folded, replace(folded.plan, note=note), closed)

    def unscaled(self, model: nn.Module | None = None) -> nn.Module:
        """A copy of the model with the scaling undone."""
        plain = copy.deepcopy(self.model if model is None else model).eval()
        self.scaling.undo(plain)
        return plain

    def _folded(self, model: nn.Module, mode: Mode) -> Folded:
        return fold_away(self.unscaled(model), self.graph, self.inputs, mode)

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
            g.multiply(model, live)
        return count

    def _refuse_finished(self, what: str) -> None:
        if self.report is not None:
            raise ConfigError(f"{what}() after finish(): train what it returned, or create a new Sparsifier")

    # -- to go on after a kill

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values that go into a checkpoint, beside the model's and the optimizer's.

        >>> torch.save({"model": model.state_dict(), "sparsifier": sparsifier.state_dict(), ...}, "run.pt")

        In the middle of a round that may have to be taken back it is as large as the model, between rounds small.
        """
        now = self.proximal
        return {
            "identity": self._identity(),
            "first": self.first,
            "rho": self.rho,
            "before": self.before,
            "rounds": [asdict(r) for r in self.rounds],
            "penalties": [float(p) for p in now.penalties],
            "steps": now.steps,
            "reached": now.reached,
            "held": [t.cpu() for t in now.held],
            "gammas": {name: p.detach().cpu().clone() for name, p in self.parameters.items()},
            "kept": dict(self._kept) if now.steps else {},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken, to the bit.

        >>> sparsifier = sentei.Sparsifier(model, graph, x, ...)  # as then, from the network of then
        >>> model.load_state_dict(saved["model"])                 # only now: creating it has scaled the model
        >>> sparsifier.load_state_dict(saved["sparsifier"])

        CheckpointError, naming the first difference, if it was created in another way, or if the model's gammas are not
        those of the same moment.
        """
        expected = self.state_dict()
        if state.keys() != expected.keys():
            raise CheckpointError(f"this is no state of a Sparsifier: it has {sorted(state)}, not {sorted(expected)}")
        for name, here in expected["identity"].items():
            there = state["identity"].get(name)
            if there != here:
                raise CheckpointError(
                    f"this state belongs to another Sparsifier: {name} is {there!r} there, {here!r} here. Create it "
                    "with the same settings, from the network with which it was created then"
                )
        self._refuse_other_gammas(state["gammas"])
        self.first, self.rho, self.before = state["first"], state["rho"], state["before"]
        self.rounds, self.passed = [Round.of(r) for r in state["rounds"]], None
        self.proximal = Proximal(
            self.graph, self.groups, list(state["penalties"]), self.limits, state["steps"], state["reached"],
            list(state["held"]),
        )  # fmt: skip
        self._kept = dict(state["kept"]) or (_weights(self.model) if self.limits else {})
        self.began = time.perf_counter()

    def _identity(self) -> dict[str, Any]:
        return {
            "model": self.graph.structure.fingerprint, "groups": {g.name: g.least for g in self.groups},
            "limits": self.limits, "rho": self.fixed, "growth": self.growth, "alpha": self.alpha, "cost": self.cost,
            "fold": self.mode, "not_rescaled": sorted(self.scaling.refused),
        }  # fmt: skip

    def _refuse_other_gammas(self, saved: Mapping[str, Tensor]) -> None:
        for name, p in self.parameters.items():
            if not torch.equal(p.detach().cpu(), saved[name].cpu()):
                raise CheckpointError(
                    f"{name} of the model is not what it was when this state was taken: create the Sparsifier first, "
                    "then load the model's weights of the same moment, then this state"
                )


def check_settings(rho: float | None, growth: float, alpha: float | None, cost: str, genes: str, fold: str) -> None:
    """ConfigError for the first setting that is out of range."""
    refuse_wrong({
        "rho": (rho, rho is None or rho > 0, "above 0"),
        "growth": (growth, growth > 1, "above 1"),
        "alpha": (alpha, alpha is None or 0 < alpha <= 1, "above 0, at most 1"),
        "cost": (cost, cost in ("memory", "macs", "params"), "memory, macs or params"),
        "genes": (genes, genes in ("inner", "all"), "inner or all"),
        "fold": (fold, fold in ("exact", "bias"), "exact or bias"),
    })  # fmt: skip


def refuse_wrong(rules: Mapping[str, tuple[Any, bool, str]]) -> None:
    """ConfigError for the first setting, by name, whose value is not valid; with what was expected."""
    for name, (value, valid, expected) in rules.items():
        if not valid:
            raise ConfigError(f"{name} is {value!r}; expected {expected}")


def _check_goal(budget: Budget | None, rho: float | None, lr: float, steps: int | None) -> None:
    if (budget is None) == (rho is None):
        given = "neither" if budget is None else "both"
        raise ConfigError(
            f"{given} of budget and rho given; expected one: a budget, towards which rho rises, or a fixed rho, "
            "which decides the size itself"
        )
    refuse_wrong({"lr": (lr, lr > 0, "above 0"), "steps": (steps, steps is None or steps >= 1, "1 or more")})
    if budget is None:
        return
    refuse_other(budget)
    if steps is None:
        raise ConfigError("steps is missing: the first rho follows from the steps of a round; give steps=len(loader)")


def _number(name: str, value: float | None) -> float | None:
    if value is None:
        return None
    try:
        number = float(value.detach() if isinstance(value, Tensor) else value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"{name} is a {type(value).__name__}; expected a number") from error
    if not math.isfinite(number):
        raise ConfigError(f"{name} is {number}; expected a finite number. The network may have diverged: lower lr")
    return number


def _fallen(now: float, before: float) -> bool:
    return before > 0 and now < before / 2


def _risen(now: float, before: float) -> bool:
    return before > 0 and now > 4 * before


def _weights(model: nn.Module) -> dict[str, Any]:
    """A copy of a model's state on the CPU."""
    return {
        name: t.detach().to("cpu", copy=True) if isinstance(t, Tensor) else copy.deepcopy(t)
        for name, t in model.state_dict().items()
    }


def _holds(graph: ChannelGraph, plan: Plan, limits: dict[str, float]) -> bool:
    cost = graph.cost(plan)
    return all(getattr(cost, name) <= limit for name, limit in limits.items())
