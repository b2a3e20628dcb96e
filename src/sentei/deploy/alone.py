"""An exported file in a process of its own, where sentei cannot be imported."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from sentei.deploy import answering
from sentei.deploy.formats import Format
from sentei.errors import ExportError


class Alone:
    """Run a file by the loader of its format.

    >>> with Alone(Path("model.onnx"), FORMATS["onnx"]) as network:  # doctest: +SKIP
    ...     scores = network([torch.zeros(1, 3, 224, 224)])[0]

    ExportError, with what the process said last, if it cannot be loaded or run there.
    """

    def __init__(self, path: Path, format: Format) -> None:
        self._told = tempfile.TemporaryFile()  # noqa: SIM115  it is closed with the process
        command = [sys.executable, "-P", answering.__file__, str(path.resolve()), format.loader]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._told, cwd=path.parent
        )
        self.told = f"{path.name} cannot be used without sentei"

    def __enter__(self) -> Self:
        try:
            self.record = self._receive("it does not load")[0].numpy().tobytes().decode()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end()

    def __call__(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Outputs in the order of the file's."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended, and said why
            answering.send(self._process.stdin, [t.detach().cpu().numpy() for t in tensors])
        shapes = ", ".join("x".join(map(str, t.shape)) for t in tensors)
        return self._receive(f"it fails on inputs of {shapes}")

    def _receive(self, otherwise: str) -> list[Tensor]:
        assert self._process.stdout is not None
        arrays = answering.receive(self._process.stdout)
        if arrays is None:
            self._process.wait()
            raise ExportError(f"{self.told}: {otherwise}: {self._last_line()}")
        return [torch.from_numpy(array) for array in arrays]

    def _last_line(self) -> str:
        self._told.seek(0)
        lines = self._told.read().decode(errors="replace").split("\n")
        errors = [line for line in lines if line and not line[0].isspace()]
        return errors[-1][:300] if errors else f"the process ended with {self._process.returncode}"

    def _end(self) -> None:
        for stream in (self._process.stdin, self._process.stdout):
            with suppress(OSError):
                if stream is not None:
                    stream.close()
        self._process.kill()
        self._process.wait()
        self._told.close()
