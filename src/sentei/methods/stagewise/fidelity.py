"""How well do proxies foretell accuracy: structures are trained for real, and each proxy's ranking is held against it.

A method that chooses structures by a proxy is worth what the proxy is worth. Between structures of very different
cost every proxy looks good, because the larger one wins; what counts is the ranking at equal cost. Hence most
structures come from a narrow band around one budget, and that band's rank correlations are the figures to read.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np
from torch import nn

from sentei.data import Data
from sentei.errors import ConfigError
from sentei.machine import machine
from sentei.methods.common.measuring import measure
from sentei.methods.common.method import Workers, deciding
from sentei.methods.common.pruning import DEFAULT_CONSTRAINTS, Pruning, silent
from sentei.methods.common.summary import measured_task
from sentei.methods.stagewise import Stagewise, reinitialise, resets
from sentei.methods.stagewise.stagewise import tell_stages
from sentei.plan import Budget, Constraints
from sentei.runs import Run
from sentei.search import MEASURES, Evaluator, Train, budgeted
from sentei.search.evaluators import check_validation
from sentei.supernet.proxies import StageDistances
from sentei.supernet.stages import Split, find_stages
from sentei.supernet.training import Rule, SortedNet
from sentei.tasks import Task, task_of
from sentei.train import Recipe
from sentei.train.checkpoint import digest

Proxy = Literal["stagewise", "stagewise-distance", "sandwich", "random-path", "recalibrate", "reconstruct", "train"]
PROXIES: tuple[Proxy, ...] = get_args(Proxy)
ABOUT: dict[str, str] = {
    "stagewise": "the metric in a stage-wise supernet",
    "stagewise-distance": "sum of stage distances in it",
    "sandwich": "the metric in a sandwich supernet",
    "random-path": "the metric in a random-path supernet",
    "recalibrate": "the metric of the trained network's slice, no training",
    "reconstruct": "the same with weights that make up for what was cut",
    "train": "the metric after a short training",
}
RESAMPLES = 2000


@dataclass(frozen=True, kw_only=True)
class Fidelity(Workers):
    """What is compared. See `measure_fidelity`."""

    structures: int = 12
    """Structures in the band around the budget."""
    band: float = 0.02
    """Half its width, as a share of the budget."""
    across: int = 0
    """Further structures, each at another budget between a quarter and the whole of the MACs."""
    proxies: tuple[Proxy, ...] = PROXIES
    """What is held against the real accuracy."""
    short_epochs: int = 1
    """Epochs of the proxy `train`."""
    seeds: int = 1
    """Real trainings of each structure. The mean counts; with two or more, how well one training foretells another is
    shown, which is the most that any proxy can reach."""
    start: Literal["inherit", "scratch"] = "inherit"
    """Train structures from the network's weights or from random ones."""
    stages: tuple[str, ...] = ()
    """Modules that end a stage; in place of `split`."""
    split: Split = "resolution"
    """Where stages end: where the spatial size changes, or after each block."""
    supernet_epochs: int = 10
    """Epochs of each supernet."""
    supernet_lr: float = 0.02
    """Their peak learning rate."""
    table_images: int = 500
    """Validation images on which stage distances are measured."""
    calibration_images: int = 1000
    """Training images for the BatchNorm statistics of a structure."""
    validation_images: int = 2000
    """Validation images for a proxy's accuracy."""

    def __post_init__(self) -> None:
        _ = self.supernet
        for name, least in (("structures", 3), ("across", 0), ("short_epochs", 1), ("seeds", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected {least} or more")
        if not 0 < self.band < 1:
            raise ConfigError(f"band is {self.band}; expected a share above 0 and below 1")
        unknown = [p for p in self.proxies if p not in PROXIES]
        if unknown or not self.proxies:
            raise ConfigError(f"proxies are {list(self.proxies)}; expected some of {', '.join(PROXIES)}")
        if self.start not in ("inherit", "scratch"):
            raise ConfigError(f"start is {self.start!r}; expected 'inherit' or 'scratch'")

    @property
    def supernet(self) -> Stagewise:
        """Settings of the supernets."""
        names = (
            "stages", "split", "supernet_epochs", "supernet_lr", "table_images", "calibration_images",
            "validation_images", "executor", "processes", "worker_cpus", "worker_gpus",
        )  # fmt: skip
        return Stagewise(**{name: getattr(self, name) for name in names})


class FromScratch(Train):
    """A structure trained from random weights."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.settings = {**self.settings, "start": "scratch"}
        fresh = copy.deepcopy(self.model)
        reinitialise(fresh, self.recipe.seed)
        self.model = fresh


def measure_fidelity(
    model: nn.Module,
    data: Data,
    how: Fidelity,
    *,
    recipe: Recipe,
    task: Task | str | None = None,
    budget: Budget | None = None,
    constraints: Constraints = DEFAULT_CONSTRAINTS,
    run: Run | None = None,
    source: str | None = None,
    say: Any = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Train random structures with `recipe`, ask every proxy about them, and compare the rankings.

    >>> found = measure_fidelity(model, data, Fidelity(structures=12), recipe=Recipe(epochs=10))
    >>> found["proxies"]["stagewise"]["tau"], found["proxies"]["random-path"]["tau"]

    Structures are drawn at random on the budget, from groups inside the stages. Real accuracy is that on the whole
    validation split; the test images are not touched. Kendall's tau and Spearman's rho are those of the band, with a
    90 % interval of tau by resampling structures; `across_tau` is over all structures where there are others. Each
    training and measurement is in the run's journal, and a call after a kill goes on where it stopped.
    """
    task = task_of(task, data.name)
    check_validation(data, task)
    if how.start == "scratch":
        resets(model)
    run = run or Run(None)
    base = copy.deepcopy(model).to(data.device).eval()
    context = Pruning(
        "fidelity", base, data, budget or Budget(macs=0.5), constraints, recipe, task, run=run, source=source,
        say=say or silent, progress=progress,
    )  # fmt: skip
    return _Comparison(context, how).result()


@dataclass
class _Comparison:
    context: Pruning
    how: Fidelity
    nets: dict[str, SortedNet] = field(default_factory=dict)

    def result(self) -> dict[str, Any]:
        context, how = self.context, self.how
        with context.timed("trace"):
            context.graph = context.trace()
        widths, banded = self.structures(self.untrained())
        values: dict[str, list[float]] = {}
        for proxy in how.proxies:
            context.say(f"Proxy {proxy}: {ABOUT[proxy]} ...")
            with context.timed(proxy):
                values[proxy] = self.measured(self.evaluator(proxy), widths, proxy)
        real = []
        for seed in range(how.seeds):
            context.say(f"Real trainings, {seed + 1} of {how.seeds}: {len(widths)} structures ...")
            with context.timed("real"):
                real.append(self.measured(self.real(seed), widths, "real"))
        return self.summary(widths, banded, values, np.array(real))

    # -- structures

    def structures(self, net: SortedNet) -> tuple[list[np.ndarray], np.ndarray]:
        """Widths of every structure, and which of them lie in the band."""
        context, how = self.context, self.how
        rng, names = np.random.default_rng(context.recipe.seed), net.space.names
        ((cost, limit),) = _one_limit(context.budget).resolve(context.graph).items()
        aimed = replace(context.budget, **{cost: float(int(limit * (1 + how.band / 2)))})
        space = budgeted(context.graph, names, aimed, context.constraints)
        drawn: dict[tuple[int, ...], np.ndarray] = {}
        for _ in range(200 * how.structures):
            widths = space.widths(space.random(rng))
            used = float(getattr(context.graph.costs(widths), cost)) / limit
            if abs(used - 1) <= how.band and len(drawn) < how.structures:
                drawn.setdefault(tuple(widths.tolist()), widths)
        if len(drawn) < how.structures:
            raise ConfigError(
                f"only {len(drawn)} of {how.structures} structures were found within {how.band:.1%} of the budget; "
                "widen the band (--band), ask for fewer (--structures), or let widths have smaller steps (--round-to 1)"
            )
        others = []
        for share in np.linspace(0.25, 1, how.across + 2)[1:-1].tolist():
            wide = budgeted(context.graph, names, Budget(macs=share), context.constraints)
            others.append(wide.widths(wide.random(rng)))
        return [*drawn.values(), *others], np.arange(how.structures + how.across) < how.structures

    # -- evaluators

    def real(self, seed: int) -> Evaluator:
        return self.training(replace(self.context.recipe, seed=self.context.recipe.seed + seed))

    def training(self, recipe: Recipe) -> Evaluator:
        kind = FromScratch if self.how.start == "scratch" else Train
        context = self.context
        return kind(
            context.base, context.graph, context.data, recipe, task=context.task, inherit="l1",
            seed=context.recipe.seed,
        )  # fmt: skip

    def evaluator(self, proxy: Proxy) -> Evaluator:
        context, how = self.context, self.how.supernet
        if proxy == "train":
            return self.training(replace(context.recipe, epochs=self.how.short_epochs))
        if proxy == "recalibrate" or proxy == "reconstruct":
            return MEASURES[proxy](
                context.base, context.graph, context.data, task=context.task, calibration_images=how.calibration_images,
                validation_images=how.validation_images, bf16=context.recipe.bf16,
                memory_mb=context.recipe.train_memory_mb, seed=context.recipe.seed,
            )  # fmt: skip
        net = self.net("stagewise" if proxy == "stagewise-distance" else proxy)
        if proxy == "stagewise-distance":
            return StageDistances.of(net, context.data, how.table_images, how.memory_mb * 2**20, context.recipe.bf16)
        return how.metric(context, net)

    def net(self, rule: Rule) -> SortedNet:
        """The supernet of that rule, trained once."""
        if rule not in self.nets:
            how, net = replace(self.how.supernet, rule=rule), self.untrained()
            if not self.nets:
                tell_stages(self.context, net)
            self.nets[rule] = how.trained(self.context, net)
        return self.nets[rule]

    def untrained(self) -> SortedNet:
        context, how = self.context, self.how
        stages = find_stages(context.base, context.graph, how.stages, how.split)
        return how.supernet.sorted_net(context, stages, context.base)

    def measured(self, evaluator: Evaluator, widths: Sequence[np.ndarray], title: str) -> list[float]:
        context, how = self.context, self.how
        records = measure(
            evaluator, widths, journal=context.run.journal, crew=how.crew, title=title,
            shown=context.progress,
        )  # fmt: skip
        return [float(record["fitness"]) for record in records]

    # -- what is told

    def summary(
        self, widths: Sequence[np.ndarray], banded: np.ndarray, values: Mapping[str, list[float]], real: np.ndarray
    ) -> dict[str, Any]:
        context, mean = self.context, real.mean(0)
        costs = context.graph.costs(np.stack(widths))
        agreement = [
            _tau(a[banded], b[banded]) for i, a in enumerate(real) for b in real[i + 1 :]
        ]  # between trainings of the same structures
        return {
            "verb": "fidelity",
            **measured_task(context.task),
            "model": context.source or type(context.base).__name__,
            "data": context.data.name,
            "budget": context.budget.limits,
            "epochs": context.recipe.epochs,
            "limit": context.recipe.limit,
            "seed": context.recipe.seed,
            "settings": deciding(self.how),
            "base_sha256": digest(context.base),
            "proxies": {
                name: correlation(np.array(v)[banded], mean[banded], context.recipe.seed)
                | ({"across_tau": _tau(np.array(v), mean)} if not banded.all() else {})
                for name, v in values.items()
            },
            "agreement": float(np.mean(agreement)) if agreement else None,
            "structures": [
                {
                    "widths": w.tolist(),
                    "macs": int(costs.macs[i]),
                    "band": bool(banded[i]),
                    "real": real[:, i].tolist(),
                    **{name: v[i] for name, v in values.items()},
                }
                for i, w in enumerate(widths)
            ],
            "seconds": {k: round(v, 1) for k, v in context.seconds.items()},
            "machine": machine(context.data.device),
        }


def correlation(proxy: np.ndarray, real: np.ndarray, seed: int = 0) -> dict[str, float]:
    """Kendall's tau-b with a 90 % interval (percentiles over resampled structures), and Spearman's rho.

    >>> round(correlation(np.array([1.0, 2.0, 3.0, 4.0]), np.array([0.1, 0.2, 0.4, 0.3]))["tau"], 2)
    0.67
    """
    rng, n = np.random.default_rng(seed), len(real)
    draws = rng.integers(0, n, (RESAMPLES, n))
    taus = np.array([_tau(proxy[d], real[d]) for d in draws])
    low, high = np.percentile(taus, [5, 95])
    from scipy import stats  # takes a second, and only this needs it

    constant = np.ptp(proxy) == 0 or np.ptp(real) == 0
    rho = 0.0 if constant else float(stats.spearmanr(proxy, real).statistic)
    return {"tau": _tau(proxy, real), "low": float(low), "high": float(high), "rho": rho}


def _tau(a: np.ndarray, b: np.ndarray) -> float:
    """Kendall's tau-b; 0 where one side is constant."""
    from scipy import stats

    return 0.0 if np.ptp(a) == 0 or np.ptp(b) == 0 else float(stats.kendalltau(a, b).statistic)


def _one_limit(budget: Budget) -> Budget:
    if budget.timed:
        raise ConfigError(f"structures are compared at equal counts, for instance macs=0.5; got {budget}")
    if len(budget.limits) != 1:
        raise ConfigError(f"a band needs one limit, not {' and '.join(budget.limits)}")
    return budget
