"""Stage-wise pruning: a supernet in stages, each supervised by the full network, and widths searched stage by stage.

After Zhang, Yu, Rong, Ou: "Stage-wise Channel Pruning for Model Compression" (arXiv 2011.04908; extended as "Effective
Model Compression via Stage-wise Pruning", Machine Intelligence Research 2023). From the paper: stages, full network
and narrowest network in every iteration, imitation of the full network in training and in search. Losses, cuts, grid,
tables and their merge are ours, because the paper's were not to be had; docs/stagewise.md tells which is which.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self, get_args

import numpy as np
import torch
from torch import nn

from sentei.data import Data
from sentei.distributed import decided
from sentei.errors import ConfigError
from sentei.methods.common.genes import Genes
from sentei.methods.common.method import WHETHER, Found, InWorkers, deciding
from sentei.methods.common.pruning import Pruning
from sentei.methods.common.searching import run_search
from sentei.methods.stagewise.search import StageSearch
from sentei.methods.stagewise.sorting import Interfaces, Sorting, refuse_several_limits
from sentei.plan import Budget, Plan, note_on_use, rescaler
from sentei.search import Colony, Evolution, RandomSearch, Strategy, budgeted
from sentei.search.evaluators import check_validation
from sentei.search.jobs import Where
from sentei.search.view import SearchView
from sentei.supernet.files import content_of_supernet, load_supernet, save_supernet
from sentei.supernet.proxies import StageDistances, SubnetMetric
from sentei.supernet.stages import Split, Stages, find_stages
from sentei.supernet.training import RULES, Rule, SortedNet, SupernetLoss
from sentei.surgery import cut
from sentei.train import Recipe, fit
from sentei.train.checkpoint import digest
from sentei.train.memory import training_bytes

SearchName = Literal["merge", "abc", "evolution", "random"]
STRATEGIES: dict[str, type[Strategy]] = {"abc": Colony, "evolution": Evolution, "random": RandomSearch}


@dataclass(frozen=True, kw_only=True)
class Stagewise(InWorkers):
    """Train a stage-wise supernet, search it, cut the best structure out of it.

    >>> sentei.prune(model, data, method="stagewise", budget=sentei.Budget(macs=0.5), supernet_epochs=5)
    """

    stages: tuple[str, ...] = ()
    """Modules that end a stage, in order (give MODEL before them); in place of `split`."""
    split: Split = "resolution"
    """Where stages end: where the spatial size changes, or after each block. More stages are faster to search and leave
    more widths whole."""
    interfaces: Interfaces = "whole"
    """Widths of the tensors between stages: kept whole, or searched too."""
    genes: Genes = "all"
    """Groups inside a stage whose width is searched: all, or only those inside branches (inner)."""
    levels: int = 10
    """Widths that each group may take: 1/N, 2/N, ... of all its units."""
    sort_by: str = "l1"
    """Criterion by which units are sorted once; narrow networks keep the first."""
    rule: Rule = "stagewise"
    """How the supernet learns: each stage imitates the full network's (stagewise), the scores at the end are imitated
    (sandwich), or random subnets learn the labels (random-path)."""
    supernet: str | None = None
    """Run whose supernet is used again, for another budget or search, instead of training one; settings of its training
    then have no effect."""
    full_epochs: int = 0
    """Epochs of the full network alone before; for networks that are not trained yet."""
    supernet_epochs: int = 10
    """Epochs of the supernet; each costs about twice a plain one."""
    supernet_lr: float = 0.02
    """Its peak learning rate."""
    subnets: int = 1
    """Random subnets in each step, beside the full and the narrowest."""
    memory_mb: int = 4096
    """Memory for training and for stage features; larger batches are split."""
    search: SearchName = "merge"
    """Tables of stage distances merged under the budget, or a search by the accuracy of whole subnets: abc, evolution,
    random."""
    evaluations: int = 400
    """Structures measured for the tables, or by the search."""
    rounds: int = 4
    """Rounds in which the tables grow; later ones measure versions near the best so far."""
    table_images: int = 500
    """Validation images on which distances are measured."""
    candidates: int = 20
    """Merged structures that are measured as a whole; the most accurate is cut."""
    calibration_images: int = 1000
    """Training images for the BatchNorm statistics of a whole structure."""
    validation_images: int = 2000
    """Validation images for its accuracy."""
    start: Literal["supernet", "scratch"] = "supernet"
    """Where the final network starts: from its slice of the supernet, or from new random weights as in the paper."""
    pending: int | None = field(default=None, metadata=WHETHER)
    """With search abc, evolution or random: propose a structure as soon as one returns, with so many out at any time,
    instead of batch by batch. The result then depends on the order of answers, which the run keeps. A resumed run may
    have another number, but not none."""

    def __post_init__(self) -> None:
        limits = {
            "levels": 2, "full_epochs": 0, "supernet_epochs": 0, "subnets": 1, "memory_mb": 1, "evaluations": 1,
            "rounds": 1, "table_images": 2, "candidates": 1, "calibration_images": 2, "validation_images": 1,
        }  # fmt: skip
        for name, least in limits.items():
            if getattr(self, name) < least:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected {least} or more")
        allowed = {
            "split": get_args(Split), "interfaces": get_args(Interfaces), "genes": get_args(Genes), "rule": RULES,
            "search": get_args(SearchName), "start": ("supernet", "scratch"), "executor": get_args(Where),
        }  # fmt: skip
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; expected {' or '.join(map(repr, values))}")
        if isinstance(self.stages, str):
            raise ConfigError(f"stages is {self.stages!r}; expected several names, for instance ({self.stages!r},)")
        if self.supernet_lr <= 0:
            raise ConfigError(f"supernet_lr is {self.supernet_lr}; expected more than 0")
        if self.pending is not None and (self.pending < 1 or self.search == "merge"):
            raise ConfigError(
                f"pending is {self.pending}, search {self.search!r}; expected 1 or more, and 'abc', 'evolution' or "
                "'random': tables grow in rounds"
            )
        _ = self.crew

    @property
    def about(self) -> str:
        return "a supernet in stages, supervised by the full network; widths searched stage by stage (SWP-style)"

    def identity(self) -> dict[str, Any]:
        given = deciding(self)
        return given if self.supernet is None else {**given, "supernet": content_of_supernet(self.supernet, self.rule)}

    @property
    def reads(self) -> tuple[str, ...]:
        return () if self.supernet is None else (self.supernet,)

    def resolved(self) -> Self:
        where = None if self.supernet is None else str(Path(self.supernet).expanduser().resolve())
        return replace(self, supernet=where)

    def trains_on(self, data: Data, recipe: Recipe) -> dict[str, int]:
        each = data.epoch_images(recipe.batch_size, recipe.limit)
        epochs = {} if self.supernet else {"full_epochs": self.full_epochs, "supernet_epochs": self.supernet_epochs}
        return {name: number * each for name, number in epochs.items() if number}

    def judges_on(self, held: int) -> int:
        """For the tables, and for whole structures."""
        whole = self.calibration_images + min(self.validation_images, held)
        if self.search == "merge":
            return self.evaluations * min(self.table_images, held) + self.candidates * whole
        return self.evaluations * whole

    def find(self, pruning: Pruning) -> Found:
        check_validation(pruning.data, pruning.task, self.validation_images)
        if self.start == "scratch":
            resets(pruning.base)
        stages = find_stages(pruning.base, pruning.graph, self.stages, self.split)
        net = self.sorted_net(pruning, stages, pruning.base)
        self.refuse(pruning, net)
        tell_stages(pruning, net)
        net = self.trained(pruning, net)
        widths, report = decided(lambda: self.searched(pruning, net))
        told = {"stages": list(stages.names), "features_bytes": stages.feature_bytes(), **report}
        return self._cut(pruning, net, widths, told, "cut")

    def _cut(
        self, pruning: Pruning, net: SortedNet, widths: np.ndarray, told: dict[str, Any], name: str
    ) -> Found:
        """A structure cut out of the supernet."""
        plan = replace(net.plan(widths), note=note_on_use(pruning.graph, pruning.budget, widths, chosen=True))
        trained = net.unsorted()
        done = pruning.run.once(name, lambda: pruning.cut(trained, pruning.graph, plan), together=True)
        network = cut(trained, pruning.graph, plan := Plan.from_json(done["plan"]))
        network.load_state_dict(done["model"])
        pruning.tell_cut(done)
        if self.start == "scratch":
            reinitialise(network, pruning.recipe.seed)
        again = partial(self._again, pruning, net, widths, told)
        return Found(network, plan, [done], {"stagewise": told}, again)

    def _again(
        self, pruning: Pruning, net: SortedNet, widths: np.ndarray, told: dict[str, Any], budget: Budget, name: str
    ) -> Found:
        """The same structure in the same proportions under another budget."""
        near = rescaler(pruning.graph, budget, pruning.constraints.restricted(net.space.names))(widths)
        return self._cut(pruning.under(budget), net, near, told, name)

    # -- the supernet

    def sorting(self, pruning: Pruning) -> Sorting:
        return Sorting(
            pruning.constraints, self.interfaces, self.genes, self.levels, self.sort_by, pruning.recipe.seed
        )  # fmt: skip

    def sorted_net(self, pruning: Pruning, stages: Stages, model: nn.Module) -> SortedNet:
        return self.sorting(pruning).sorted_net(model, pruning.graph, stages, pruning.task, pruning.scoring())

    def refuse(self, pruning: Pruning, net: SortedNet) -> None:
        """Refuse a budget that no structure meets, before any work."""
        if self.search == "merge":
            refuse_several_limits(pruning.budget, ", or search='abc'")
        self.sorting(pruning).refuse(net, pruning.budget)

    def trained(self, pruning: Pruning, net: SortedNet) -> SortedNet:
        """The full network first if asked for, sort, train. Each phase goes on where it was stopped."""
        about = self._about_supernet(pruning, net)
        if self.supernet is not None:
            net = load_supernet(net, Path(self.supernet), about)
            pruning.say(f"Using the supernet of {self.supernet}; how it was trained is said there")
            return net
        if self.full_epochs:
            recipe = self.recipe(pruning, self.full_epochs)
            warm = self._fit(pruning, net.unsorted(), recipe, "full", None)
            net = self.sorted_net(pruning, net.stages, warm)
        chunk = self.chunk(pruning, net)
        objective = SupernetLoss(net, self.rule, self.subnets, chunk)
        self._fit(pruning, net.model, self.recipe(pruning, self.supernet_epochs), self.rule, objective)
        if pruning.run.folder is not None:
            save_supernet(net, pruning.run.folder, about)
        return net

    def _about_supernet(self, pruning: Pruning, net: SortedNet) -> dict[str, Any]:
        """What has to agree for a supernet to be used again."""
        return {
            "base": digest(pruning.base),
            "rule": self.rule,
            "stages": list(net.stages.names),
            "levels": {name: c.tolist() for name, c in zip(net.space.names, net.space.choices, strict=True)},
            "epochs": self.supernet_epochs,
        }

    def recipe(self, pruning: Pruning, epochs: int) -> Recipe:
        given = pruning.recipe
        return replace(given, epochs=epochs, lr=self.supernet_lr, ema_decay=None, label_smoothing=0.0, compile=False)

    def _fit(
        self, pruning: Pruning, model: nn.Module, recipe: Recipe, name: str, objective: SupernetLoss | None
    ) -> nn.Module:
        found = fit(
            model, pruning.data, recipe, task=pruning.task, run_dir=pruning.run.folder, name=name,
            objective=objective, optimizer=pruning.optimizer, progress=pruning.progress,
            checkpoint_minutes=pruning.checkpoint_minutes, beside=objective,
        )  # fmt: skip
        pruning.seconds[name] = pruning.seconds.get(name, 0.0) + found.seconds
        pruning.trained["supernet"] += found.images
        return found.model

    def chunk(self, pruning: Pruning, net: SortedNet) -> int:
        """Images that fit into the memory at once."""
        batch = pruning.recipe.batch_size
        few = next(iter(pruning.data.train.batches(2, limit=2)))
        features = net.stages.feature_bytes()
        image, limit = training_bytes(net.model, few, pruning.task) + features, self.memory_mb * 2**20
        chunk = min(batch, max(4, limit // max(image, 1)))
        split = f": batches of {batch} are split into {-(-batch // chunk)}" if chunk < batch else ""
        pruning.say(
            f"Memory: stage features take {features / 2**10:,.0f} KB an image, training about "
            f"{image * chunk / 2**20:,.0f} MB at once of {self.memory_mb:,} MB allowed{split}"
        )
        return int(chunk)

    # -- the search

    def searched(self, pruning: Pruning, net: SortedNet) -> tuple[np.ndarray, dict[str, Any]]:
        with pruning.timed("search"):
            if self.search == "merge":
                return self.stage_search(pruning, net).result()
            evaluator = self.metric(pruning, net)
            space = budgeted(pruning.graph, net.space.names, pruning.budget, pruning.constraints)
            strategy = STRATEGIES[self.search](space, seed=pruning.recipe.seed, evaluations=self.evaluations)
            view = SearchView(self.evaluations, pruning.progress, pruning.task.told_fitness)
            found = run_search(strategy, evaluator, pruning.run.journal, self, view, pending=self.pending)
            return found.widths, {"search": {"strategy": self.search, **found.report}}

    def stage_search(self, pruning: Pruning, net: SortedNet) -> StageSearch:
        recipe, memory = pruning.recipe, self.memory_mb * 2**20
        return StageSearch(
            net=net, budget=pruning.budget, metric=self.metric(pruning, net), seed=recipe.seed,
            distances=StageDistances.of(net, pruning.data, self.table_images, memory, recipe.bf16),
            evaluations=self.evaluations, rounds=self.rounds, candidates=self.candidates, crew=self.crew,
            journal=pruning.run.journal, say=pruning.say, progress=pruning.progress,
        )  # fmt: skip

    def metric(self, pruning: Pruning, net: SortedNet) -> SubnetMetric:
        return SubnetMetric.of(
            net, pruning.data, images=self.validation_images, recalibrate=self.calibration_images,
            seed=pruning.recipe.seed, bf16=pruning.recipe.bf16, memory_mb=pruning.recipe.train_memory_mb,
        )  # fmt: skip


def tell_stages(pruning: Pruning, net: SortedNet) -> None:
    """One line on where the network was taken apart."""
    whole = net.stages.costs(net.graph, "macs", net.graph.widths())
    genes = [int(np.isin(groups, net.space.genes).sum()) for groups in net.stages.inside]
    parts = [
        f"{name} ({count} gene{'s' * (count != 1)}, {share:.0%} of the MACs)"
        for name, count, share in zip(net.stages.names, genes, whole / max(whole.sum(), 1), strict=True)
    ]
    count = f"{len(net.stages)} stage{'s' * (len(net.stages) > 1)}"
    pruning.say(f"{count}, up to the output of: {', '.join(parts)}")
    if len(net.stages) == 1:
        pruning.say("  With one stage this is a sandwich supernet; --stages names modules that end a stage")


def reinitialise(model: nn.Module, seed: int) -> None:
    """New random weights, each module's own; ConfigError, naming the parameter, if one has no such thing."""
    found = resets(model)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for reset in found:
            reset()


def resets(model: nn.Module) -> list[Callable[[], None]]:
    """What gives each module new weights; ConfigError, naming the parameter, if one has no such thing."""
    found: dict[str, Any] = {n: m.reset_parameters for n, m in model.named_modules() if hasattr(m, "reset_parameters")}
    for name, _ in model.named_parameters():
        if name.rpartition(".")[0] not in found:
            raise ConfigError(f"start='scratch' needs modules with reset_parameters; that of {name} has none")
    return list(found.values())
