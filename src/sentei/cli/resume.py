"""`sentei resume`: go on with a run that was interrupted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from sentei.cli import fidelity as comparing
from sentei.cli import prune as pruning
from sentei.cli import train as training
from sentei.cli.console import say
from sentei.cli.options import run_command
from sentei.errors import CheckpointError
from sentei.runs import is_finished, read_summary, remove_checkpoints

Build = Callable[[Path, Mapping[str, Any]], training.Train | pruning.Prune | comparing.FidelityCommand]
Show = Callable[[Path, Mapping[str, Any]], None]
VERBS: dict[str, tuple[Build, Show]] = {
    "train": (training.Train.of, training.show),
    "prune": (pruning.Prune.of, pruning.show),
    "fidelity": (comparing.FidelityCommand.of, comparing.show),
}


@dataclass(frozen=True)
class Resume:
    """Go on with an interrupted run; its result equals that of a run that was never interrupted."""

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """Run directory of `sentei train`, `sentei prune` or `sentei fidelity`."""

    @property
    def folder(self) -> Path:
        return self.run

    def execute(self) -> None:
        command = run_command(self.run)
        if command.get("verb") not in VERBS:
            raise CheckpointError(f"{self.run}: this sentei does not know the command {command.get('verb')!r}")
        build, show = VERBS[command["verb"]]
        if is_finished(self.run):
            remove_checkpoints(self.run)
            say(f"{self.run} is finished already.")
            show(self.run, read_summary(self.run))
            return
        try:
            options = build(self.run, command)
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"{self.run}/config.yaml was changed, or is of another version: {error}") from error
        options.execute(resume=True)
