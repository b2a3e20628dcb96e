"""A trained supernet on disk, so that one training serves several budgets and searches."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes

from sentei.atomic import write_atomic
from sentei.errors import CheckpointError
from sentei.supernet.training import Supernet

ORDER = "order:"


def file_of(folder: Path, rule: str) -> Path:
    return folder / f"supernet-{rule}.safetensors"


def save_supernet(net: Supernet, folder: Path, about: Mapping[str, Any]) -> None:
    """Write weights, the order of units, and what tells this supernet from others; no pickle."""
    tensors = {name: t.detach().cpu().contiguous().clone() for name, t in net.model.state_dict().items()}
    orders = {f"{ORDER}{name}": torch.from_numpy(units.copy()) for name, units in net.order.items()}
    write_atomic(file_of(folder, about["rule"]), safetensors_bytes({**tensors, **orders}, {"about": json.dumps(about)}))


def load_supernet(net: Supernet, folder: Path, about: Mapping[str, Any]) -> Supernet:
    """The supernet of a run, into the untrained `net` of the same settings.

    Raises CheckpointError if there is none, the file is damaged, or it was trained with other settings than `about`
    (the first that differs is named; `epochs` may).
    """
    file = file_of(folder, about["rule"])
    if not file.is_file():
        raise CheckpointError(f"there is no supernet trained by {about['rule']} in {folder}: {file.name} is missing")
    try:
        with safe_open(file, "pt") as opened:
            trained = json.loads((opened.metadata() or {}).get("about", "{}"))
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  (not a dict)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{file} is damaged: {error}") from error
    for key, value in about.items():
        if key != "epochs" and trained.get(key) != value:
            raise CheckpointError(
                f"the supernet in {file} was trained with other {key}: {trained.get(key)}, now {value}. Use the "
                "settings it was trained with, or train a new one"
            )
    order = {n.removeprefix(ORDER): t.numpy() for n, t in tensors.items() if n.startswith(ORDER)}
    net.model.load_state_dict({n: t for n, t in tensors.items() if not n.startswith(ORDER)})
    return replace(net, order=order)
