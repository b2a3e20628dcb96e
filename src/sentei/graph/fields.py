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
from dataclasses import dataclass, replace
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
class Met:
    """A label vector that a module met, on its input (`in`), output (`out`) or in between (`own`).

    For `origin` see `Site.origin`.
    """

    role: str
    vector: np.ndarray
    origin: tuple[int, int]


@dataclass(frozen=True, eq=False)
class Field:
    """A plain number of a module: `path` leads to it inside the attribute."""

    module: str
    attr: str
    path: Path
    value: int | float
    read: bool
    scope: str
    """The module whose sizes it is compared with: the module itself, or the one that calls its methods."""
    meanings: tuple[Met, ...]
    """The label vectors that it means by its name, as the module saw them."""
    others: tuple[Met, ...] = ()
    """Further ones of the same size, for trials only."""

    @property
    def vectors(self) -> tuple[np.ndarray, ...]:
        return tuple(m.vector for m in self.meanings)

    @property
    def candidates(self) -> tuple[Met, ...]:
        return (*self.meanings, *self.others)

    @property
    def name(self) -> str:
        inside = "".join(f"[{key!r}]" for key in self.path)
        return f"{self.module}.{self.attr}{inside}" if self.module else self.attr + inside

    def site(self, met: Met) -> Site:
        return Site(self.module, self.attr, torch.from_numpy(met.vector), self.path, met.origin)


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
        for attr, value in settings_of(module).items():
            seen = (name, attr) in read or hasattr(type(module), attr)
            scope = _caller(name, sizes) if seen else name
            for path, number in numbers_in(value):
                meant, others = _equal(number, attr, _meant(value, path, attr, sizes) or sizes.get(scope, {}))
                if scope != name:
                    meant, others = [], [*meant, *others]
                if meant or others and seen:
                    out.append(Field(name, attr, path, number, seen, scope, tuple(meant), tuple(others)))
    return out


def _caller(name: str, sizes: Mapping[str, Sizes]) -> str:
    """The module, or the nearest one around it that met any labels: a module of which only methods are called."""
    while name and name not in sizes:
        name = name.rpartition(".")[0]
    return name


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
        plain = [m for m in f.meanings if _in_runs(m.vector)]
        if isinstance(f.value, int) and not f.read and len({row(m.vector).tobytes() for m in plain}) == 1:
            more.append(f.site(plain[0]))
        else:
            rest.append(f)
    return more, rest


def _in_runs(vector: np.ndarray) -> bool:
    """Whether equal labels are neighbours, which they are not where channels lie in several rows (batch x heads)."""
    starts = np.flatnonzero(np.diff(vector, prepend=vector[0] - 1))
    return len(np.unique(vector[starts])) == len(starts)


Sizes = Mapping[int, Mapping[bytes, Met]]


def _sizes(record: Trace) -> dict[str, dict[int, dict[bytes, Met]]]:
    """For each module the label vectors that it met, by length."""
    out: dict[str, dict[int, dict[bytes, Met]]] = defaultdict(lambda: defaultdict(dict))
    first = {(seen.module, seen.role, id(seen.layer)): i for i, seen in reversed([*enumerate(record.seen)])}
    for i in sorted(first.values()):
        seen = record.seen[i]
        for d in lab.varying(seen.layer):
            vector = lab.first_along(seen.layer, d).numpy()
            key = vector.tobytes()
            known = out[seen.module][len(vector)]
            if key not in known or known[key].role == "own":
                known[key] = Met(seen.role, vector, (i, d))
    return out


def renewed(sites: Iterable[Site], record: Trace) -> list[Site]:
    """The same sites with the labels of a new record of the same forward pass, less those that count no units there."""
    out = []
    for site in sites:
        i, d = site.origin or (-1, -1)
        if 0 <= i < len(record.seen) and d < record.seen[i].layer.ndim:
            layer = record.seen[i].layer
            if d not in lab.varying(layer) or layer.shape[d] != len(site.labels):
                continue
            site = replace(site, labels=lab.first_along(layer, d))
        out.append(site)
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
    return {n: {k: met for k, met in found.items() if met.role == "out"} for n, found in sizes[named].items()}


def _equal(number: int | float, attr: str, sizes: Sizes) -> tuple[list[Met], list[Met]]:
    """What a number may count: what its name says, or all; and the rest."""
    if isinstance(number, int):
        found = sizes.get(number, {}) if number > 1 else {}
    else:
        found = {k: met for n, part in sizes.items() if n >= 4 and _root(number, n) for k, met in part.items()}
    named = ROLE.match(attr)
    meant = [met for met in found.values() if named and met.role == named[1]]
    return (meant, [met for met in found.values() if met not in meant]) if meant else (list(found.values()), [])


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
