"""Which units of each group stay."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from sentei.errors import PlanError
from sentei.graph import ChannelGraph, Structure
from sentei.plan.schema import FORMAT, VERSION, parsed


@dataclass(frozen=True, eq=False)
class Plan:
    """The units that stay in each group; a group that is not named is kept whole.

    >>> Plan({"conv1": [0, 2, 3]}).keep["conv1"]
    array([0, 2, 3])

    `keep` maps group names to the indices of the units that stay. They are stored as sorted int64 arrays that
    cannot be written to. `structure` binds the plan to the model it was made for (a plan without one fits
    every model that has the groups), `note` is what the reader of the plan should know, such as a budget that
    was only nearly used. Two plans are equal if they keep the same units of the same groups of the same
    model.

    Raises PlanError for empty groups, negative or repeated indices, and anything that is not a list of
    integers.
    """

    keep: Mapping[str, np.ndarray]
    structure: Structure | None = None
    note: str = field(default="", kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "keep", {name: _indices(name, units) for name, units in self.keep.items()})

    @classmethod
    def full(cls, graph: ChannelGraph) -> Plan:
        """The plan that removes nothing, with every unfrozen group named."""
        return cls({g.name: np.arange(g.width) for g in graph.groups if not g.frozen}, graph.structure)

    def widths(self, graph: ChannelGraph) -> np.ndarray:
        """Units kept in each group, int64 [n_groups] in the order of `graph.groups`."""
        return graph.widths(self)

    def check_fits(self, graph: ChannelGraph) -> None:
        """Raise PlanError, naming the first difference, if the plan was not made for this model."""
        difference = self.structure.difference(graph.structure) if self.structure else None
        if difference:
            raise PlanError(
                f"this plan was made for another model: {difference} (first: the plan, second: the model). "
                "Build the model with the arguments it was pruned with."
            )
        graph.bind(self.keep)

    def to_plain(self) -> dict[str, Any]:
        """The plan as plain values that JSON can hold."""
        structure = None if self.structure is None else self.structure.to_json()
        keep = {name: units.tolist() for name, units in self.keep.items()}
        return {"format": FORMAT, "version": VERSION, "note": self.note, "structure": structure, "keep": keep}

    def to_json(self) -> str:
        """The plan as JSON text, one line a group; `from_json` reads it back."""
        head = self.to_plain()
        groups = ",\n".join(f"    {json.dumps(name)}: {json.dumps(k)}" for name, k in head.pop("keep").items())
        lines = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
        return "{\n" + ",\n".join([*lines, '  "keep": {\n' + groups + "\n  }"]) + "\n}\n"

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Read a plan back from `to_json`; PlanError, naming the first fault, if the text is not one."""
        data = parsed(text)
        structure = None if data["structure"] is None else Structure.from_json(data["structure"])
        return cls(data["keep"], structure, note=data["note"])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Plan):
            return NotImplemented
        return (
            self._bound_to() == other._bound_to()
            and self.keep.keys() == other.keep.keys()
            and all(np.array_equal(units, other.keep[name]) for name, units in self.keep.items())
        )

    def __hash__(self) -> int:
        return hash((self._bound_to(), frozenset((name, units.tobytes()) for name, units in self.keep.items())))

    def __repr__(self) -> str:
        note = f", note={self.note!r}" if self.note else ""
        return f"Plan({len(self.keep)} groups, {sum(map(len, self.keep.values()))} units kept{note})"

    def _bound_to(self) -> str | None:
        return None if self.structure is None else self.structure.fingerprint


def _indices(name: str, units: ArrayLike) -> np.ndarray:
    given = np.asarray(units)
    if given.ndim != 1 or given.dtype.kind not in "iu" or given.size == 0:
        raise PlanError(
            f"group {name!r} needs a non-empty list of the unit indices to keep, got "
            f"{given.dtype} of shape {given.shape}; at least one unit must stay"
        )
    keep = np.sort(given.astype(np.int64))
    if keep[0] < 0:
        raise PlanError(f"group {name!r}: unit indices start at 0, got {keep[0]}")
    repeated = keep[1:][keep[1:] == keep[:-1]]
    if repeated.size:
        raise PlanError(f"group {name!r}: unit {repeated[0]} is listed more than once")
    keep.setflags(write=False)
    return keep
