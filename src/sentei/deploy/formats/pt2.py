"""A program of torch.export: PyTorch without the network's own code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from sentei.deploy.formats.format import RECORD, Format, Sketch
from sentei.deploy.program import quietly


class Pt2(Format):
    name, suffix = "pt2", ".pt2"
    loader = '''\
import torch


def load(path):
    network = torch.export.load(path).module()
    leaves = torch.utils._pytree.tree_leaves
    return lambda *arrays: [t.detach().numpy() for t in leaves(network(*map(torch.from_numpy, arrays)))]


def about(path):
    found = {"sentei": ""}
    torch.export.load(path, extra_files=found)
    return found["sentei"]
'''

    def build(self, sketch: Sketch) -> Any:
        return sketch.program

    def write(self, built: Any, path: Path, record: str) -> list[Path]:
        with quietly():
            torch.export.save(built, path, extra_files={RECORD: record})
        return [path]
