"""A pruned network on disk: `model.safetensors` and `plan.json`. Nothing executable is ever read."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from sentei.atomic import write_atomic
from sentei.errors import CheckpointError, PlanError, TraceError
from sentei.graph import trace
from sentei.graph.inputs import Inputs
from sentei.graph.part import Forward, check_forward, name_of
from sentei.graph.resize import named_tensors
from sentei.plan import Plan
from sentei.plan.schema import DTYPES
from sentei.surgery.belongs import check_belongs, unwrapped
from sentei.surgery.cut import cut
from sentei.surgery.probe import Probe, Unprobed, differences, probe
from sentei.surgery.record import Record, decode, encode
from sentei.surgery.settings import first_change, settings

WEIGHTS, PLAN = "model.safetensors", "plan.json"


def save(
    small: nn.Module, plan: Plan, path: str | Path, *, source: str | None = None, forward: Forward | None = None
) -> None:
    """Write a pruned network to the folder `path`: weights as safetensors, the plan as JSON. No pickle.

    >>> sentei.save(small, plan, "runs/small")

    `plan` must come from `uniform`, `allocate`, `prune` or carry `graph.structure`: the file describes the dense
    model that it fits. `source` may name the dense model (`resnet56`, `torchvision:resnet50`). Wrappers (DataParallel,
    DistributedDataParallel, torch.compile, averaged weights) are taken off. A copy of the network answers one or two
    random inputs, which `load` compares; a warning tells if it cannot. Each file is written whole or not at all.
    `forward` is what `trace` was given, and nothing if it was given none: it gives the answers.

    >>> graph = sentei.trace(detector, images, forward=part)
    >>> sentei.save(small, plan, "runs/small", forward=part)

    Raises PlanError, before anything is written, if network and plan do not belong together, so that `load` could not
    rebuild the network from the dense model, or if only one of plan and call has a forward of its own; CheckpointError
    if the files cannot be written.
    """
    check_forward(forward)
    if not isinstance(small, nn.Module) or not isinstance(plan, Plan):
        raise PlanError(
            f"expected save(network, plan, path), got a {type(small).__name__}, a {type(plan).__name__} and {path!r}"
        )
    if plan.structure is None:
        raise PlanError("this plan is not bound to a model: build it as Plan(keep, graph.structure)")
    _check_same_part(plan, forward)
    small = unwrapped(small)
    tensors = _own_tensors(small)
    check_belongs(small, plan, _shapes(tensors))
    inputs = _as_taken(small, Inputs.from_spec(plan.structure.inputs))
    stored = _stored(small, tensors)
    payload = _packed(stored)
    asked = probe(small, inputs, plan.structure.macs, forward)
    hidden = {n: t.dtype for n, t in tensors.items() if n not in stored and t.is_floating_point()}
    record = encode({
        "source": source,
        "weights": {"file": WEIGHTS, "bytes": len(payload), "sha256": hashlib.sha256(payload).hexdigest()},
        "plan": plan.to_plain(),
        "dtypes": {n: str(t).removeprefix("torch.") for n, t in hidden.items()},
        "probe": asked.model_dump(),
        "layers": settings(small),
    })  # fmt: skip
    folder = Path(path)
    write_atomic(folder / WEIGHTS, payload)
    write_atomic(folder / PLAN, record)
    if isinstance(asked, Unprobed):
        warnings.warn(f"{folder} is saved, but {_unseen(asked)}", stacklevel=2)


def load(model: nn.Module, path: str | Path, *, forward: Forward | None = None) -> nn.Module:
    """The pruned network of the folder `path`, from a freshly built dense `model`: the cut is replayed.

    >>> small = sentei.load(resnet56(), "runs/small")

    The dense model's own weights do not matter; it is left untouched. The network comes back in the precision in which
    it was saved. `forward` is what `trace` and `save` were given:

    >>> small = sentei.load(detector(), "runs/small", forward=part)

    Raises CheckpointError if a file is missing, truncated or altered, if the model is not the one that was pruned (the
    first difference is named), if it was traced through a forward of its own and none is given, or if the network
    computes something else than the one that was saved.
    """
    check_forward(forward)
    folder, model = Path(path), unwrapped(model)
    record = _record(folder)
    plan = _plan(record, folder)
    _check_part(plan, folder, forward)
    payload = _payload(record, folder)
    assert plan.structure is not None
    _check_same(folder, plan.structure.other_parameters(_shapes(_own_tensors(model))))
    graph = trace(model, _as_taken(model, _inputs(plan, folder)), forward)
    _check_same(folder, plan.structure.difference(graph.structure), _hint(plan, forward))
    small = cut(model, graph, plan)
    _fill(small, payload, {n: DTYPES[d] for n, d in record.dtypes.items()})
    _compare(small, record, folder, forward)
    return small


def refuse_damaged(path: str | Path) -> None:
    """CheckpointError if the files of a saved network are not all there, as they were written."""
    record = _record(Path(path))
    _plan(record, Path(path))
    _payload(record, Path(path))


def load_plan(path: str | Path) -> Plan:
    """The plan of a saved network; CheckpointError if the file is missing or altered."""
    return _plan(_record(Path(path)), Path(path))


# -- reading


def _record(folder: Path) -> Record:
    return decode(_read(folder / PLAN), folder / PLAN)


def _plan(record: Record, folder: Path) -> Plan:
    try:
        return record.bound_plan()
    except PlanError as error:
        raise CheckpointError(f"{folder / PLAN}: {error}") from error


def _inputs(plan: Plan, folder: Path) -> Inputs:
    assert plan.structure is not None
    try:
        return Inputs.from_spec(plan.structure.inputs)
    except TraceError as error:
        raise CheckpointError(f"{folder / PLAN} is damaged: {error}") from error


def _payload(record: Record, folder: Path) -> dict[str, Tensor]:
    payload, expected = _read(folder / WEIGHTS), record.weights
    if len(payload) != expected.bytes or hashlib.sha256(payload).hexdigest() != expected.sha256:
        raise CheckpointError(
            f"{folder / WEIGHTS} is truncated or altered: it has {len(payload)} bytes and another checksum than "
            f"the {expected.bytes} bytes that plan.json describes. Copy the folder again from its origin"
        )
    try:
        return safetensors.torch.load(payload)
    except Exception as error:  # safetensors lets some of its parsers' own errors through
        raise CheckpointError(f"{folder / WEIGHTS} is not a safetensors file: {error}") from error


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"cannot read {file}: {error.strerror}. A pruned network is a folder with {WEIGHTS} and {PLAN}"
        ) from error


def _check_same(folder: Path, difference: str | None, hint: str = "") -> None:
    if difference:
        raise CheckpointError(
            f"{folder} was pruned from another model: {difference} (first: the file, second: your model). "
            f"Build the dense model with the same arguments as when it was pruned{hint}"
        )


def _check_same_part(plan: Plan, forward: Forward | None) -> None:
    """PlanError if a network is saved with another forward than it was traced with."""
    assert plan.structure is not None
    traced = plan.structure.forward
    if traced is not None and forward is None:
        raise PlanError(
            f"cannot save: this network was traced through a forward of its own, {traced!r}, which has to give the "
            "answers that `load` compares: pass save(..., forward=...)"
        )
    if traced is None and forward is not None:
        raise PlanError(
            f"cannot save with forward={name_of(forward)}: the plan is of a network that was traced by its own "
            "forward. Leave `forward` out, or trace with it"
        )


def _check_part(plan: Plan, folder: Path, forward: Forward | None) -> None:
    """CheckpointError if a file needs a forward and has been given none."""
    assert plan.structure is not None
    if plan.structure.forward is not None and forward is None:
        raise CheckpointError(
            f"{folder}: this network was traced through a forward of its own, {plan.structure.forward!r}; "
            "pass load(..., forward=...)"
        )


def _hint(plan: Plan, forward: Forward | None) -> str:
    """What else a difference may come from."""
    assert plan.structure is not None
    if forward is None:
        return ""
    if plan.structure.forward is None:
        return f". It was traced by its own forward: leave forward={name_of(forward)} out"
    return f", and pass the forward of then, {plan.structure.forward!r}; this one is {name_of(forward)!r}"


def _fill(model: nn.Module, tensors: Mapping[str, Tensor], dtypes: Mapping[str, torch.dtype]) -> None:
    """Give a network the tensors of a file, in their precision; `dtypes` are of buffers that are in no file."""
    every = _own_tensors(model)
    own = _stored(model, every)
    for name in [*own, *tensors]:
        a, b = own.get(name), tensors.get(name)
        if a is None or b is None or a.shape != b.shape or _kind(a) != _kind(b):
            shown = ["absent" if t is None else f"{str(t.dtype)[6:]} {tuple(t.shape)}" for t in (b, a)]
            raise CheckpointError(f"tensor {name} is {shown[0]} in the file and {shown[1]} in the cut model")
        a.data = torch.empty_like(a, dtype=b.dtype).copy_(b)
    for name, dtype in dtypes.items():
        if name in every and _kind(every[name]) == "floating" == _kind(torch.empty(0, dtype=dtype)):
            every[name].data = every[name].data.to(dtype)


def _kind(t: Tensor) -> str:
    return "floating" if t.is_floating_point() else "complex" if t.is_complex() else "integer"


def _compare(small: nn.Module, record: Record, folder: Path, forward: Forward | None) -> None:
    """Hold the answers of the loaded network against those of the saved one."""
    if not isinstance(record.probe, Probe):
        asked = record.probe or Unprobed(reason="an earlier version of sentei wrote it")
        warnings.warn(f"{folder} is loaded, but {_unseen(asked)}", stacklevel=3)
        return
    try:
        fault = differences(small, record.probe, forward)
    except Exception as error:  # the model's own code may raise anything
        raise CheckpointError(
            f"the network of {folder} does not run on the inputs that it answered when it was saved: "
            f"{type(error).__name__}: {error}. {_advice(small, record)}"
        ) from error
    if fault is not None:
        raise CheckpointError(
            f"your model computes something else than the one saved in {folder}: {fault}. {_advice(small, record)}"
        )


def _advice(small: nn.Module, record: Record) -> str:
    change = first_change(record.layers, settings(small))
    what = change or (
        "its parameters and layers are the same, but not the order of operations, a number in its code, or a buffer "
        "that is not saved"
    )
    return f"First difference: {what}. Build the dense model with the code and the arguments of then"


def _unseen(asked: Unprobed) -> str:
    return (
        f"what the network computes could not be noted: {asked.reason}. Shapes, wiring and MACs are still compared "
        "when it is loaded, but not its outputs"
    )


# -- tensors


def _own_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, each tied one once, by the names that they have without torch.compile."""
    return {name.replace("_orig_mod.", ""): t for name, t in named_tensors(model).items()}


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Of the parameters among them."""
    return {n: tuple(t.shape) for n, t in tensors.items() if isinstance(t, nn.Parameter)}


def _stored(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those that a state_dict holds."""
    stored: Mapping[str, Any] = model.state_dict()
    other = [k for k, v in stored.items() if not isinstance(v, Tensor)]
    if other:
        raise CheckpointError(f"the model keeps non-tensor state ({other[0]}); safetensors can hold tensors only")
    names = {name.replace("_orig_mod.", "") for name in stored}
    return {n: t for n, t in tensors.items() if n in names}


def _packed(tensors: Mapping[str, Tensor]) -> bytes:
    try:
        return safetensors.torch.save({n: t.detach().cpu().contiguous() for n, t in tensors.items()})
    except Exception as error:  # meta tensors, dtypes without a name, ...
        raise CheckpointError(f"the network's tensors cannot be saved: {type(error).__name__}: {error}") from error


def _as_taken(model: nn.Module, inputs: Inputs) -> Inputs:
    """The inputs in the precision of the model, where it has a single one."""
    dtypes = {p.dtype for p in model.parameters() if p.is_floating_point()}
    return inputs.to(*dtypes) if len(dtypes) == 1 else inputs
