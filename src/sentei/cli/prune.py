"""`sentei prune`: from a trained network to a smaller, checked and fine-tuned one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, make_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from sentei.cli.networks import announce, dense_model, packaged_weights, random_parameter, refuse_missing_run
from sentei.cli.options import (
    MODEL,
    Code,
    DataOptions,
    Dense,
    Limits,
    OptionalAmount,
    Preset,
    Ref,
    Teacher,
    TimingOptions,
    TrainingOutput,
    Trust,
    absolute_or_none,
    command_of,
    default_folder,
    is_code,
    resolved_ref,
    word_behind,
)
from sentei.cli.running import begin, tell, watched
from sentei.cli.saved import Saved, permit_run, quoted, saved_command, trust_flag
from sentei.console import say, screen
from sentei.data import Data
from sentei.errors import ConfigError
from sentei.methods import FINE_TUNE, METHODS, prune
from sentei.methods.choice import choose
from sentei.methods.common.method import settings_of
from sentei.plan import Budget
from sentei.report.tables import before_after, search_table, widths_table, within_error
from sentei.runfiles import CONFIG, is_started
from sentei.runs import JustFinished
from sentei.schema import validated
from sentei.tasks.task import shown
from sentei.train import Recipe

if TYPE_CHECKING:
    MethodName = str | None
else:
    _ABOUT = "; ".join(f"{name}: {method.about}" for name, method in METHODS.items())
    _UNLESS = f"Unless given {choose().method}, with --fast {choose(fast=True).method}"
    MethodName = Annotated[
        tyro.extras.literal_type_from_choices(METHODS) | None,
        tyro.conf.arg(metavar="|".join(METHODS), help=f"{_ABOUT}. {_UNLESS}."),
    ]


@dataclass(frozen=True)
class Prune:
    """Prune a trained network to a budget, prove the cut, fine-tune and save.

    MODEL is a run of `sentei train`, or any model with --weights. Without --method the one is taken that keeps most at
    equal cost of training, with --fast one of the best of those that neither search nor train before. The test set is
    read once, at the end, for the network before and after. A killed run goes on with `sentei resume RUN`, or with the
    same command. Each method has options of its own, shown by `sentei prune --method METHOD --help`.
    """

    model: Annotated[Ref, tyro.conf.arg(metavar="MODEL", help=MODEL)]
    images: DataOptions = field(default_factory=DataOptions)
    method: MethodName = None
    fast: bool = False
    """Take the best method that neither searches nor trains before it cuts."""
    macs: OptionalAmount = None
    """Budget of multiply-accumulates: a share (0.5, 50%) or a number (20M). Half if no budget is given."""
    params: OptionalAmount = None
    """Budget of parameters, likewise; all that are given must hold."""
    latency: OptionalAmount = None
    """Budget of time: a share of the full network's, measured in --runtime on this machine."""
    latency_ms: Annotated[float | None, tyro.conf.arg(metavar="MS")] = None
    """Budget of time in milliseconds a forward pass."""
    activation_bytes: OptionalAmount = None
    """Budget of bytes that layers write: a share or a number."""
    memory: OptionalAmount = None
    """Budget of bytes of activations that are alive at once: a share or a number."""
    clock: TimingOptions = field(default_factory=TimingOptions)
    """Where milliseconds are measured, if the budget limits them."""
    run: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Run directory; runs/MODEL-DATA-METHOD unless given."""
    weights: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Trained weights: safetensors or a state_dict."""
    limits: Limits = field(default_factory=Limits)
    score_images: Annotated[int, tyro.conf.arg(metavar="N")] = 2048
    """Training images for BatchNorm recalibration and for scores that need data."""
    total_images: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Images that may go through training steps in all, a search that trains, sparse training and supernets included;
    the fine-tuning gets what the method leaves, in place of --epochs."""
    reconstruct: bool = False
    """Give what was cut weights that make up for the inputs that were cut, by least squares: for little fine-tuning, at
    a low learning rate, or none."""
    teacher: Teacher = field(default_factory=Teacher)
    untrained: bool = False
    """Prune a network with random weights after all."""
    overwrite: bool = False
    """Replace what the run directory holds."""
    code: Code = None
    trust: Trust = False
    """Where MODEL is a run, let the code run that its config names (FILE.py:FUNCTION)."""
    output: TrainingOutput = field(default_factory=TrainingOutput)
    preset: Preset = None
    recipe: Recipe = FINE_TUNE
    """How to fine-tune: SGD with momentum, linear warm-up, then cosine decay to zero."""
    how: Any = None
    """What the method itself can be told."""

    @property
    def folder(self) -> Path:
        return self.run or default_folder(self.model, self.images.data, self.method or choose(self.fast).method)

    def execute(self) -> None:
        if self.fast and self.method:
            raise ConfigError(f"--fast picks the method itself: leave out --fast, or leave out --method {self.method}")
        budget, constraints = self.budget(), self.limits.constraints()
        begin(self.folder, self.overwrite)
        options = self.filled()
        data = options.images.load(self.model)
        task = options.images.purpose()
        model, dense = dense_model(*options.source(), data, task, self.recipe.seed, self.trust, self.code)
        bare = random_parameter(dense)
        options.refuse_untrained(dense, bare)
        announce(self.model, dense, data, task, bare)
        options = options.picked(data)
        with suppress(JustFinished), watched(self.folder, self.output):
            prune(
                model,
                data,
                task=task,
                method=self.method,
                fast=self.fast,
                budget=budget,
                run_dir=self.folder,
                recipe=self.recipe,
                constraints=constraints,
                distill=self.teacher.wanted,
                reconstruct=self.reconstruct,
                images=self.score_images,
                timing=self.clock.timing(),
                total_images=self.total_images,
                source=dense.ref,
                command=options.command(dense),
                overwrite=self.overwrite,
                say=say,
                progress=True,
                checkpoint_minutes=self.output.checkpoint_minutes,
                **vars(options.how),
            )
        tell(show, self.folder, self.output.as_json)

    def filled(self) -> Prune:
        """With the data of the run that is pruned, where none are given."""
        refuse_missing_run(self.model)
        if not is_started(self.model):
            return self
        saved = saved_command(self.model)
        permit_run(self.model, saved, self.trust, self.images, self.code)
        return replace(self, images=self.images.filled(saved.data))

    def picked(self, data: Data) -> Prune:
        """With what is chosen where no method is named."""
        if self.method:
            return self
        name = choose(self.fast, len(data.val) > 0).method
        how = self.how if name == choose(self.fast).method else METHODS[name]
        return replace(self, method=name, how=how)

    def source(self) -> tuple[str, str | None]:
        """Reference and weights file, with absolute paths."""
        ref = resolved_ref(self.model)
        if self.weights is None and not self.untrained:
            ref = packaged_weights(ref, self.images.data)
        return ref, absolute_or_none(self.weights)

    def refuse_untrained(self, dense: Dense, bare: str | None) -> None:
        task = f" --task {quoted(self.images.task)}" if self.images.task else ""
        again = f"sentei train {quoted(self.model)} --data {quoted(self.images.data)}{task}"
        if dense.fresh:
            raise ConfigError(
                f"the last layer of {self.model} is new, for {dense.num_classes} classes, and not trained yet. Train "
                f"first, then prune that run:  {again} --weights {quoted(self.weights)} --run runs/base;  "
                "sentei prune runs/base ..."
            )
        if bare and not self.untrained:
            own = f" ({bare} differs from one call of the function to the next)" if is_code(dense.ref) else ""
            raise ConfigError(
                f"{self.model} has random weights{own}: pruning it keeps nothing of value. Give --weights FILE, or "
                f"train it first and prune the run:  {again} --run runs/base;  sentei prune runs/base ...  "
                "(--untrained prunes it all the same)"
            )

    def budget(self) -> Budget | None:
        given = {f.name: v for f in fields(Budget) if (v := getattr(self, f.name)) is not None}
        return Budget(**given) if given else None

    def command(self, dense: Dense) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in OPTIONS}
        limits = {**asdict(self.limits), "keep": list(self.limits.keep)}
        clock = {**asdict(self.clock), "latency_table": absolute_or_none(self.clock.latency_table)}
        teacher, weights = asdict(self.teacher), self.source()[1]
        options = {**own, "limits": limits, "clock": clock, "teacher": teacher, "weights": weights}
        return command_of(
            "prune", resolved_ref(self.model), dense, self.images, recipe=self.recipe.to_dict(), options=options,
            how=settings_of(self.how.resolved()),
        )  # fmt: skip

    @classmethod
    def of(cls, folder: Path, saved: Saved) -> Prune:
        given = {"model": saved.model, "images": saved.data, "run": folder, "recipe": saved.recipe, "how": saved.how}
        kind = prune_with(str(saved.options.get("method", choose().method)))
        return validated(kind, {**saved.options, **given}, folder / CONFIG)


OPTIONS = ("method", *(f.name for f in fields(Budget)), "score_images", "total_images", "reconstruct", "untrained")


def method_named(argv: Sequence[str]) -> str:
    """The method that a command line asks for; what is wrong with it, the parser says later."""
    return word_behind(argv, "--method") or choose("--fast" in argv).method


def refuse_options_of_others(argv: Sequence[str], method: str) -> None:
    """ConfigError, naming whose it is, for an option that another method has and this one has not."""
    own = type(METHODS.get(method, METHODS[choose().method]))
    known = {f.name for kind in (Prune, DataOptions, Limits, Teacher, TimingOptions, Recipe, own) for f in fields(kind)}  # type: ignore[arg-type]
    for word in argv:
        name = word.partition("=")[0].removeprefix("--").replace("-", "_")
        owners = [n for n, m in METHODS.items() if name in {f.name for f in fields(m)}]  # type: ignore[arg-type]
        if word.startswith("--") and owners and name not in known:
            taken = "" if word_behind(argv, "--method") else f" (which is taken {_when(argv)})"
            raise ConfigError(
                f"method {method}{taken} has no option {word.partition('=')[0]}; it belongs to {', '.join(owners)}. "
                f"See:  sentei prune --method {method} --help"
            )


def _when(argv: Sequence[str]) -> str:
    return "with --fast" if "--fast" in argv else "where --method names none"


def prune_with(method: str) -> type[Prune]:
    """`Prune` with the options of one method beside its own."""
    chosen = METHODS.get(method, METHODS[choose().method])
    own: Any = Annotated[type(chosen), tyro.conf.arg(name=f"method {method}")]
    options = [("how", own, field(default=chosen))]
    return make_dataclass("Prune", options, bases=(Prune,), frozen=True, namespace={"__doc__": Prune.__doc__})


def listed(names: Sequence[str], most: int = 6) -> str:
    """The first of many names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def show(folder: Path, summary: Mapping[str, Any]) -> None:
    console, metric = screen(), summary["metric"]
    console.print(widths_table(summary["widths"]))
    console.print(before_after(summary))
    if within := within_error(summary):
        say(within)
    if "search" in summary:
        search = summary["search"]
        console.print(search_table(search, metric))
        say(
            f"{search['evaluations']} structures of {search['genes']} genes took {search['seconds']:,.0f} s of work, "
            f"{search['failed']} failed."
        )
    check, cut = summary["check"], summary["after_cut"][f"val_{metric['name']}"]
    if cut is not None:
        value = shown(cut, metric["percent"])
        say(f"After the cut and before fine-tuning the validation {metric['name']} was {value}.")
    if "ista" in summary:
        moved = summary["ista"]["fold"]["error"]
        say(f"Folding constant channels away moved the outputs by {moved:.1e}; cutting them after that by "
            f"{check['max_error']:.1e}.")  # fmt: skip
    else:
        say(f"The cut network equals the original without those channels: max error {check['max_error']:.1e}.")
    if stale := check.get("stale"):
        say(f"May still hold an old width: {listed(stale)}. The outputs were checked with them as they are.")
    if summary["note"]:
        say(f"Note: {summary['note']}.")
    for warning in summary["warnings"]:
        say(f"Warning: {warning}.")
    say(f"Run directory: {folder}")
    split = "" if summary["data_description"]["test"] else " --split val"
    say(f"Next:  sentei evaluate {quoted(folder)}{trust_flag(folder)}{split}")
