"""ISTA: drive BatchNorm scales to exact zeros in training and fold the constant channels away.

Ye, Lu, Lin, Wang: "Rethinking the Smaller-Norm-Less-Informative Assumption in Channel Pruning of Convolution Layers",
ICLR 2018 (arXiv 1802.00124). A round trains for an epoch with a Lasso on the scales; rounds, rho and the end are those
of `Sparsifier`.
"""

from __future__ import annotations

import copy
import time
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from torch import nn

from sentei.data import Data
from sentei.distributed import alike, is_leader
from sentei.methods.common.genes import Genes
from sentei.methods.common.method import Found, Method
from sentei.methods.common.pruning import Pruning
from sentei.methods.ista.lasso import CostKind
from sentei.methods.ista.rounds import diagnose
from sentei.methods.ista.sparsifier import Sparsifier, check_settings, refuse_wrong
from sentei.methods.ista.view import LassoView, picture
from sentei.plan import Budget, Plan
from sentei.runfiles import CURVE, remove_curve
from sentei.surgery import cut, save
from sentei.surgery.fold import Mode
from sentei.train import Recipe, fit


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
        check_settings(self.rho, self.growth, self.alpha, self.cost, self.genes, self.fold)
        refuse_wrong({
            "sparse_epochs": (self.sparse_epochs, self.sparse_epochs >= 1, "1 or more"),
            "sparse_lr": (self.sparse_lr, self.sparse_lr > 0, "above 0"),
        })  # fmt: skip

    @property
    def about(self) -> str:
        return "BatchNorm scales trained to exact zeros, constant channels folded away (ISTA)"

    @property
    def budgeted(self) -> bool:
        return self.rho is None

    def trains_on(self, data: Data, recipe: Recipe) -> dict[str, int]:
        return {"sparse_epochs": self.sparse_epochs * data.epoch_images(recipe.batch_size, recipe.limit)}

    def find(self, pruning: Pruning) -> Found:
        return _Search(self, pruning).result()


class _Search:
    """One run of ISTA: a Sparsifier, an epoch of training for each of its rounds, and what of them is stored."""

    def __init__(self, how: Ista, pruning: Pruning) -> None:
        self.how, self.pruning, self.graph = how, pruning, pruning.graph
        self.sparsifier = Sparsifier(
            copy.deepcopy(pruning.base), pruning.graph, pruning.sample(8),
            budget=pruning.budget if how.budgeted else None, rho=how.rho, lr=how.sparse_lr,
            steps=pruning.data.train.steps(pruning.recipe.batch_size, pruning.recipe.limit), growth=how.growth,
            alpha=how.alpha, cost=how.cost, genes=how.genes, fold=how.fold, constraints=pruning.constraints,
            collapsed=pruning.task.collapsed,
        )  # fmt: skip

    # -- the run

    def result(self) -> Found:
        pruning, sparsifier = self.pruning, self.sparsifier
        start = pruning.run.once("start", self._start, together=True)
        sparsifier.before = start["value"]
        self._tell_start()
        with LassoView(sparsifier.groups, sparsifier.limits, self.graph, pruning.progress) as view:
            while len(sparsifier.rounds) < self.how.sparse_epochs and not sparsifier.met:
                number = len(sparsifier.rounds) + 1
                done = pruning.run.once(f"ista{number}", partial(self._round, number, view), together=True)
                self._forget_inside(number)
                if len(sparsifier.rounds) < number:  # read back
                    sparsifier.model.load_state_dict(done["model"])
                    sparsifier.load_state_dict(done["sparsifier"])
                pruning.trained["sparse"] += done.get("images", 0)
                pruning.say(sparsifier.rounds[-1].line(number, self.graph.cost().macs, pruning.task.told))
                advice = self._advice()
                if advice:
                    pruning.say(f"  {advice}")
        return self._finish()

    def _start(self) -> dict[str, Any]:
        """The metric before, alpha and the first rho."""
        pruning, sparsifier = self.pruning, self.sparsifier
        if pruning.run.folder is not None:
            remove_curve(pruning.run.folder)
        value = pruning.value(pruning.base)
        return {"alpha": sparsifier.alpha, "rho": sparsifier.first, "value": value, "seconds": {}}

    def _advice(self) -> str | None:
        sparsifier = self.sparsifier
        return diagnose(sparsifier.rounds, sparsifier.fell, self.pruning.task.guessing(self.pruning.data))

    def _tell_start(self) -> None:
        sparsifier, rho = self.sparsifier, self.how.rho
        units = sum(g.width for g in sparsifier.groups)
        self.pruning.say(
            f"Sparse training on {units:,} units of {len(sparsifier.groups)} groups: rho {rho or sparsifier.first:.2g}"
            f"{'' if rho else ', rising'}, alpha {sparsifier.alpha:g}, learning rate {self.how.sparse_lr:g}"
        )
        for name, why in sparsifier.left.items():
            self.pruning.say(f"  {name} stays whole: {why}")
        if sparsifier.rest and self.how.genes == "inner":
            rest = ", ".join(sparsifier.rest[:4])
            self.pruning.say(f"  {rest} kept whole as residual streams; --genes all includes them")
        refused = sparsifier.scaling.refused
        if refused and sparsifier.alpha != 1:
            name, why = next(iter(refused.items()))
            self.pruning.say(f"  {len(refused)} groups keep alpha 1, {name} for instance: {why}")

    # -- one round

    def _round(self, number: int, view: LassoView) -> dict[str, Any]:
        """An epoch of training with the penalty."""
        pruning, sparsifier = self.pruning, self.sparsifier

        def after_step(trained: nn.Module, lr: float) -> None:
            sparsifier.step(lr)
            view.stepped(trained, sparsifier.proximal.penalties, number)

        recipe = replace(
            pruning.recipe, epochs=1, lr=self.how.sparse_lr, schedule="constant", warmup_epochs=0.0, ema_decay=None,
            seed=pruning.recipe.seed + 1009 * number,
        )  # fmt: skip
        minutes = pruning.checkpoint_minutes
        trained = fit(
            sparsifier.model, pruning.data, recipe, task=pruning.task, name=f"ista {number}",
            run_dir=None if minutes is None else pruning.run.folder,
            after_step=after_step, plain=list(sparsifier.parameters), optimizer=pruning.optimizer,
            checkpoint_minutes=minutes, beside=sparsifier, journal=False, progress=False,
        )  # fmt: skip
        sparsifier.began = time.perf_counter() - trained.seconds
        pruning.recalibrate(sparsifier.model)
        sparsifier.next_round(pruning.value(sparsifier.model), trained.history[-1]["loss"])
        record = sparsifier.rounds[-1]
        view.rounded(record)
        self._keep(number)
        return {
            "model": {name: t.detach().cpu() for name, t in sparsifier.model.state_dict().items()},
            "sparsifier": sparsifier.state_dict(),
            "record": asdict(record),
            "images": trained.images,
            "seconds": {"sparsify": record.seconds},
        }

    def _forget_inside(self, number: int) -> None:
        """What was stored within a round, once the round is stored."""
        if self.pruning.run.folder is not None and is_leader():
            (self.pruning.run.folder / f"ista {number}.ckpt").unlink(missing_ok=True)

    def _keep(self, number: int) -> None:
        """Each round's network, folded and cut, as files: a point of the curve."""
        folder, folded = self.pruning.run.folder, self.sparsifier.passed
        if folder is not None and folded is not None:
            small = cut(folded.model, self.graph, folded.plan)
            place = folder / CURVE / f"{number:02d}"
            save(small, folded.plan, place, source=self.pruning.source, forward=self.pruning.task.part)

    # -- the end

    def _finish(self) -> Found:
        pruning, sparsifier = self.pruning, self.sparsifier
        # In the memory layout of the original, whether it was just trained or read back: the same bits follow.
        last = copy.deepcopy(pruning.base)
        last.load_state_dict(sparsifier.model.state_dict())
        sparsifier.model = last
        return self._cut_under(pruning.budget, "cut1")

    def _cut_under(self, budget: Budget, name: str) -> Found:
        """What sparse training left, cut and folded to meet a budget; one that it meets already changes nothing."""
        pruning, sparsifier = self.pruning, self.sparsifier
        if sparsifier.limits:
            sparsifier.limits = budget.resolve(self.graph)
        done = pruning.run.once(name, self._cut, together=True)
        if done["closed"]:
            pruning.say(f"Closed the gap to the budget with the {done['closed']} units of the smallest scales")
        pruning.say(f"Folded: {done['folded']}")
        pruning.tell_cut(done)
        plan = Plan.from_json(done["plan"])
        model = cut(pruning.base, self.graph, plan)
        model.load_state_dict(done["model"])
        rounds = sparsifier.rounds
        report = {
            "alpha": sparsifier.alpha, "rho": rounds[-1].rho, "left_whole": sparsifier.left,
            "not_rescaled": sparsifier.scaling.refused, "curve": [r.point(pruning.task.metric) for r in rounds],
            "fold": done["fold"], "closed": done["closed"], "diagnosis": self._advice(),
        }  # fmt: skip
        if pruning.run.folder is not None:
            networks, groups = (pruning.base, sparsifier.unscaled()), sparsifier.groups
            before, after = ({g.name: g.norms(network).cpu() for g in groups} for network in networks)
            picture(before, after, pruning.run.folder / "gammas.png")
        pruning.seconds["sparsify"] = sum(r.seconds for r in rounds)
        return Found(model, plan, [done], {"ista": report}, again=self._cut_under)

    def _cut(self) -> dict[str, Any]:
        end = self.sparsifier.conclude()
        alike(end.plan.to_json(), "a plan")
        done, report = self.pruning.cut(end.folded.model, self.graph, end.plan), end.folded.report
        return {**done, "fold": asdict(report), "folded": str(report), "closed": end.closed}
