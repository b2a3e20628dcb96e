"""`sentei fidelity`: how well cheap proxies foretell the accuracy of pruned networks."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tyro

from sentei.atomic import write_atomic
from sentei.cli.networks import announce, dense_model, packaged_weights, random_parameter, refuse_missing_run
from sentei.cli.options import (
    MODEL,
    Amount,
    DataOptions,
    Dense,
    Preset,
    Ref,
    RunOutput,
    Trust,
    absolute_or_none,
    command_of,
    default_folder,
    resolved_ref,
)
from sentei.cli.running import begin, tell, watched
from sentei.cli.saved import Saved, permit_run, saved_command
from sentei.console import say, screen
from sentei.data import Data
from sentei.errors import ConfigError
from sentei.methods import FINE_TUNE
from sentei.methods.common.method import deciding, settings_of
from sentei.methods.common.pruning import DEFAULT_CONSTRAINTS
from sentei.methods.stagewise.fidelity import ABOUT, Fidelity, measure_fidelity
from sentei.models.user_file import code_of
from sentei.plan import Budget, Constraints
from sentei.report.scatter import scatter
from sentei.report.tables import table
from sentei.runfiles import CONFIG, is_started
from sentei.runs import JustFinished, Run
from sentei.schema import validated
from sentei.search.jobs import worker_threads
from sentei.tasks import Task
from sentei.tasks.task import shown
from sentei.threads import computed_on
from sentei.train import Recipe
from sentei.train.checkpoint import digest

PLOT = "fidelity.svg"


@dataclass(frozen=True)
class FidelityCommand:
    """Train random structures of one budget for real, and compare the ranking that each proxy gives them.

    MODEL as for `sentei prune`. The test set is not read: real accuracy is that on the validation split. A killed run
    goes on with `sentei resume RUN`, or with the same command.
    """

    model: Annotated[Ref, tyro.conf.arg(metavar="MODEL", help=MODEL)]
    images: DataOptions = field(default_factory=DataOptions)
    macs: Amount = 0.5
    """Budget of multiply-accumulates: a share (0.5, 50%) or a number (20M)."""
    run: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Run directory; runs/MODEL-DATA-fidelity unless given."""
    weights: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Trained weights: safetensors or a state_dict."""
    round_to: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Widths become multiples of this, in groups of at least four times as many channels; as for prune unless given."""
    trust: Trust = False
    """Where MODEL is a run, let the code run that its config names (FILE.py:FUNCTION)."""
    output: RunOutput = field(default_factory=RunOutput)
    how: Fidelity = field(default_factory=Fidelity)
    preset: Preset = None
    recipe: Recipe = FINE_TUNE
    """How structures are trained for real: SGD with momentum, linear warm-up, then cosine decay to zero."""

    @property
    def folder(self) -> Path:
        return self.run or default_folder(self.model, self.images.data, "fidelity")

    def execute(self) -> None:
        begin(self.folder)
        options = self
        refuse_missing_run(self.model)
        if is_started(self.model):
            saved = saved_command(self.model)
            permit_run(self.model, saved, self.trust, self.images)
            options = replace(self, images=self.images.filled(saved.data))
        data = options.images.load(self.model)
        task = options.images.purpose()
        model, dense = dense_model(*options.source(), data, task, self.recipe.seed, self.trust)
        bare = random_parameter(dense)
        if bare or dense.fresh:
            raise ConfigError(f"{self.model} is not trained: train it first, or give --weights FILE")
        announce(self.model, dense, data, task, bare)
        constraints = replace(DEFAULT_CONSTRAINTS, round_to=self.round_to)
        identity = self.identity(data, task, digest(model), dense.ref, constraints)
        opened = partial(Run.open, self.folder, identity, options.command(dense))
        with suppress(JustFinished), watched(self.folder, self.output), opened() as run:
            summary = measure_fidelity(
                model, data, self.how, recipe=self.recipe, task=task, budget=Budget(macs=self.macs),
                constraints=constraints, run=run, source=dense.ref, say=say, progress=True,
            )  # fmt: skip
            write_atomic(self.folder / PLOT, plot(summary).encode())
            run.finish(summary)
        tell(show, self.folder, self.output.as_json)

    def source(self) -> tuple[str, str | None]:
        """Reference and weights file, with absolute paths."""
        ref = resolved_ref(self.model)
        if self.weights is None:
            ref = packaged_weights(ref, self.images.data)
        return ref, absolute_or_none(self.weights)

    def identity(self, data: Data, task: Task, base: str, ref: str, constraints: Constraints) -> dict[str, Any]:
        """What makes a run this one and no other."""
        workers = worker_threads(self.how.executor, self.how.workers)
        return {
            "verb": "fidelity", "task": task.settings, "base_sha256": base, "code": code_of(ref),
            "data": data.identity, "macs": self.macs, "round_to": constraints.round_to, **deciding(self.how),
            "recipe": self.recipe.to_dict(), **computed_on(data.device),
            **({} if workers is None else {"worker_threads": workers}),
        }  # fmt: skip

    def command(self, dense: Dense) -> dict[str, Any]:
        options = {"macs": self.macs, "round_to": self.round_to, "weights": self.source()[1]}
        return command_of(
            "fidelity", resolved_ref(self.model), dense, self.images, recipe=self.recipe.to_dict(), options=options,
            how=settings_of(self.how),
        )  # fmt: skip

    @classmethod
    def of(cls, folder: Path, saved: Saved) -> FidelityCommand:
        given = {"model": saved.model, "images": saved.data, "run": folder, "recipe": saved.recipe, "how": saved.how}
        return validated(cls, {**saved.options, **given}, folder / CONFIG)


def plot(summary: Mapping[str, Any]) -> str:
    """Real accuracy over each proxy's value; structures outside the band are rings."""
    rows, metric = summary["structures"], summary["metric"]
    scale = 100 if metric["percent"] else 1
    real = [scale * sum(r["real"]) / len(r["real"]) for r in rows]
    return scatter(
        {name: ([r[name] for r in rows], real) for name in summary["proxies"]},
        title=f"{summary['model']} on {summary['data']}: real {metric['name']} over what each proxy says",
        xlabel="proxy", ylabel=f"real {'-' * metric['lower_is_better']}{metric['name']}{' (%)' * metric['percent']}",
        hollow=[not r["band"] for r in rows],
        notes={name: f"tau {p['tau']:+.2f}" for name, p in summary["proxies"].items()},
    )  # fmt: skip


def show(folder: Path, summary: Mapping[str, Any]) -> None:
    banded = [r for r in summary["structures"] if r["band"]]
    metric = summary["metric"]
    sign = -1 if metric["lower_is_better"] else 1
    real = sorted(sign * sum(r["real"]) / len(r["real"]) for r in banded)
    say(
        f"{len(banded)} structures near the budget, {summary['epochs']} epochs each: real {metric['name']} "
        f"{shown(real[0], metric['percent'])} to {shown(real[-1], metric['percent'])}"
    )
    across = any("across_tau" in p for p in summary["proxies"].values())
    columns = ["tau", "90 % interval", "rho", *(["tau, all costs"] if across else [])]
    out = table("How each proxy ranks them", "proxy", "what it is", *columns, left=2)
    for name, p in summary["proxies"].items():
        rest = [f"{p['across_tau']:+.2f}"] if across else []
        interval = f"{p['low']:+.2f} .. {p['high']:+.2f}"
        out.add_row(name, ABOUT[name], f"{p['tau']:+.2f}", interval, f"{p['rho']:+.2f}", *rest)
    screen().print(out)
    if summary["agreement"] is not None:
        say(f"Two real trainings of the same structures agree to tau {summary['agreement']:+.2f}.")
    say(f"Run directory: {folder}, scatter plot: {folder / PLOT}")
