"""Methods side by side on one network, all with the same total of training images.

`compare_plan` says which runs there are, `compare_file` what is kept of them, `compare_results` what they mean.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from sentei.comparison.file import Comparison, opened
from sentei.comparison.finished import row_of
from sentei.comparison.planned import Ground, Planned, contenders, in_workers, seeds_of
from sentei.comparison.table import measured
from sentei.data import Data
from sentei.errors import CheckpointError, ConfigError, SenteiError
from sentei.methods.common.method import Method, Workers
from sentei.methods.common.pruning import DEFAULT_CONSTRAINTS, Say, silent
from sentei.methods.prune import data_of, prune
from sentei.plan import Budget, Constraints
from sentei.runfiles import is_finished, is_half_cleaned, read_config, read_summary
from sentei.runs import JustFinished, differences
from sentei.speed.latency import Timing
from sentei.tasks import Task
from sentei.tasks.task import shown
from sentei.train import Recipe
from sentei.train.optimizers import Factory

TRAINING = Recipe(epochs=30, lr=0.02)
"""Its epochs are the total: room for a supernet or sparse training, and for fine-tuning after it."""
KEPT = ("test", "val", "macs", "macs_share", "params", "params_share", "seconds", "images")
Command = Callable[[Planned, int], Mapping[str, Any]]


def compare(
    model: nn.Module,
    data: Data | str,
    *,
    run_dir: str | Path,
    methods: Sequence[str | Method] | Mapping[str, str | Method] = ("uniform", "l1", "taylor", "abc"),
    budgets: Sequence[Budget | float] = (0.5,),
    seeds: int | Sequence[int] = 3,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    task: Task | str | None = None,
    recipe: Recipe = TRAINING,
    constraints: Constraints = DEFAULT_CONSTRAINTS,
    distill: bool | None = None,
    reconstruct: bool = False,
    images: int = 2048,
    timing: Timing | None = None,
    workers: Workers | None = None,
    optimizer: Factory | None = None,
    source: str | None = None,
    command: Command | None = None,
    say: Say | None = None,
    progress: bool = False,
) -> Comparison:
    """Prune one network by several methods, to several budgets, with several seeds, at equal cost of training.

    >>> found = sentei.compare(model, "digits", methods=["taylor"], run_dir="runs/compared")  # doctest: +SKIP
    >>> print(*found.sentences, sep="\\n")  # doctest: +SKIP
    taylor at 50% of the MACs is not told apart from uniform: +0.09 points, interval -1.60 .. +1.78, 3 seeds.

    Every run gets `recipe.epochs` times the images of an epoch for everything that takes training steps; what a method
    spends before its fine-tuning counts. `uniform` is always among the methods. Called again with the same arguments it
    goes on where it was stopped; other methods, budgets and seeds may be asked for, and finished runs are kept. A run
    that fails is noted with the reason, and tried again by the next call.

    Args:
        run_dir: folder of the comparison, with a run directory for each run.
        methods: names or methods, or a mapping of labels of your own to either.
        budgets: a number means MACs, as in `Budget(macs=...)`.
        seeds: so many, counted from that of the recipe, or the seeds themselves. They decide everything random.
        timing: where budgets of milliseconds are measured. Without a table in it, one is measured once, for all runs,
            and kept in the folder as `latency.json`.
        settings: settings of the methods by label, such as `{"abc": {"evaluations": 50}}`.
        workers: where the methods that measure structures do so; settings that name an executor of their own keep it.
        command: what `sentei resume` needs to go on with a run, of the run and the total of training images.

    The other arguments are those of `sentei.prune`. Raises ConfigError, before any work, for settings out of range, for
    a method whose size no budget decides and for one that may need more images than there are, BudgetError for a budget
    that `uniform` cannot meet; for one of milliseconds as soon as the table is there.
    """
    say, data = say or silent, data_of(data)
    methods_by_label, added = contenders(methods, settings or {})
    methods_by_label = in_workers(methods_by_label, workers or Workers())
    limits = dict.fromkeys(b if isinstance(b, Budget) else Budget(macs=b) for b in budgets)
    each = data.epoch_images(recipe.batch_size, recipe.limit)
    total = recipe.epochs * each
    given = {
        "task": task, "recipe": recipe, "constraints": constraints, "distill": distill, "reconstruct": reconstruct,
        "images": images, "timing": timing or Timing(), "optimizer": optimizer, "source": source, "total_images": total,
    }  # fmt: skip
    runs = [
        Planned(label, method, options, budget, seed)
        for seed in seeds_of(seeds, recipe.seed)
        for budget in limits
        for label, (method, options) in methods_by_label.items()
    ]
    if not runs or not total:
        raise ConfigError("there is nothing to compare: give at least one budget, one seed and one epoch")
    ground = Ground.of(model, data, given)
    with opened(Path(run_dir), {**ground.plan(runs), "added": added}, [one.to_json() for one in runs]) as comparison:
        if added:
            say("uniform is added: all others are held against it")
        say(f"{len(runs)} runs with {total:,} training images each ({recipe.epochs} epochs of {each:,}), whatever a "
            "method spends them on")  # fmt: skip
        work = _Work(measured(ground, limits, comparison.folder, say, progress), comparison, command, say, progress)
        for number, one in enumerate(runs, 1):
            work.run(one, f"[{number}/{len(runs)}] {one.told}", len(runs) - number)
    return comparison


@dataclass
class _Work:
    """Makes runs, one after the other, and notes what came of them."""

    ground: Ground
    comparison: Comparison
    command: Command | None
    say: Say
    progress: bool
    spent: list[float] = field(default_factory=list)
    """Seconds of the runs that were made here, for the time left."""

    def run(self, one: Planned, heading: str, left: int) -> None:
        folder = self.comparison.folder / one.folder
        note = self.comparison.note(one.folder)
        try:
            if self._is_made(folder, one):
                self.say(f"{heading}: finished already")
            else:
                self.say(f"{heading} ...")
                self._make(folder, one)
        except CheckpointError:  # a full disk or a damaged file: the next run would fare no better
            raise
        except SenteiError as error:
            note.update(state="failed", error=str(error), result=None)
            self.say(f"  failed: {error}")
        else:
            self._note(folder, note)
            self._tell(note["result"], left)
        self.comparison.write()

    def _is_made(self, folder: Path, one: Planned) -> bool:
        """Whether this very run is there; CheckpointError if another one is."""
        if not is_finished(folder) or is_half_cleaned(folder):
            return False
        found = next(differences(read_config(folder)["resolved"], self.ground.identity(one)), None)
        if found is not None:
            name, was, now = found
            raise CheckpointError(
                f"{folder} holds another run than this comparison asks for: {name} is {was!r} there, {now!r} here. "
                "Remove that folder to have the run made again"
            )
        return True

    def _make(self, folder: Path, one: Planned) -> None:
        started, ground = time.perf_counter(), self.ground
        command = None if self.command is None else self.command(one, ground.given["total_images"])
        with suppress(JustFinished):
            prune(
                ground.model, ground.data, method=one.method, budget=one.budget, seed=one.seed, run_dir=folder,
                command=command, say=lambda line: self.say(f"  {line}"), progress=self.progress, **ground.given,
                **one.options,
            )  # fmt: skip
        self.spent.append(time.perf_counter() - started)

    def _note(self, folder: Path, note: dict[str, Any]) -> None:
        row, summary = row_of(folder), read_summary(folder)
        time, base = summary.get("latency"), summary["base"]
        speed = {"ms": time and time["small_ms"], "ms_share": time and time["share"]}
        kept = {name: getattr(row, name) for name in KEPT}
        right = (summary.get("answers") or {}).get("pruned")
        note.update(state="finished", error=None, result={**kept, **speed, "answers": right})
        plan = self.comparison.plan
        metric = plan["metric"]["name"]
        figures = {"test": base[metric], "val": base[f"val_{metric}"]}
        plan["dense"] = {
            **figures, "macs": base["macs"], "params": base["params"],
            "ms": time["dense_ms"] if time else (plan["dense"] or {}).get("ms"),
        }  # fmt: skip

    def _tell(self, result: Mapping[str, Any], left: int) -> None:
        metric, figure = self.comparison.plan["metric"], self.comparison.figure
        time_left = f"; about {sum(self.spent) / len(self.spent) * left:,.0f} s left" if self.spent and left else ""
        self.say(
            f"  {figure} {metric['name']} {shown(result[figure], metric['percent'])} after "
            f"{result['images']['total']:,} training images and {result['seconds']:,.0f} s{time_left}"
        )
