"""`sentei resume`: go on with a run that was interrupted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from sentei.cli import fidelity as comparing
from sentei.cli import prune as pruning
from sentei.cli import train as training
from sentei.cli.networks import refuse_damaged_run, runs_near
from sentei.cli.options import TrainingOutput, Trust, path_of, resolved_ref
from sentei.cli.running import Show, tell
from sentei.cli.saved import Saved, permit, saved_command
from sentei.comparison.file import COMPARE
from sentei.console import say
from sentei.data.dataset import kind_of
from sentei.distributed import processes
from sentei.errors import CheckpointError, ConfigError
from sentei.lock import FolderLock
from sentei.runfiles import clean_up, is_finished, is_half_cleaned, is_started, resume_command

Command = training.Train | pruning.Prune | comparing.FidelityCommand
VERBS: dict[str, tuple[Callable[[Path, Saved], Command], Show]] = {
    "train": (training.Train.of, training.show),
    "prune": (pruning.Prune.of, pruning.show),
    "fidelity": (comparing.FidelityCommand.of, comparing.show),
}


@dataclass(frozen=True)
class Resume:
    """Go on with an interrupted run; its result equals that of a run that was never interrupted.

    What has moved since may be named again. Its content decides: other images, weights or code are refused.
    """

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """Run directory of `sentei train`, `sentei prune` or `sentei fidelity`."""
    data: Annotated[str | None, tyro.conf.arg(metavar="DATA")] = None
    """The same data, where they lie now."""
    data_root: Annotated[str | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Folder that holds the data now."""
    task: Annotated[str | None, tyro.conf.arg(metavar="FILE.py:CLASS")] = None
    """The same task, where its code lies now."""
    model: Annotated[str | None, tyro.conf.arg(metavar="MODEL")] = None
    """The same model, where it lies now: FILE.py:FUNCTION or the folder of a run."""
    weights: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """The same weights, where they lie now."""
    supernet: Annotated[str | None, tyro.conf.arg(metavar="RUN")] = None
    """The run with the same supernet, where it lies now."""
    trust: Trust = False
    """Let the code run that the config of the run names (FILE.py:FUNCTION)."""
    output: TrainingOutput = field(default_factory=TrainingOutput)

    @property
    def folder(self) -> Path:
        return self.run

    def execute(self) -> None:
        if not is_started(self.run):
            raise CheckpointError(self._no_run())
        saved = saved_command(self.run)
        build, show = VERBS[saved.verb]
        if is_finished(self.run):
            refuse_damaged_run(self.run, saved.verb)
            if is_half_cleaned(self.run):
                lock = FolderLock(self.run)
                clean_up(self.run)
                lock.release()
            say(f"{self.run} is finished already.")
            tell(show, self.run, self.output.as_json)
            return
        named = {"model": self.model is not None, "data": self.data is not None}
        model = [] if named["model"] else [saved.model, saved.dense.ref if saved.model == saved.dense.ref else None]
        code = [*model, None if named["data"] else saved.data.data, None if self.task else saved.data.task]
        permit(self.run, code, self.trust, ", or name it again with --model, --data and --task")
        command = self._moved(build(self.run, saved))
        self._refuse_lost(command)
        command.execute()

    def _moved(self, command: Command) -> Command:
        """The command with what was named again."""
        given: dict[str, Any] = {"trust": self.trust, "output": self.output}
        if self.output.checkpoint_minutes is not None and isinstance(command, comparing.FidelityCommand):
            raise ConfigError(f"{self.run} is a run of sentei fidelity, which knows no --checkpoint-minutes")
        if processes() > 1 and isinstance(command, comparing.FidelityCommand):
            raise ConfigError(f"{self.run} is a run of sentei fidelity, which runs in one process")
        if self.model is not None:
            given["model"] = resolved_ref(self.model)
        if self.weights is not None:
            given["weights"] = self.weights
        places = {name: value for name in ("data", "data_root", "task") if (value := getattr(self, name)) is not None}
        given["images"] = replace(command.images, **places).resolved() if places else command.images
        if self.supernet is not None:
            how = getattr(command, "how", None)
            if how is None or "supernet" not in {f.name for f in fields(how)}:
                raise ConfigError(f"{self.run} uses no supernet of another run; leave out --supernet")
            given["how"] = replace(how, supernet=self.supernet)
        return replace(command, **given)

    def _refuse_lost(self, command: Command) -> None:
        """ConfigError, with what to type, if something lies no longer where the run has it."""
        supernet = getattr(getattr(command, "how", None), "supernet", None)
        places = {
            "--model": (command.model, "MODEL"),
            "--data": (command.images.data, f"{kind_of(command.images.data or '')}:PATH or FILE.py:FUNCTION"),
            "--task": (command.images.task, "FILE.py:CLASS"),
            "--weights": (command.weights, "FILE"),
            "--supernet": (supernet, "RUN"),
        }
        for option, (where, form) in places.items():
            if where is not None and (path := path_of(str(where))) is not None and not path.exists():
                raise ConfigError(
                    f"{path} is not there any more. If it has moved, name its new place:  "
                    f"{resume_command(self.run)} {option} {form}"
                )

    def _no_run(self) -> str:
        if (self.run / COMPARE).is_file():
            return f"{self.run} is a comparison, not a run: the command that began it goes on with it"
        if self.run.is_dir():
            return (
                f"{self.run} is not a run directory: it has no config.yaml, so nothing was begun there. "
                "Give the command that was to make it once more"
            )
        return f"{self.run} is not a run directory: there is no such folder{runs_near(self.run)}"
