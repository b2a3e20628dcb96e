"""How long each tensor of a forward pass is needed: from the operation that makes it to the last one that reads it."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence

import numpy as np
from torch import Tensor

from sentei.graph.operation import Call
from sentei.graph.record import Life, Vector

END = 2**62
"""The number of the operation that reads the outputs."""


class Lives:
    """Follows the storages of a pass; views and what is written in place live in the same one."""

    def __init__(self, lives: list[Life]) -> None:
        self._lives = lives
        self._of: dict[int, Life] = {}
        self._weights: set[int] = set()

    def note(
        self, op: int, call: Call, sources: Container[int], sizes: Callable[[Tensor], tuple[Vector, ...]]
    ) -> None:
        """One operation has run. `sources` are the ids of parameters and buffers."""
        read: set[int] = set()
        for t in call.tensors():
            storage = _storage(t)
            if id(t) in sources:
                self._weights.add(storage)
            elif t.is_meta and storage not in self._weights:
                if storage not in self._of:
                    self._begin(storage, t, 0, sizes)
                self._of[storage].last = op
            read.add(storage)
        for t in call.outputs():
            if t.is_meta and _storage(t) not in read:
                self._begin(_storage(t), t, op, sizes)

    def _begin(self, storage: int, t: Tensor, op: int, sizes: Callable[[Tensor], tuple[Vector, ...]]) -> None:
        life = Life(sizes(t), t.element_size(), op, op)
        self._of[storage] = life
        self._lives.append(life)

    def reach_the_end(self, outputs: Iterable[Tensor]) -> None:
        """The outputs of the pass are read after it."""
        for t in outputs:
            if t.is_meta and (life := self._of.get(_storage(t))) is not None:
                life.last = END


def _storage(t: Tensor) -> int:
    return t.untyped_storage()._cdata


def live_at_once(lives: Sequence[Life]) -> np.ndarray:
    """Which tensors are alive together, bool [moments, n_lives]: moments that another one includes are left out."""
    first, last = (np.array([getattr(life, name) for life in lives], np.int64) for name in ("first", "last"))
    moments = np.unique(first)
    alive = (first <= moments[:, None]) & (last >= moments[:, None])
    if len(moments) < 2:
        return alive
    grows = (alive[:-1] <= alive[1:]).all(1)  # nothing has gone when the next one is made
    return alive[np.append(~grows, True)]
