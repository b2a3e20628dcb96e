"""`sentei prune`: from a trained network to a smaller, checked and fine-tuned one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, make_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

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
from sentei.methods import FINE_TUNE, METHODS, prune
from sentei.methods.method import like, settings_of
from sentei.plan import Budget, Constraints
from sentei.report.tables import before_after, percent, search_table, widths_table
from sentei.runs import is_started, refuse_existing
from sentei.train import Recipe

if TYPE_CHECKING:
    MethodName = str
else:
    _ABOUT = "; ".join(f"{name}: {method.about}" for name, method in METHODS.items())
    MethodName = Annotated[tyro.extras.literal_type_from_choices(METHODS), tyro.conf.arg(help=f"{_ABOUT}.")]

DEFAULT = "l1"


@dataclass(frozen=True)
class Prune:
    """Prune a trained network to a budget, prove the cut, fine-tune and save.

    MODEL is a run of `sentei train`, or any model with --weights. The test set is read once, at the end, for the
    network before and after. A killed run goes on with `sentei resume RUN`. Each method has options of its own, shown
    by `sentei prune --method METHOD --help`.
    """

    model: Annotated[Ref, tyro.conf.arg(metavar="MODEL", help=MODEL)]
    images: DataOptions = field(default_factory=DataOptions)
    method: MethodName = DEFAULT
    macs: Annotated[float | None, tyro.conf.arg(metavar="X")] = None
    """Budget of multiply-accumulates: a fraction up to 1, or an absolute number. 0.5 if no budget is given."""
    params: Annotated[float | None, tyro.conf.arg(metavar="X")] = None
    """Budget of parameters, likewise; with --macs both must hold."""
    run: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Run directory; runs/MODEL-DATA-METHOD unless given."""
    weights: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Trained weights: safetensors or a state_dict."""
    round_to: Annotated[int, tyro.conf.arg(metavar="N")] = 8
    """Widths become multiples of this in groups of at least four times as many channels, of 4, 2, 1 in narrower."""
    min_width: Annotated[int, tyro.conf.arg(metavar="N")] = 1
    """Units that every group keeps at least."""
    max_ratio: Annotated[float, tyro.conf.arg(metavar="X")] = 0.9
    """Largest share of its units that a group may lose."""
    keep: Annotated[tuple[str, ...], tyro.conf.arg(metavar="PATTERN")] = ()
    """Layers that stay whole, by name or pattern, with every group that they produce or read."""
    score_images: Annotated[int, tyro.conf.arg(metavar="N")] = 2048
    """Training images for BatchNorm recalibration and for scores that need data."""
    distill: bool = False
    """Fine-tune with the original network as the teacher."""
    untrained: bool = False
    """Prune a network with random weights after all."""
    overwrite: bool = False
    """Replace what the run directory holds."""
    recipe: Recipe = FINE_TUNE
    """How to fine-tune: SGD with momentum, linear warm-up, then cosine decay to zero."""
    how: Any = None
    """What the method itself can be told."""

    @property
    def folder(self) -> Path:
        data = "" if is_started(self.model) else f"-{short(self.images.data or 'data')}"
        return self.run or Path("runs") / f"{short(self.model)}{data}-{self.method}"

    def execute(self, resume: bool = False) -> None:
        budget, constraints = self.budget(), self.constraints()
        if not self.overwrite and not resume:
            refuse_existing(self.folder)
        options = self
        if is_started(self.model):
            options = replace(self, images=self.images.filled(run_command(self.model)["data"]))
        data = options.images.load(self.model)
        model, dense = dense_model(*options.source(), data, self.recipe.seed)
        options.refuse_untrained(dense)
        announce(self.model, dense, data)
        result = prune(
            model,
            data,
            method=self.method,
            budget=budget,
            run_dir=self.folder,
            recipe=self.recipe,
            constraints=constraints,
            distill=self.distill,
            images=self.score_images,
            source=dense.ref,
            command=options.command(dense),
            overwrite=self.overwrite,
            say=say,
            progress=True,
            **vars(self.how),
        )
        show(self.folder, result.summary)

    def source(self) -> tuple[str, str | None]:
        """Reference and weights file, with absolute paths."""
        ref = resolved_ref(self.model) or self.model
        if self.weights is None and not self.untrained:
            ref = packaged_weights(ref, self.images.data)
        return ref, None if self.weights is None else str(self.weights.resolve())

    def refuse_untrained(self, dense: Dense) -> None:
        again = f"sentei train {self.model} --data {self.images.data}"
        if dense.fresh:
            raise ConfigError(
                f"the last layer of {self.model} is new, for {dense.num_classes} classes, and not trained yet. Train "
                f"first, then prune that run:  {again} --weights {self.weights} --run runs/base;  "
                "sentei prune runs/base ..."
            )
        if is_bare(dense) and not self.untrained:
            raise ConfigError(
                f"{self.model} has random weights: pruning it keeps nothing of value. Give --weights FILE, or train it "
                f"first and prune the run:  {again} --run runs/base;  sentei prune runs/base ...  "
                "(--untrained prunes it all the same)"
            )

    def budget(self) -> Budget | None:
        given = self.macs is not None or self.params is not None
        return Budget(macs=self.macs, params=self.params) if given else None

    def constraints(self) -> Constraints:
        return Constraints(round_to=self.round_to, min_width=self.min_width, max_ratio=self.max_ratio, keep=self.keep)

    def command(self, dense: Dense) -> dict[str, Any]:
        """What `of` needs to make the same options again from anywhere."""
        own = {name: getattr(self, name) for name in OPTIONS}
        return {
            "verb": "prune",
            "model": resolved_ref(self.model),
            "dense": plain(dense),
            "data": plain(self.images.resolved()),
            "options": {**own, "keep": list(self.keep), "weights": self.source()[1]},
            "method": settings_of(self.how),
            "recipe": self.recipe.to_dict(),
        }

    @classmethod
    def of(cls, folder: Path, command: Mapping[str, Any]) -> Prune:
        own = dict(command["options"])
        weights = own.pop("weights")
        own |= {"keep": tuple(own["keep"]), "weights": None if weights is None else Path(weights)}
        data = DataOptions(**command["data"])
        how = like(METHODS[own["method"]], command["method"])
        return cls(command["model"], data, run=folder, recipe=recipe_from(command["recipe"]), how=how, **own)


OPTIONS = (
    "method", "macs", "params", "round_to", "min_width", "max_ratio", "keep", "score_images", "distill", "untrained",
)  # fmt: skip


def method_named(argv: Sequence[str]) -> str:
    """The method that a command line asks for; what is wrong with it, the parser says later."""
    for i, word in enumerate(argv):
        if word.startswith("--method="):
            return word.partition("=")[2]
        if word == "--method" and i + 1 < len(argv):
            return argv[i + 1]
    return DEFAULT


def refuse_options_of_others(argv: Sequence[str], method: str) -> None:
    """ConfigError, naming whose it is, for an option that another method has and this one has not."""
    own = type(METHODS.get(method, METHODS[DEFAULT]))
    known = {f.name for kind in (Prune, DataOptions, Recipe, own) for f in fields(kind)}  # type: ignore[arg-type]
    for word in argv:
        name = word.partition("=")[0].removeprefix("--").replace("-", "_")
        owners = [n for n, m in METHODS.items() if name in {f.name for f in fields(m)}]  # type: ignore[arg-type]
        if word.startswith("--") and owners and name not in known:
            raise ConfigError(
                f"method {method} has no option {word.partition('=')[0]}; it belongs to {', '.join(owners)}. "
                f"See:  sentei prune --method {method} --help"
            )


def prune_with(method: str) -> type[Prune]:
    """`Prune` with the options of one method beside its own."""
    chosen = METHODS.get(method, METHODS[DEFAULT])
    own: Any = Annotated[type(chosen), tyro.conf.arg(name=f"method {method}")]
    options = [("how", own, field(default=chosen))]
    return make_dataclass("Prune", options, bases=(Prune,), frozen=True, namespace={"__doc__": Prune.__doc__})


def show(folder: Path, summary: Mapping[str, Any]) -> None:
    console = stdout()
    console.print(widths_table(summary["widths"]))
    console.print(before_after(summary))
    if "search" in summary:
        search = summary["search"]
        console.print(search_table(search))
        say(
            f"{search['evaluations']} structures of {search['genes']} genes took {search['seconds']:,.0f} s of work, "
            f"{search['failed']} failed."
        )
    check, cut = summary["check"], summary["after_cut"]["val_accuracy"]
    if cut is not None:
        say(f"After the cut and before fine-tuning the validation accuracy was {percent(cut)}.")
    if "ista" in summary:
        moved = summary["ista"]["fold"]["error"]
        say(f"Folding constant channels away moved the outputs by {moved:.1e}; cutting them after that by "
            f"{check['max_error']:.1e}.")  # fmt: skip
    else:
        say(f"The cut network equals the original without those channels: max error {check['max_error']:.1e}.")
    if summary["note"]:
        say(f"Note: {summary['note']}.")
    say(f"Run directory: {folder}")
    say(f"Next:  sentei evaluate {folder}")
