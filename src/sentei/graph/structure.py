"""What a plan is bound to: enough of the dense model to know it again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sentei.graph.bundles import completed


@dataclass(frozen=True)
class Structure:
    """What a plan is bound to: parameter shapes, groups, inputs and costs of the model it was made for. JSON-able."""

    params: Mapping[str, tuple[int, ...]]
    groups: Mapping[str, tuple[int, bool]]
    inputs: Any
    fingerprint: str
    places: Mapping[str, tuple[tuple[str, int, int], ...]] = field(default_factory=dict)
    """Per group that may shrink: the (parameter, dimension) that its units occupy, and how often each unit does."""
    macs: int | None = None
    outputs: tuple[tuple[int, ...], ...] | None = None
    """Shapes of what comes out on the traced inputs."""
    bundles: tuple[tuple[str, ...], ...] = ()
    """Groups that keep the same share."""
    forward: str | None = None
    """What the function is called that ran the traced part of the model; None: all of it was traced."""

    def to_json(self) -> dict[str, Any]:
        number = {name: i for i, name in enumerate(self.params)}
        plain = {
            "fingerprint": self.fingerprint,
            "inputs": self.inputs,
            "params": {k: list(v) for k, v in self.params.items()},
            "groups": {k: [w, frozen] for k, (w, frozen) in self.groups.items()},
            "places": {k: [[number[p], d, n] for p, d, n in v] for k, v in self.places.items()},
            "macs": self.macs,
            "outputs": None if self.outputs is None else [list(shape) for shape in self.outputs],
            "bundles": [list(names) for names in self.bundles],
        }
        return plain if self.forward is None else {**plain, "forward": self.forward}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Structure:
        """Read what `to_json` gave; what earlier versions left out is unknown."""
        names, outputs = list(data["params"]), data.get("outputs")
        return cls(
            {k: tuple(v) for k, v in data["params"].items()},
            {k: (int(w), bool(frozen)) for k, (w, frozen) in data["groups"].items()},
            data["inputs"],
            data["fingerprint"],
            {k: tuple((names[p], int(d), int(n)) for p, d, n in v) for k, v in data.get("places", {}).items()},
            data.get("macs"),
            None if outputs is None else tuple(tuple(shape) for shape in outputs),
            tuple(tuple(names) for names in data.get("bundles", ())),
            data.get("forward"),
        )

    def completed(self, keep: Mapping[str, Sequence[int] | np.ndarray]) -> dict[str, np.ndarray]:
        """The units that a cut with this plan keeps (see `ChannelGraph.bind`)."""
        units = {name: np.asarray(idx, np.int64) for name, idx in keep.items()}
        return completed(units, self.bundles, {name: width for name, (width, _) in self.groups.items()})

    def shapes(self, keep: Mapping[str, Sequence[int] | np.ndarray]) -> dict[str, tuple[int, ...]] | None:
        """Shapes of all parameters after a cut that keeps these units; None if the places are not known."""
        if not self.places:
            return None
        left = {name: list(shape) for name, shape in self.params.items()}
        keep = self.completed(keep)
        for group, places in self.places.items():
            width = self.groups[group][0]
            removed = width - len(keep.get(group, range(width)))
            for param, dim, times in places:
                left[param][dim] -= times * removed
        return {name: tuple(shape) for name, shape in left.items()}

    def difference(self, other: Structure) -> str | None:
        """The first difference to another structure, in words; None if they are the same."""
        difference = self.other_parameters(other.params) or _first_difference("group", self.groups, other.groups)
        if difference is None and self.fingerprint != other.fingerprint:
            return "the same shapes, but channels are wired differently"
        if difference is None and _sizes(self.inputs) == _sizes(other.inputs):
            return self._other_sizes(other)
        return difference

    def other_parameters(self, params: Mapping[str, tuple[int, ...]]) -> str | None:
        """The first difference to the parameter shapes of a model, in words."""
        return _first_difference("parameter", self.params, params)

    def _other_sizes(self, other: Structure) -> str | None:
        """A difference of what is computed on the same inputs, as far as sizes tell."""
        if None not in (self.outputs, other.outputs) and self.outputs != other.outputs:
            return f"the outputs are of shape {self.outputs} in the first and {other.outputs} in the second"
        if None not in (self.macs, other.macs) and self.macs != other.macs:
            return f"the same parameters take {self.macs:,} MACs in the first and {other.macs:,} in the second"
        return None


def _first_difference(what: str, mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> str | None:
    for name in mine:
        if name not in theirs:
            return f"{what} {name} {_show(mine[name])} exists only in the first"
        if mine[name] != theirs[name]:
            return f"{what} {name} is {_show(mine[name])} in the first and {_show(theirs[name])} in the second"
    for name in theirs:
        if name not in mine:
            return f"{what} {name} {_show(theirs[name])} exists only in the second"
    return None


def _sizes(inputs: Any) -> Any:
    """A description of inputs without dtypes."""
    if isinstance(inputs, Mapping):
        return {k: _sizes(v) for k, v in inputs.items() if k != "dtype"}
    return [_sizes(v) for v in inputs] if isinstance(inputs, (list, tuple)) else inputs


def _show(value: tuple[Any, ...]) -> str:
    if len(value) == 2 and isinstance(value[1], bool):
        return f"of width {value[0]}{' (frozen)' if value[1] else ''}"
    return "of shape " + "x".join(map(str, value)) if value else "(a scalar)"
