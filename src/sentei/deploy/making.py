"""From a network to a file that was proven, or to a word on what can be had instead."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from sentei.data import Data
from sentei.deploy.alone import Alone
from sentei.deploy.axes import MOST_BATCH, Axes, Batch, Image, based, free_sizes
from sentei.deploy.formats import Format
from sentei.deploy.formats.format import Sketch
from sentei.deploy.plain import Plain
from sentei.deploy.program import parameters_of, program_of
from sentei.deploy.proof import Case, cases_of, proven
from sentei.deploy.shipped import Shipped, measured_on, why_not
from sentei.errors import ExportError
from sentei.graph.inputs import arguments
from sentei.tasks import Task

Say = Callable[[str], None]


@dataclass(frozen=True)
class Made:
    """A file that computes what the network computes, in a folder of its own."""

    kind: Format
    plain: Plain
    tensors: list[Tensor]
    axes: Axes
    built: Any
    file: Path
    cases: list[Case]
    errors: dict[str, float]
    parameters: int
    tolerance: float | None

    @property
    def free(self) -> list[dict[int, str]]:
        return free_sizes(self.tensors, self.axes)

    def accuracy(
        self, data: Data, task: Task, images: int | None, recorded: float | None, progress: bool, tell: Say
    ) -> dict[str, Any] | None:
        """What the task measures of the file; None, and why is told, if that cannot be."""
        why = why_not(self.plain, task, data.val, self.tensors, self.axes)
        if why:
            tell(f"Not measured on validation data: {why}")
            return None
        most = MOST_BATCH if self.kind.bounded else None
        batch = most if self.axes.batch else self.tensors[0].shape[0]
        with Alone(self.file, self.kind) as run:
            shipped = Shipped(self.plain, run, self.tensors, batch, data.device)
            found = measured_on(data, task, shipped, self.plain.whole, images, progress)
        found.check()
        return {**found.record(), "recorded": recorded if found.file.images == len(data.val) else None}

    def sealed(self, record: dict[str, Any]) -> list[Path]:
        """The files with the record in them, proven once more as they will be handed over."""
        text = json.dumps(record)
        files = self.kind.write(self.built, self.file, text)
        with Alone(self.file, self.kind) as run:
            if json.loads(run.record) != record:
                raise ExportError(f"the record in {self.file.name} is not what was written there")
            proven(run, self.cases, self.plain, self.tolerance)
        return files


@dataclass(frozen=True)
class Job:
    """What is to be made of a network."""

    kind: Format
    plain: Plain
    example: list[Tensor]
    batch: Batch
    image: Image
    tolerance: float | None

    @classmethod
    def of(
        cls, kind: Format, plain: Plain, example: Any, batch: Batch, image: Image, tolerance: float | None = None
    ) -> Job:
        return cls(kind, plain, plain.tensors_of(*arguments(example)), batch, image, tolerance)

    @property
    def axes(self) -> Axes:
        return Axes(self.batch == "dynamic", self.image == "dynamic")

    def made(self, file: Path) -> Made:
        """The file, proven; an error says which of the free sizes cannot be had, and what can."""
        try:
            return self._made(file)
        except ExportError as error:
            if not self.axes:
                raise
            works = next((job.axes for job in self._smaller() if job._works(file)), None)
            cannot = f"this network cannot be exported as {self.kind.name} with {self.axes}: {error}."
            if works is None:
                raise ExportError(f"{cannot} Nor can it be with fixed sizes") from error
            drop = [name for name in ("batch", "image") if getattr(self.axes, name) and not getattr(works, name)]
            can = f"With {works} it can" if works else "With fixed sizes it can"
            raise ExportError(f"{cannot} {can}: leave {' and '.join(drop)} out") from error

    def _made(self, file: Path) -> Made:
        tensors = based(self.example, self.batch, self.image)
        program = program_of(self.plain, tensors, self.axes, self.kind.bounded)
        cases = cases_of(self.plain, tensors, self.axes)
        names = list(cases[0].outputs)
        built = self.kind.build(Sketch(program, self.plain.names, names, free_sizes(tensors, self.axes)))
        self.kind.write(built, file, "{}")
        with Alone(file, self.kind) as run:
            errors = proven(run, cases, self.plain, self.tolerance)
        size = parameters_of(program)
        return Made(self.kind, self.plain, tensors, self.axes, built, file, cases, errors, size, self.tolerance)

    def _smaller(self) -> list[Job]:
        """With less that is free, best first."""
        less = [replace(self, image=None), replace(self, batch=None)] if self.axes.batch and self.axes.image else []
        return [*less, replace(self, batch=None, image=None)]

    def _works(self, file: Path) -> bool:
        try:
            self._made(file)
        except ExportError:
            return False
        return True
