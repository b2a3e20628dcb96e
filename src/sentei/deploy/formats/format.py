"""What a format is: how a program becomes a file, and how a user without sentei runs it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar

from torch.export import ExportedProgram

from sentei.extras import required

RECORD = "sentei"
"""Under which name a file holds its record."""


@dataclass(frozen=True)
class Sketch:
    """A program with the names that its inputs, outputs and free sizes get."""

    program: ExportedProgram
    inputs: Sequence[str]
    outputs: Sequence[str]
    free: Sequence[dict[int, str]]
    """For each input the names of its free dimensions."""


class Format(ABC):
    """A file that runs without sentei. One file here and one line in `FORMATS` make another.

    `loader` is Python that a user can paste: `load(path)` returns a function of NumPy arrays that returns a list of
    NumPy arrays, `about(path)` the record in the file. The proof runs this very text.
    """

    name: ClassVar[str]
    suffix: ClassVar[str]
    extra: ClassVar[str | None] = None
    """Extra of sentei that installs what it needs."""
    modules: ClassVar[tuple[str, ...]] = ()
    """Modules without which it cannot be written and tried."""
    packages: ClassVar[tuple[str, ...]] = ("torch",)
    """Packages whose versions decide what the file is."""
    bounded: ClassVar[bool] = False
    """Whether memory is planned ahead, so that free sizes have a largest value."""
    loader: ClassVar[str]

    def require(self) -> None:
        """ExportError, with the command that installs it, if a module is missing."""
        for module in self.modules:
            required(module, self.extra or "", f"format {self.name}")

    @abstractmethod
    def build(self, sketch: Sketch) -> Any:
        """The network in this format, in memory. ExportError if the format cannot hold it."""

    @abstractmethod
    def write(self, built: Any, path: Path, record: str) -> list[Path]:
        """Write it with a record; returns the files, the one that is named first."""

    def versions(self) -> dict[str, str]:
        return {name: metadata.version(name) for name in self.packages}
