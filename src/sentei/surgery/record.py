"""plan.json: what it holds, and how it is written and read. Whatever was altered in it is refused."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal

from pydantic import ValidationError

from sentei.errors import CheckpointError, PlanError
from sentei.plan import Plan
from sentei.plan.schema import Count, Dtype, Strict, first_fault
from sentei.surgery.probe import Probe, Unprobed

FORMAT, VERSION = "sentei.pruned", 2
OLDEST = 1
"""Version 1 had no probe, no layers and no dtypes."""


class Weights(Strict):
    file: Literal["model.safetensors"]
    bytes: Count
    sha256: str


class Record(Strict):
    format: Literal["sentei.pruned"]
    version: Count
    source: str | None
    weights: Weights
    plan: dict[str, Any]
    dtypes: dict[str, Dtype] = {}
    """Of floating buffers that the weights file does not hold."""
    probe: Probe | Unprobed | None = None
    layers: dict[str, str] = {}
    """How each layer was set up."""
    sha256: str

    def bound_plan(self) -> Plan:
        """The plan; PlanError if it is not one, or not bound to a model."""
        plan = Plan.from_json(json.dumps(self.plan))
        if plan.structure is None:
            raise PlanError("the plan is not bound to a model")
        return plan


def encode(fields: dict[str, Any]) -> bytes:
    """The file's content: JSON that ends in a checksum of all the rest."""
    record = {"format": FORMAT, "version": VERSION, **fields}
    return _text({**record, "sha256": _digest(record)})


def decode(content: bytes, file: object) -> Record:
    """The fields of a file; CheckpointError, which says what is wrong, if it is not whole and unaltered."""
    try:
        data = json.loads(content)
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise ValueError(f"expected the format {FORMAT!r}")
        again = _text(data)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is truncated or not written by sentei: {error}") from error
    version = data.get("version")
    if type(version) is not int or not OLDEST <= version <= VERSION:
        raise CheckpointError(f"{file} has version {version!r}, this sentei reads versions {OLDEST} to {VERSION}")
    # Git on Windows may have changed the ends of lines; nothing else may differ, spaces included.
    same = content.replace(b"\r\n", b"\n") == again
    if not same or data.get("sha256") != _digest({k: v for k, v in data.items() if k != "sha256"}):
        raise CheckpointError(f"{file} was altered: its checksum does not match. Copy it again from its origin")
    try:
        record = Record.model_validate_json(content)
        if version > OLDEST and record.probe is None:
            raise CheckpointError(f"{file} is damaged or not written by sentei: it has no probe")
        return record
    except ValidationError as error:
        raise CheckpointError(f"{file} is damaged or not written by sentei: {first_fault(error)}") from error


def _text(record: dict[str, Any]) -> bytes:
    return json.dumps(record, indent=1).encode()


def _digest(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
