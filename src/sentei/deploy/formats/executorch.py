"""ExecuTorch for phones and boards, with what XNNPACK can compute given to it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from sentei.deploy.formats.format import RECORD, Format, Sketch
from sentei.deploy.program import quietly, reason
from sentei.errors import ExportError


class ExecuTorch(Format):
    name, suffix, extra = "executorch", ".pte", "executorch"
    modules = ("executorch.exir", "executorch.runtime")
    packages = ("torch", "executorch")
    bounded = True
    loader = '''\
import torch
from executorch.runtime import Runtime


def load(path):
    network = Runtime.get().load_program(path).load_method("forward")
    return lambda *arrays: [t.numpy().copy() for t in network.execute([torch.from_numpy(a) for a in arrays])]


def about(path):
    return Runtime.get().load_program(path).load_method("sentei").execute([])[0]
'''

    def require(self) -> None:
        with quietly():
            super().require()

    def build(self, sketch: Sketch) -> Any:
        with quietly():
            from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
            from executorch.exir import to_edge_transform_and_lower

            try:
                return to_edge_transform_and_lower(sketch.program, partitioner=[XnnpackPartitioner()])
            except Exception as error:  # whatever its passes raise
                raise ExportError(f"ExecuTorch refuses this network: {reason(error)}") from error

    def write(self, built: Any, path: Path, record: str) -> list[Path]:
        """The record is a second method of the program, without inputs."""
        from executorch.exir import EdgeProgramManager

        with quietly():
            program = copy.deepcopy(built.exported_program())  # what comes next works in place
            try:
                made = EdgeProgramManager({"forward": program}, constant_methods={RECORD: record}).to_executorch()
            except Exception as error:
                raise ExportError(f"ExecuTorch refuses this network: {reason(error)}") from error
        path.write_bytes(made.buffer)
        return [path]
