"""Plain values that modules keep for themselves (split sizes, head counts, widths) and that a cut has to rewrite.

A module's numbers, also those in its lists, tuples and dicts, are compared with the sizes of what the module works on.
A number that the forward pass never reads (`num_features`, what a new classifier is built from) follows the one width
that it can mean. One that it reads follows only where a trial shows that the model cannot be cut otherwise (see
`sentei.graph.settle`). What still equals an old width after a cut is stale, and reported.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from sentei.graph import labels as lab
from sentei.graph.record import Read, Site, Trace
from sentei.graph.resize import is_layer
from sentei.graph.tracer import LabelMode

Path = tuple[Any, ...]
LONGEST = 256
"""Containers with more entries are data, not settings."""
OTHER = re.compile(
    "kernel|stride|pad|dilat|reduc|ratio|rate|depth|layers|blocks|repeat|factor|expan|resol|(img|image|patch|window|input|"
    "pool|grid|feat|shift)_?size"
)
"""Names of settings that are no width, whatever they equal: they follow only where a trial needs it."""
ROLE = re.compile("(in|out)_?(ch|plane|feat|dim|$)")
BASE = frozenset(vars(nn.Module()))


@dataclass(frozen=True, eq=False)
class Field:
    """A plain number of a module: `path` leads to it inside the attribute."""

    module: str
    attr: str
    path: Path
    value: int | float
    read: bool
    vectors: tuple[np.ndarray, ...]
    """The label vectors that it may count, as the module saw them."""

    @property
    def name(self) -> str:
        inside = "".join(f"[{key!r}]" for key in self.path)
        return f"{self.module}.{self.attr}{inside}" if self.module else self.attr + inside

    def site(self, vector: np.ndarray) -> Site:
        return Site(self.module, self.attr, torch.from_numpy(vector), self.path)


def numbers_in(value: Any, path: Path = ()) -> Iterator[tuple[Path, int | float]]:
    """The numbers in a plain value with the keys that lead to them."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        yield path, value
    elif isinstance(value, (list, tuple)) and len(value) <= LONGEST and len(path) < 4:
        for i, part in enumerate(value):
            yield from numbers_in(part, (*path, i))
    elif isinstance(value, dict) and len(value) <= LONGEST and len(path) < 4:
        for key, part in value.items():
            yield from numbers_in(part, (*path, key))


def with_number(value: Any, path: Path, new: int | float) -> Any:
    """A copy of a plain value in which the number at `path` is another."""
    if not path:
        return new
    parts = dict(value) if isinstance(value, dict) else list(value)
    parts[path[0]] = with_number(value[path[0]], path[1:], new)
    if isinstance(value, tuple):
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if isinstance(value, dict) and type(value) is not dict:
        return type(value)(parts)
    return parts


def settings_of(module: nn.Module) -> dict[str, Any]:
    """The attributes of a module that hold plain numbers, less those that a cut of the module itself sets."""
    if is_layer(module):
        return {}
    held = {k: v for k, v in vars(module).items() if k not in BASE and isinstance(v, (int, float, list, tuple, dict))}
    return {k: v for k, v in held.items() if any(True for _ in numbers_in(v))}


@contextmanager
def reads_noted(mode: LabelMode, model: nn.Module) -> Iterator[None]:
    """Note when the forward pass reads a plain attribute of a module of the model.

    The attributes are taken out of the modules, so that looking one up ends in nn.Module.__getattr__.
    """
    hidden: dict[int, dict[str, Any]] = {}
    names = {}
    for name, module in model.named_modules():
        held = {k: v for k, v in settings_of(module).items() if not hasattr(type(module), k)}
        if held:
            hidden[id(module)], names[id(module)] = held, name
            for attr in held:
                del module.__dict__[attr]
    lookup = nn.Module.__getattr__

    def noted(module: nn.Module, attr: str) -> Any:
        held = hidden.get(id(module))
        if held is None or attr not in held:
            return lookup(module, attr)
        mode.trace.reads.append(Read(names[id(module)], attr, mode.op))
        return held[attr]

    nn.Module.__getattr__ = noted  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.__getattr__ = lookup  # type: ignore[method-assign]
        for module in model.modules():
            for attr, value in hidden.get(id(module), {}).items():
                module.__dict__.setdefault(attr, value)


def fields(model: nn.Module, record: Trace) -> list[Field]:
    """The plain numbers of the model's modules that equal a size which their module met, or a root of one."""
    sizes = _sizes(record)
    read = {(r.module, r.attr) for r in record.reads}
    out = []
    for name, module in model.named_modules():
        own = sizes.get(name, {})
        for attr, value in settings_of(module).items():
            for path, number in numbers_in(value):
                met = _meant(value, path, attr, sizes) or own
                vectors = _equal(number, attr, met)
                if vectors:
                    seen = (name, attr) in read or hasattr(type(module), attr)
                    out.append(Field(name, attr, path, number, seen, tuple(vectors)))
    return out


def only_meaning(
    row: Callable[[np.ndarray], np.ndarray], found: Sequence[Field], sites: Sequence[Site]
) -> tuple[list[Site], list[Field]]:
    """Sites for the numbers that the forward pass never reads and that can mean one width only; and the other fields.

    `row` tells how a label vector's length depends on the widths: equal rows count the same.
    """
    taken = {(s.module, s.attr, s.path) for s in sites}
    more, rest = [], []
    for f in found:
        if (f.module, f.attr, f.path) in taken or OTHER.search(f.attr):
            continue
        if isinstance(f.value, int) and not f.read and len({row(v).tobytes() for v in f.vectors}) == 1:
            more.append(f.site(f.vectors[0]))
        else:
            rest.append(f)
    return more, rest


Sizes = Mapping[int, Mapping[bytes, tuple[str, np.ndarray]]]


def _sizes(record: Trace) -> dict[str, dict[int, dict[bytes, tuple[str, np.ndarray]]]]:
    """For each module the label vectors that it met, by length."""
    out: dict[str, dict[int, dict[bytes, tuple[str, np.ndarray]]]] = defaultdict(lambda: defaultdict(dict))
    for seen in {(s.module, s.role, id(s.layer)): s for s in record.seen}.values():
        for d in lab.varying(seen.layer):
            vector = lab.first_along(seen.layer, d).numpy()
            key = vector.tobytes()
            known = out[seen.module][len(vector)]
            if key not in known or known[key][0] == "own":
                known[key] = (seen.role, vector)
    return out


def _meant(value: Any, path: Path, attr: str, sizes: Mapping[str, Sizes]) -> Sizes | None:
    """Where a dict names a module of the model, its numbers speak of what leaves that module."""
    if not path or not isinstance(value, (list, tuple, dict)):
        return None
    holder = value
    for key in path[:-1]:
        holder = holder[key]
    if not isinstance(holder, dict):
        return None
    named = next((v for v in holder.values() if isinstance(v, str) and v in sizes), None)
    if named is None:
        return None
    return {n: {k: rv for k, rv in found.items() if rv[0] == "out"} for n, found in sizes[named].items()}


def _equal(number: int | float, attr: str, sizes: Sizes) -> list[np.ndarray]:
    if isinstance(number, int):
        found = sizes.get(number, {}) if number > 1 else {}
    else:
        found = {k: rv for n, part in sizes.items() if n >= 4 and _root(number, n) for k, rv in part.items()}
    named = ROLE.match(attr)
    preferred = [vector for role, vector in found.values() if named and role == named[1]]
    return preferred or [vector for _, vector in found.values()]


def _root(number: float, size: int) -> bool:
    return any(math.isclose(number, value, rel_tol=1e-9) for value in (size**0.5, size**-0.5, 1 / size, float(size)))


def site_values(model: nn.Module, sites: Iterable[Site], count: Mapping[int, int]) -> list[tuple[nn.Module, str, Any]]:
    """The attributes that the sites set, with the new numbers: `count[i]` belongs to the site at place i."""
    modules = dict(model.named_modules())
    new: dict[tuple[str, str], Any] = {}
    for i, site in enumerate(sites):
        if i in count:
            key = site.module, site.attr
            old = new.get(key, getattr(modules[site.module], site.attr))
            path = site.path or ((0,) if isinstance(old, tuple) else ())
            new[key] = with_number(old, path, count[i])
    return [(modules[module], attr, value) for (module, attr), value in new.items()]
