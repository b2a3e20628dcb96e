"""What is traced of a model: all of it, or the part that a forward of one's own runs."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from sentei.errors import TraceError

Forward = Callable[..., Any]
"""Called with a model and its inputs; runs a part of the model and returns the tensors that leave it."""


def part_of(model: nn.Module, forward: Forward | None) -> Callable[..., Any]:
    """What to call with the inputs: the model, or the part of it that `forward` runs."""
    return model if forward is None else functools.partial(forward, model)


class Part(nn.Module):
    """A part of a model as a model: what takes a module (an exporter, a runtime) can be given it.

    >>> Part(model, forward)(*inputs)  # forward(model, *inputs)  # doctest: +SKIP
    """

    def __init__(self, model: nn.Module, forward: Forward) -> None:
        super().__init__()
        self.model, self._forward = model, forward

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._forward(self.model, *args, **kwargs)


def check_forward(forward: Any) -> None:
    """TraceError if this cannot be called with a copy of a model and its inputs."""
    if forward is None:
        return
    if isinstance(forward, nn.Module) or not callable(forward):
        raise TraceError(
            f"forward is {_shown(forward)}; expected a function that is called with the model and its inputs, "
            "forward(model, *inputs), and returns the tensors that leave the part"
        )
    if inspect.ismethod(forward) and isinstance(forward.__self__, nn.Module):
        raise TraceError(
            f"forward is the method {name_of(forward)!r} of one network, but it has to run on copies of it: "
            f"give the function of the class, {type(forward.__self__).__name__}.{name_of(forward)}"
        )


def name_of(forward: Forward) -> str:
    """What a function is called, for messages and files."""
    while isinstance(forward, functools.partial):
        forward = forward.func
    return str(getattr(forward, "__name__", type(forward).__name__))


def whose(forward: Forward | None) -> str:
    """Which code ran, for messages."""
    return "the model's own forward" if forward is None else f"the given forward {name_of(forward)!r}"


def _shown(x: Any) -> str:
    return f"a module ({type(x).__name__})" if isinstance(x, nn.Module) else repr(x)[:60]
