"""Weights on disk: safetensors with a checksum of the whole file in its header."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from sentei.atomic import write_atomic
from sentei.errors import CheckpointError

KEY, BLANK = "sha256", "0" * 64
"""The checksum is that of the file with zeros in its place."""


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write the file whole or not at all; each tensor has its own storage there.

    >>> write_tensors("w.safetensors", model.state_dict())  # doctest: +SKIP
    """
    own = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    payload = safetensors.torch.save(own, {**(metadata or {}), KEY: BLANK})
    digest = hashlib.sha256(payload).hexdigest()
    write_atomic(path, payload.replace(_entry(BLANK), _entry(digest), 1))


def read_tensors(path: str | Path, *, checked: bool) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata; nothing in the file is ever executed.

    >>> tensors, metadata = read_tensors("w.safetensors", checked=True)  # doctest: +SKIP

    A checksum that is there must match; with `checked` there must be one, as in every file that sentei wrote. Raises
    CheckpointError if the file is missing, truncated or altered.
    """
    path = Path(path)
    try:
        payload = path.read_bytes()
        tensors = safetensors.torch.load(payload)
        header = json.loads(payload[8 : 8 + int.from_bytes(payload[:8], "little")])
        metadata = dict(header.get("__metadata__", {}))
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    except (SafetensorError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise CheckpointError(f"{path} is damaged or no safetensors file: {error}") from error
    digest = metadata.pop(KEY, None)
    if digest is None and checked:
        raise CheckpointError(f"{path} was altered or not written by sentei: it has no checksum. Copy it again")
    if digest is not None and _digest(payload, digest) != digest:
        raise CheckpointError(f"{path} is truncated or altered: its checksum does not match. Copy it from its origin")
    return tensors, metadata


def _digest(payload: bytes, written: str) -> str:
    return hashlib.sha256(payload.replace(_entry(written), _entry(BLANK), 1)).hexdigest()


def _entry(digest: str) -> bytes:
    return f'"{KEY}":"{digest}"'.encode()
