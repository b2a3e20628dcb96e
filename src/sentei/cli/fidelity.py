"""`sentei fidelity`: how well cheap proxies foretell the accuracy of pruned networks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from sentei.atomic import write_atomic
from sentei.cli.console import say, stdout
from sentei.cli.options import (
    MODEL,
    DataOptions,
    Dense,
    Ref,
    announce,
    dense_model,
    is_bare,
    packaged_weights,
    plain,
    recipe_from,
    resolved_ref,
    run_command,
)  # fmt: skip
from sentei.cli.train import short
from sentei.errors import ConfigError
from sentei.methods import FINE_TUNE
from sentei.methods.fidelity import ABOUT, Fidelity, measure_fidelity
from sentei.methods.method import deciding, settings_of
from sentei.methods.pruning import DEFAULT_CONSTRAINTS
from sentei.plan import Budget, Constraints
from sentei.report.scatter import scatter
from sentei.report.tables import percent, table
from sentei.runs import Run, is_started, refuse_existing
from sentei.train import Recipe
from sentei.train.checkpoint import digest

PLOT = "fidelity.svg"


@dataclass(frozen=True)
class FidelityCommand:
    """Train random structures of one budget for real, and compare the ranking that each proxy gives them.

    MODEL as for `sentei prune`. The test set is not read: real accuracy is that on the validation split. A killed run
    goes on with `sentei resume RUN`.
    """

    model: Annotated[Ref, tyro.conf.arg(metavar="MODEL", help=MODEL)]
    images: DataOptions = field(default_factory=DataOptions)
    macs: Annotated[float, tyro.conf.arg(metavar="X")] = 0.5
    """Budget of multiply-accumulates: a fraction up to 1, or an absolute number."""
    run: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Run directory; runs/MODEL-DATA-fidelity unless given."""
    weights: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Trained weights: safetensors or a state_dict."""
    round_to: Annotated[int, tyro.conf.arg(metavar="N")] = 8
    """Widths become multiples of this, in groups of at least four times as many channels."""
    how: Fidelity = field(default_factory=Fidelity)
    recipe: Recipe = FINE_TUNE
    """How structures are trained for real: SGD with momentum, linear warm-up, then cosine decay to zero."""

    @property
    def folder(self) -> Path:
        data = "" if is_started(self.model) else f"-{short(self.images.data or 'data')}"
        return self.run or Path("runs") / f"{short(self.model)}{data}-fidelity"

    def execute(self, resume: bool = False) -> None:
        if not resume:
            refuse_existing(self.folder)
        options = self
        if is_started(self.model):
            options = replace(self, images=self.images.filled(run_command(self.model)["data"]))
        data = options.images.load()
        model, dense = dense_model(*options.source(), data, self.recipe.seed)
        if is_bare(dense) or dense.fresh:
            raise ConfigError(f"{self.model} is not trained: train it first, or give --weights FILE")
        announce(self.model, dense, data)
        constraints = replace(DEFAULT_CONSTRAINTS, round_to=self.round_to)
        run = Run.open(self.folder, self.resolved(data.description, digest(model), constraints), options.command(dense))
        summary = measure_fidelity(
            model, data, self.how, recipe=self.recipe, budget=Budget(macs=self.macs), constraints=constraints, run=run,
            source=dense.ref, say=say, progress=True,
        )  # fmt: skip
        write_atomic(self.folder / PLOT, plot(summary).encode())
        run.finish(summary)
        show(self.folder, summary)

    def source(self) -> tuple[str, str | None]:
        """Reference and weights file, with absolute paths."""
        ref = resolved_ref(self.model) or self.model
        if self.weights is None:
            ref = packaged_weights(ref, self.images.data)
        return ref, None if self.weights is None else str(self.weights.resolve())

    def resolved(self, data: Mapping[str, Any], base: str, constraints: Constraints) -> dict[str, Any]:
        settings = {"task": "fidelity", "base_sha256": base, "data": dict(data), "macs": self.macs}
        return settings | {
            "round_to": constraints.round_to, **deciding(self.how), "recipe": self.recipe.to_dict(),
        }  # fmt: skip

    def command(self, dense: Dense) -> dict[str, Any]:
        """What `of` needs to make the same options again from anywhere."""
        return {
            "verb": "fidelity",
            "model": resolved_ref(self.model),
            "dense": plain(dense),
            "data": plain(self.images.resolved()),
            "options": {"macs": self.macs, "round_to": self.round_to, "weights": self.source()[1]},
            "how": settings_of(self.how),
            "recipe": self.recipe.to_dict(),
        }

    @classmethod
    def of(cls, folder: Path, command: Mapping[str, Any]) -> FidelityCommand:
        own, how = dict(command["options"]), dict(command["how"])
        weights = own.pop("weights")
        settings: Any = {name: tuple(v) if isinstance(v, list) else v for name, v in how.items()}
        return cls(
            command["model"], DataOptions(**command["data"]), run=folder,
            weights=None if weights is None else Path(weights), recipe=recipe_from(command["recipe"]),
            how=Fidelity(**settings), **own,
        )  # fmt: skip


def plot(summary: Mapping[str, Any]) -> str:
    """Real accuracy over each proxy's value; structures outside the band are rings."""
    rows = summary["structures"]
    real = [100 * sum(r["real"]) / len(r["real"]) for r in rows]
    return scatter(
        {name: ([r[name] for r in rows], real) for name in summary["proxies"]},
        title=f"{summary['model']} on {summary['data']}: real accuracy over what each proxy says",
        xlabel="proxy", ylabel="real accuracy (%)", hollow=[not r["band"] for r in rows],
        notes={name: f"tau {p['tau']:+.2f}" for name, p in summary["proxies"].items()},
    )  # fmt: skip


def show(folder: Path, summary: Mapping[str, Any]) -> None:
    banded = [r for r in summary["structures"] if r["band"]]
    real = [sum(r["real"]) / len(r["real"]) for r in banded]
    say(
        f"{len(banded)} structures near the budget, {summary['epochs']} epochs each: real accuracy "
        f"{percent(min(real))} to {percent(max(real))}"
    )
    across = any("across_tau" in p for p in summary["proxies"].values())
    columns = ["tau", "90 % interval", "rho", *(["tau, all costs"] if across else [])]
    out = table("How each proxy ranks them", "proxy", "what it is", *columns, left=2)
    for name, p in summary["proxies"].items():
        rest = [f"{p['across_tau']:+.2f}"] if across else []
        interval = f"{p['low']:+.2f} .. {p['high']:+.2f}"
        out.add_row(name, ABOUT[name], f"{p['tau']:+.2f}", interval, f"{p['rho']:+.2f}", *rest)
    stdout().print(out)
    if summary["agreement"] is not None:
        say(f"Two real trainings of the same structures agree to tau {summary['agreement']:+.2f}.")
    say(f"Run directory: {folder}, scatter plot: {folder / PLOT}")
