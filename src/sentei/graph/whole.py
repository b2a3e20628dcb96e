"""Operations that PyTorch takes apart before a dispatch mode can see them, and that are to be seen as one.

A recurrent layer over a long sequence is thousands of small operations; as one operation it has one rule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import _VF

RECURRENT = ("lstm", "gru", "rnn_tanh", "rnn_relu")
CELLS = tuple(f"{name}_cell" for name in RECURRENT)
PACKED = ("_pack_padded_sequence", "_pad_packed_sequence")
WHOLE = (*RECURRENT, *CELLS, *PACKED)


@contextmanager
def kept_whole() -> Iterator[None]:
    """For the duration, the recurrent layers of torch.nn reach the active dispatch mode as one operation each."""
    try:
        for name in WHOLE:
            setattr(_VF, name, _below_autograd(getattr(torch._C._VariableFunctions, name)))
        yield
    finally:
        for name in WHOLE:
            vars(_VF).pop(name, None)


def _below_autograd(fn: Callable[..., Any]) -> Callable[..., Any]:
    """It is the autograd layer that takes them apart; no gradients are wanted here."""

    def run(*args: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return fn(*args)

    return run
