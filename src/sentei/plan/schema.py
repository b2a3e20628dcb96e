"""What the JSON of a plan holds, checked in one place before anything is made of it."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from sentei.errors import PlanError

FORMAT = "sentei.plan"
VERSION = 1

Count = Annotated[int, Field(ge=0, lt=2**63)]
DTYPES = {str(t).removeprefix("torch."): t for t in vars(torch).values() if isinstance(t, torch.dtype)}


def _dtype(name: object) -> str:
    if not isinstance(name, str) or name not in DTYPES:
        raise ValueError(f"{name!r} is no dtype")
    return name


Dtype = Annotated[str, AfterValidator(_dtype)]


class Strict(BaseModel):
    """Exactly these fields, of exactly these types."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


def _described(spec: Any) -> Any:
    """Whether this is what `Inputs.spec` says of an example input; ValueError if not."""
    fields = set(spec) if isinstance(spec, dict) else set()
    if fields == {"tensor", "dtype"}:
        sizes = spec["tensor"]
        if not isinstance(sizes, list) or not all(type(n) is int and 0 <= n < 2**40 for n in sizes):
            raise ValueError(f"a tensor of sizes {sizes!r}")
        _dtype(spec["dtype"])
    elif fields == {"dict"} and isinstance(spec["dict"], dict):
        for value in spec["dict"].values():
            _described(value)
    elif (fields == {"list"} or fields == {"tuple"}) and isinstance(next(iter(spec.values())), list):
        for value in next(iter(spec.values())):
            _described(value)
    elif fields != {"opaque"} and not (fields == {"value"} and not isinstance(spec["value"], dict | list)):
        raise ValueError(f"no description of an input: {str(spec)[:60]}")
    return spec


def _called(inputs: Any) -> Any:
    """Whether this describes positional and keyword arguments."""
    if inputs is not None:
        _described({"list": inputs})
        if len(inputs) != 2 or set(inputs[0]) != {"list"} or set(inputs[1]) != {"dict"}:
            raise ValueError("expected a list of positional arguments and a dict of keyword arguments")
    return inputs


InputSpec = Annotated[Any, AfterValidator(_called)]


class StructureRecord(Strict):
    fingerprint: str
    inputs: InputSpec
    params: dict[str, list[Count]]
    groups: dict[str, tuple[Count, bool]]
    places: dict[str, list[tuple[Count, Count, Count]]] = {}
    macs: Count | None = None
    outputs: list[list[Count]] | None = None
    bundles: list[list[str]] = []
    forward: str | None = None

    @model_validator(mode="after")
    def _consistent(self) -> StructureRecord:
        ranks = [len(shape) for shape in self.params.values()]
        for name, places in self.places.items():
            if name not in self.groups:
                raise ValueError(f"places of {name!r}, which is no group")
            if any(param >= len(ranks) or dim >= ranks[param] for param, dim, _ in places):
                raise ValueError(f"a place of group {name!r} is in no parameter")
        return self


class PlanRecord(Strict):
    format: Literal["sentei.plan"]
    version: Literal[1]
    note: str
    structure: StructureRecord | None
    keep: dict[str, list[Count]]

    @model_validator(mode="after")
    def _within(self) -> PlanRecord:
        for name, units in self.keep.items() if self.structure else ():
            width = self.structure.groups.get(name, (0, True))[0] if self.structure else 0
            if max(units, default=0) >= width:
                raise ValueError(f"group {name!r} has {width} units and cannot keep unit {max(units, default=0)}")
        return self


def parsed(text: str | bytes) -> dict[str, Any]:
    """The fields of a plan as plain values; PlanError if they are not those of a plan."""
    try:
        data = json.loads(text)
        if isinstance(data, dict) and data.get("format") == FORMAT and data.get("version") != VERSION:
            raise PlanError(f"this sentei reads plans of version {VERSION}, got version {data.get('version')!r}")
        PlanRecord.model_validate_json(json.dumps(data))
    except ValidationError as error:
        raise PlanError(f"this is not a plan written by sentei: {first_fault(error)}") from error
    except (ValueError, RecursionError) as error:
        raise PlanError(f"this is not a plan written by sentei: {type(error).__name__}: {error}") from error
    return dict(data)


def first_fault(error: ValidationError) -> str:
    """Where a value is not what it should be, and why, in one line."""
    first = error.errors(include_url=False)[0]
    shown = repr(first["input"])
    return (
        f"{'.'.join(map(str, first['loc'])) or 'the whole'} is {shown if len(shown) <= 60 else shown[:57] + '...'}: "
        f"{first['msg']}"
    )
