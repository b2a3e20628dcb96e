"""A pruned network on disk: `model.safetensors` and `plan.json`. Nothing executable is ever read."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from sentei.atomic import write_atomic
from sentei.errors import CheckpointError, PlanError
from sentei.graph import trace
from sentei.graph.inputs import Inputs
from sentei.graph.resize import named_tensors
from sentei.plan import Plan
from sentei.surgery.cut import cut

WEIGHTS, PLAN = "model.safetensors", "plan.json"
FORMAT, VERSION = "sentei.pruned", 1


def save(small: nn.Module, plan: Plan, path: str | Path, *, source: str | None = None) -> None:
    """Write a pruned network to the folder `path`: weights as safetensors, the plan as JSON. No pickle.

    >>> sentei.save(small, plan, "runs/small")

    `plan` must come from `uniform`, `allocate`, `prune` or carry `graph.structure`: the file describes the dense
    model that it fits. `source` may name the dense model (`resnet56`, `torchvision:resnet50`). Each file is written
    whole or not at all. Raises CheckpointError if it cannot be written.
    """
    if plan.structure is None:
        raise PlanError("this plan is not bound to a model: build it as Plan(keep, graph.structure)")
    tensors = _stored_tensors(small)
    payload = safetensors.torch.save({n: t.detach().cpu().contiguous() for n, t in tensors.items()})
    record = {
        "format": FORMAT,
        "version": VERSION,
        "source": source,
        "weights": {"file": WEIGHTS, "bytes": len(payload), "sha256": hashlib.sha256(payload).hexdigest()},
        "plan": json.loads(plan.to_json()),
    }
    record["sha256"] = _digest(record)
    folder = Path(path)
    write_atomic(folder / WEIGHTS, payload)
    write_atomic(folder / PLAN, json.dumps(record, indent=1).encode())


def load(model: nn.Module, path: str | Path) -> nn.Module:
    """The pruned network of the folder `path`, from a freshly built dense `model`: the cut is replayed.

    >>> small = sentei.load(resnet56(), "runs/small")

    The dense model's own weights do not matter; it is left untouched. Raises CheckpointError if a file is missing,
    truncated or altered, or if the model is not the one that was pruned (the first difference is named).
    """
    folder = Path(path)
    plan = load_plan(folder)
    payload = _read(folder / WEIGHTS)
    expected = _record(folder)["weights"]
    if len(payload) != expected["bytes"] or hashlib.sha256(payload).hexdigest() != expected["sha256"]:
        raise CheckpointError(
            f"{folder / WEIGHTS} is truncated or altered: it has {len(payload)} bytes and another checksum than "
            f"the {expected['bytes']} bytes that plan.json describes. Copy the folder again from its origin"
        )
    assert plan.structure is not None
    graph = trace(model, Inputs.from_spec(plan.structure.inputs))
    difference = plan.structure.difference(graph.structure)
    if difference:
        raise CheckpointError(
            f"{folder} was pruned from another model: {difference} (first: the file, second: your model). "
            "Build the dense model with the same arguments as when it was pruned"
        )
    small = cut(model, graph, plan)
    try:
        _fill(small, safetensors.torch.load(payload))
    except SafetensorError as error:
        raise CheckpointError(f"{folder / WEIGHTS} is not a safetensors file: {error}") from error
    return small


def load_plan(path: str | Path) -> Plan:
    """The plan of a saved network; CheckpointError if the file is missing or altered."""
    try:
        return Plan.from_json(json.dumps(_record(Path(path))["plan"]))
    except PlanError as error:
        raise CheckpointError(f"{Path(path) / PLAN}: {error}") from error


def _record(folder: Path) -> dict[str, Any]:
    file = folder / PLAN
    try:
        record = json.loads(_read(file))
        fits = record["format"] == FORMAT and record["sha256"] == _digest(record)
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file} is truncated or not written by sentei: {error}") from error
    if record["version"] != VERSION:
        raise CheckpointError(f"{file} has version {record['version']}, this sentei reads version {VERSION}")
    if not fits:
        raise CheckpointError(f"{file} was altered: its checksum does not match. Copy it again from its origin")
    return dict(record)


def _digest(record: dict[str, Any]) -> str:
    body = {k: v for k, v in record.items() if k != "sha256"}
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"cannot read {file}: {error.strerror}. A pruned network is a folder with {WEIGHTS} and {PLAN}"
        ) from error


def _stored_tensors(model: nn.Module) -> dict[str, Tensor]:
    """What a state_dict holds, each tied tensor once."""
    stored = model.state_dict()
    other = [k for k, v in stored.items() if not isinstance(v, Tensor)]
    if other:
        raise CheckpointError(f"the model keeps non-tensor state ({other[0]}); safetensors can hold tensors only")
    return {n: t for n, t in named_tensors(model).items() if n in stored}


def _fill(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    own = _stored_tensors(model)
    for name in [*own, *tensors]:
        a, b = own.get(name), tensors.get(name)
        if a is None or b is None or a.shape != b.shape:
            show = ["absent" if t is None else str(tuple(t.shape)) for t in (b, a)]
            raise CheckpointError(f"tensor {name} is {show[0]} in the file and {show[1]} in the cut model")
        with torch.no_grad():
            a.data = b.to(a.device) if a.dtype != b.dtype else a.data.copy_(b)
