"""`sentei compare`: finished runs side by side, or methods at equal cost of training."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import product
from pathlib import Path
from typing import Annotated, Any, cast, get_type_hints

import torch
import tyro
import yaml
from pydantic import TypeAdapter, ValidationError

from sentei.cli.networks import announce, dense_model, random_parameter, refuse_missing_run, runs_near
from sentei.cli.options import (
    Amount,
    Code,
    DataOptions,
    Dense,
    Limits,
    Output,
    Preset,
    Teacher,
    TimingOptions,
    Trust,
    default_folder,
)
from sentei.cli.prune import Prune, prune_with
from sentei.cli.running import print_json
from sentei.cli.saved import quoted
from sentei.comparison.compare import TRAINING, compare
from sentei.comparison.file import COMPARE, LATENCY, Comparison, read_comparison
from sentei.comparison.finished import rows_of, warnings_of
from sentei.comparison.planned import Planned
from sentei.comparison.tables import comparison_tables, remarks, runs_table, seen, timed
from sentei.console import say, screen
from sentei.errors import ConfigError
from sentei.methods.common.method import Workers
from sentei.methods.registry import method_of, named
from sentei.plan import Budget
from sentei.runfiles import is_started
from sentei.train import Recipe


@dataclass(frozen=True)
class Compare:
    """Put finished runs side by side, or with --methods prune a network by several methods at equal cost of training.

    `sentei compare RUN RUN ...` shows one table of runs, `sentei compare FOLDER` that of a comparison again; among
    other runs the folder of a comparison stands for all of its runs.

    `sentei compare MODEL --methods METHOD ...` makes a run for each method, budget and seed. Each gets --epochs times
    the training images, for everything that trains: what a search, sparse training or a supernet uses up is not there
    for fine-tuning. A comparison that was killed goes on when its command is given again. MODEL as for `sentei prune`.
    """

    what: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="RUN [RUN ...]|MODEL")]
    """Folders of finished runs, the folder of a comparison, or one model."""
    images: DataOptions = field(default_factory=DataOptions)
    methods: Annotated[tuple[str, ...], tyro.conf.arg(metavar="METHOD [METHOD ...]")] = ()
    """Methods to compare, or NAME=METHOD to have one in several settings; uniform is always among them."""
    macs: tuple[Amount, ...] = ()
    """Budgets of multiply-accumulates: shares (0.5, 50%) or numbers (20M). Half if no budget is given. One kind may
    have several values, each a budget; what is given of others holds in all of them."""
    params: tuple[Amount, ...] = ()
    """Budgets of parameters, likewise."""
    latency: tuple[Amount, ...] = ()
    """Budgets of time: shares of the full network's, measured in --runtime on this machine."""
    latency_ms: Annotated[tuple[float, ...], tyro.conf.arg(metavar="MS [MS ...]")] = ()
    """Budgets of time in milliseconds a forward pass."""
    activation_bytes: tuple[Amount, ...] = ()
    """Budgets of bytes that layers write: shares or numbers."""
    memory: tuple[Amount, ...] = ()
    """Budgets of bytes of activations that are alive at once: shares or numbers."""
    clock: TimingOptions = field(default_factory=TimingOptions)
    """Where milliseconds are measured, if budgets limit them."""
    seeds: Annotated[int, tyro.conf.arg(metavar="N")] = 3
    """Runs of each method and budget, with seeds from --seed on."""
    settings: Annotated[tuple[str, ...], tyro.conf.arg(name="set", metavar="METHOD.OPTION=VALUE [...]")] = ()
    """Options of single methods, such as abc.evaluations=50."""
    run: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Folder of the comparison; runs/MODEL-DATA-compare unless given."""
    weights: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Trained weights: safetensors or a state_dict."""
    limits: Limits = field(default_factory=Limits)
    score_images: Annotated[int, tyro.conf.arg(metavar="N")] = 2048
    """Training images for BatchNorm recalibration and for scores that need data."""
    reconstruct: bool = False
    """Give what was cut weights that make up for the inputs that were cut, as for `sentei prune`."""
    teacher: Teacher = field(default_factory=Teacher)
    workers: Workers = field(default_factory=Workers)
    code: Code = None
    trust: Trust = False
    """Where MODEL is a run, let the code run that its config names (FILE.py:FUNCTION)."""
    output: Output = field(default_factory=Output)
    preset: Preset = None
    recipe: Recipe = TRAINING
    """How to train; the epochs are the total of each run, its fine-tuning gets what the method leaves of them."""

    @property
    def place(self) -> Path:
        """Folder of the comparison that is made."""
        return self.run or default_folder(self.what[0], self.images.data, "compare")

    def execute(self) -> None:
        if self.methods:
            tell(self.made(), self.output.as_json)
        elif len(self.what) == 1 and (Path(self.what[0]) / COMPARE).is_file():
            self._refuse_options()
            tell(read_comparison(self.what[0]), self.output.as_json)
        else:
            self._refuse_options()
            tell_runs(self.finished(), self.output.as_json)

    def how_to_go_on(self) -> str:
        if self.methods and (self.place / COMPARE).is_file():
            return f"What is finished stays in {self.place}; the same command goes on."
        return "Nothing was written."

    # -- finished runs

    def finished(self) -> list[str]:
        """The runs that are named; ConfigError, with what to type, for what is none."""
        if not self.what:
            raise ConfigError("nothing to compare: name finished runs, or a model with --methods")
        found = [run for name in self.what for run in runs_in(name)]
        for name in found:
            if not is_started(name):
                raise ConfigError(
                    f"{name} is not the folder of a run{runs_near(Path(name))}. To prune a model by several methods, "
                    f"say which:  sentei compare {quoted(name)} --data DATA --methods l1 taylor"
                )
        return found

    def _refuse_options(self) -> None:
        """ConfigError for what has a meaning only where runs are made."""
        default = replace(Compare(self.what), output=self.output)
        if self != default:
            raise ConfigError("these options are for pruning by several methods: add --methods, or leave them out")

    # -- a comparison

    def made(self) -> Comparison:
        methods, settings, budgets = labelled(self.methods), self.by_label(), self.budgets()
        if len(self.what) != 1:
            given = ", ".join(self.what) or "none"
            raise ConfigError(f"--methods prunes one model by several methods; given are {given}")
        refuse_missing_run(self.what[0])
        adopt_threads(self.place)
        asked = self.pruning("uniform", {}).filled()
        data = asked.images.load(self.what[0])
        task = asked.images.purpose()
        model, dense = dense_model(*asked.source(), data, task, self.recipe.seed, self.trust, self.code)
        bare = random_parameter(dense)
        asked.refuse_untrained(dense, bare)
        announce(self.what[0], dense, data, task, bare)
        options = replace(self, images=asked.images)
        return compare(
            model,
            data,
            run_dir=self.place,
            methods=methods,
            budgets=budgets,
            seeds=self.seeds,
            settings=settings,
            task=task,
            recipe=self.recipe,
            constraints=self.limits.constraints(),
            distill=self.teacher.wanted,
            reconstruct=self.reconstruct,
            images=self.score_images,
            timing=self.clock.timing(),
            workers=self.workers,
            source=dense.ref,
            command=lambda one, total: options.command(one, total, dense),
            say=say,
            progress=True,
        )

    def budgets(self) -> list[Budget]:
        """One for each value of the kind that has several; ConfigError where two kinds have."""
        given = {f.name: values for f in fields(Budget) if (values := getattr(self, f.name))} or {"macs": (0.5,)}
        if len(several := [name for name, values in given.items() if len(values) > 1]) > 1:
            kinds = " and ".join("--" + name.replace("_", "-") for name in several)
            raise ConfigError(
                f"{kinds} have several values each, and which of them go together is not said: give several values of "
                "one kind, and compare the other kind by a command of its own (in the same folder, if you like)"
            )
        return [Budget(**dict(zip(given, values, strict=True))) for values in product(*given.values())]

    def by_label(self) -> dict[str, dict[str, Any]]:
        """The settings of each method; ConfigError for an option or a value that does not exist."""
        methods = {"uniform": "uniform", **labelled(self.methods)}
        found: dict[str, dict[str, Any]] = {}
        for text in self.settings:
            label, option, value = _parts(text)
            if label not in methods:
                raise ConfigError(f"--set {text}: {label} is not among the methods {', '.join(methods)}")
            found.setdefault(label, {})[option] = setting(methods[label], option, value)
        for label, options in found.items():
            method_of(methods[label], options)
        return found

    def pruning(self, method: str, options: Mapping[str, Any]) -> Prune:
        """What `sentei prune` would be asked for one run."""
        kind = prune_with(method)
        return kind(
            self.what[0], self.images, method=method, weights=self.weights, limits=self.limits,
            score_images=self.score_images, reconstruct=self.reconstruct, teacher=self.teacher, code=self.code,
            trust=self.trust, recipe=self.recipe, how=method_of(method, options)[1],
        )  # fmt: skip

    def command(self, one: Planned, total: int, dense: Dense) -> dict[str, Any]:
        assert isinstance(one.method, str)
        recipe = replace(self.recipe, seed=one.seed)
        table = (self.clock.latency_table or self.place / LATENCY) if one.budget.timed else None
        asked = replace(
            self.pruning(one.method, one.options), **cast(Any, one.budget.limits), total_images=total, recipe=recipe,
            clock=replace(self.clock, latency_table=table),
        )  # fmt: skip
        return asked.command(dense)


def labelled(methods: Sequence[str]) -> dict[str, str]:
    """Methods by label.

    >>> labelled(["taylor", "long=abc"])
    {'taylor': 'taylor', 'long': 'abc'}
    """
    found: dict[str, str] = {}
    for text in methods:
        label, _, name = text.rpartition("=")
        named(name)
        if found.get(label or name, name) != name:
            raise ConfigError(f"two methods are called {label or name}; choose another name")
        found[label or name] = name
    return found


def _parts(text: str) -> tuple[str, str, str]:
    where, equals, value = text.partition("=")
    label, dot, option = where.rpartition(".")
    if not equals or not dot or not label or not option:
        raise ConfigError(f"--set {text}: expected METHOD.OPTION=VALUE, such as abc.evaluations=50")
    return label, option.replace("-", "_"), value


def setting(method: str, option: str, text: str) -> Any:
    """The value of a method's option, from what stands on the command line.

    >>> setting("abc", "evaluations", "50"), setting("stagewise", "stages", "[layer1, layer2]")
    (50, ('layer1', 'layer2'))
    """
    kind = type(named(method))
    if option not in (hints := get_type_hints(kind)):
        method_of(method, {option: text})  # raises, with the nearest option
    try:
        return TypeAdapter(hints[option]).validate_python(yaml.safe_load(text))
    except (ValidationError, yaml.YAMLError) as error:
        why = error.errors()[0]["msg"] if isinstance(error, ValidationError) else "it cannot be read"
        raise ConfigError(f"--set {method}.{option}={text}: {why}") from error


def adopt_threads(folder: Path) -> None:
    """Compute with as many threads as a comparison began with, as `cli.running.adopt_threads` does for a run."""
    if not (folder / COMPARE).is_file() or "OMP_NUM_THREADS" in os.environ:
        return
    threads = read_comparison(folder).plan["shared"].get("threads")
    if isinstance(threads, int) and threads > 0 and threads != torch.get_num_threads():
        say(f"Threads: {threads} instead of {torch.get_num_threads()}, as when the comparison began")
        torch.set_num_threads(threads)


def runs_in(folder: str) -> list[str]:
    """The runs of a comparison; of any other folder the folder itself."""
    if not (Path(folder) / COMPARE).is_file():
        return [folder]
    return [str(run) for run in sorted(Path(folder).iterdir()) if is_started(run)]


def tell(found: Comparison, as_json: bool) -> None:
    if as_json:
        print_json({"folder": str(found.folder), **found.to_json()})
        return
    for table in comparison_tables(found):
        screen().print(table)
    for line in remarks(found):
        say(line)
    say(f"Runs: {found.folder}/*")
    say(f"See it again:  sentei compare {quoted(found.folder)}")


def tell_runs(folders: Sequence[str], as_json: bool) -> None:
    rows = rows_of(folders)
    warnings = warnings_of(rows)
    if as_json:
        print_json({"runs": [row.to_json() for row in rows], "warnings": warnings})
        return
    screen().print(runs_table(rows))
    for line in filter(None, (seen(rows), timed(rows))):
        say(line)
    for warning in warnings:
        say(f"Warning: {warning}.")
