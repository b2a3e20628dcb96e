"""A trained supernet on disk, so that one training serves several budgets and searches."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sentei.errors import CheckpointError
from sentei.supernet.training import SortedNet
from sentei.tensorfile import read_tensors, write_tensors

ORDER = "order:"


def file_of(folder: Path, rule: str) -> Path:
    return folder / f"supernet-{rule}.safetensors"


def save_supernet(net: SortedNet, folder: Path, about: Mapping[str, Any]) -> None:
    """Write weights, the order of units, and what tells this supernet from others; no pickle."""
    orders = {f"{ORDER}{name}": torch.from_numpy(units.copy()) for name, units in net.order.items()}
    whole = {**net.model.state_dict(), **orders}
    write_tensors(file_of(folder, about["rule"]), whole, {"about": json.dumps(about)})


def content_of_supernet(folder: str | Path, rule: str) -> str:
    """Checksum of a run's supernet file; CheckpointError if there is none."""
    return hashlib.sha256(_existing(Path(folder), rule).read_bytes()).hexdigest()[:16]


def _existing(folder: Path, rule: str) -> Path:
    file = file_of(folder, rule)
    if not file.is_file():
        raise CheckpointError(f"there is no supernet trained by {rule} in {folder}: {file.name} is missing")
    return file


def load_supernet(net: SortedNet, folder: Path, about: Mapping[str, Any]) -> SortedNet:
    """The supernet of a run, into the untrained `net` of the same settings.

    Raises CheckpointError if there is none, the file is damaged, or it was trained with other settings than `about`
    (the first that differs is named; `epochs` may).
    """
    file = _existing(folder, about["rule"])
    tensors, metadata = read_tensors(file, checked=True)
    trained = json.loads(metadata.get("about", "{}"))
    for key, value in about.items():
        if key != "epochs" and trained.get(key) != value:
            raise CheckpointError(
                f"the supernet in {file} was trained with other {key}: {trained.get(key)}, now {value}. Use the "
                "settings it was trained with, or train a new one"
            )
    order = {n.removeprefix(ORDER): t.numpy() for n, t in tensors.items() if n.startswith(ORDER)}
    net.model.load_state_dict({n: t for n, t in tensors.items() if not n.startswith(ORDER)})
    return replace(net, order=order)
