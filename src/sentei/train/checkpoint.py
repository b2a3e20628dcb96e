"""Files that are whole or absent: atomic writes, checksummed checkpoints, weights without pickle."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sentei.atomic import write_atomic
from sentei.errors import CheckpointError
from sentei.tensorfile import write_tensors

HEADER = b"sentei-checkpoint-1 "


def save_checkpoint(path: str | Path, state: dict[str, Any]) -> None:
    """Save a dict of tensors and plain values, with a checksum.

    >>> save_checkpoint("run/train.ckpt", {"epoch": 3, "model": net.state_dict()})  # doctest: +SKIP
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    payload = buffer.getvalue()
    write_atomic(path, HEADER + hashlib.sha256(payload).hexdigest().encode() + b"\n" + payload)


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU; nothing in the file is ever executed.

    Raises:
        CheckpointError: the file is missing, truncated or altered.
    """
    path = Path(path)
    try:
        head, _, payload = path.read_bytes().partition(b"\n")
    except OSError as error:
        raise CheckpointError(f"Could not read {path}: {error.strerror or error}.") from error
    if not head.startswith(HEADER) or head[len(HEADER) :].decode("ascii", "replace") != _digest(payload):
        raise CheckpointError(
            f"{path} is truncated, altered or no sentei checkpoint: its checksum does not match. "
            "Delete it to start again."
        )
    try:
        state = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for one meaning
        raise CheckpointError(f"{path} cannot be read as tensors and plain values: {error}") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} holds a {type(state).__name__}, expected a dict.")
    return state


def _digest(payload: bytes) -> str:
    return hashlib.sha256(payload).hexdigest()


def save_weights(path: str | Path, model: nn.Module, metadata: dict[str, str] | None = None) -> None:
    """Save a model's parameters and buffers as safetensors with a checksum, atomically; shared tensors once a name."""
    write_tensors(path, model.state_dict(), metadata)


def digest(model: nn.Module) -> str:
    """Checksum of a model's weights, so that a run is never resumed on others."""
    sha = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        if isinstance(tensor, torch.Tensor):
            sha.update(name.encode())
            sha.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()[:16]
