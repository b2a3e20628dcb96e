"""One aten operation as the rules see it, and the tables in which rules are registered."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from sentei.graph.tracer import LabelMode

Rule = Callable[["LabelMode", "Call"], None]
RULES: dict[str, Rule] = {}
MIXERS: dict[str, Callable[[LabelMode, Call], Any]] = {}
"""Operations that read or mix units, as the reference run computes them."""
COUNTED: set[str] = set()
"""Operations whose rule runs whether or not units reach them: for their MACs, or the size of what they make."""


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for aten operations by name, overloads included: `@rule("aten.relu")`."""

    def register(fn: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, fn))
        return fn

    return register


@functools.cache
def _parameters(func: Any) -> dict[str, tuple[int, Any]]:
    """Position and default of each argument of an operation."""
    return {a.name: (i, a.default_value) for i, a in enumerate(func._schema.arguments)}


class Call:
    """One operation: its arguments by schema name and, once it has run, its output."""

    __slots__ = ("args", "func", "kwargs", "name", "out")

    def __init__(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        self.func, self.args, self.kwargs = func, tuple(args), kwargs
        self.name = str(func.overloadpacket)
        self.out: Any = None

    def __getitem__(self, name: str) -> Any:
        i, default = _parameters(self.func)[name]
        return self.args[i] if i < len(self.args) else self.kwargs.get(name, default)

    def has(self, name: str) -> bool:
        return name in _parameters(self.func)

    def tensors(self) -> Iterator[Tensor]:
        for a in (*self.args, *self.kwargs.values()):
            if isinstance(a, Tensor):
                yield a
            elif isinstance(a, (list, tuple)):
                yield from (b for b in a if isinstance(b, Tensor))

    def outputs(self) -> list[Tensor]:
        return [o for o in (self.out if isinstance(self.out, (list, tuple)) else [self.out]) if isinstance(o, Tensor)]
