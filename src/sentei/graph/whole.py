"""Operations that PyTorch takes apart before a dispatch mode can see them, and that are to be seen as one.

A recurrent layer over a long sequence is thousands of small operations; as one operation it has one rule.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import _VF

RECURRENT = ("lstm", "gru", "rnn_tanh", "rnn_relu")
CELLS = tuple(f"{name}_cell" for name in RECURRENT)
PACKED = ("_pack_padded_sequence", "_pad_packed_sequence")
WEIGHT_NORM = "_weight_norm"


@contextmanager
def kept_whole() -> Iterator[None]:
    """For the duration, recurrent layers and weight norms of torch.nn reach the active dispatch mode as one operation
    each."""
    places: list[tuple[Any, str]] = [(_VF, name) for name in (*RECURRENT, *CELLS, *PACKED)]
    places += [(torch, WEIGHT_NORM), (sys.modules["torch.nn.utils.weight_norm"], WEIGHT_NORM)]
    with ExitStack() as stack:
        for place, name in places:
            old = vars(place).get(name)
            stack.callback(vars(place).pop if old is None else vars(place).__setitem__, name, old)
            vars(place)[name] = _below_autograd(getattr(torch._C._VariableFunctions, name))
        yield


def _below_autograd(fn: Callable[..., Any]) -> Callable[..., Any]:
    """It is the autograd layer that takes them apart; no gradients are wanted here."""

    def run(*args: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return fn(*args)

    return run
