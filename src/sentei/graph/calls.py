"""The tables in which rules are registered, by the name of the aten operation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sentei.graph.operation import Call
from sentei.graph.tracer import LabelMode

Rule = Callable[[LabelMode, Call], None]
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
