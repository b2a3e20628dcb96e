"""Batches of (input, target) and a plain loss function, which is all that many training loops have."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from sentei.tasks.task import Figures, Task, called, pair_of


@dataclass(frozen=True)
class Pairs(Task):
    """A loss of (output, target), on batches (input, target). The lowest loss decides.

    >>> Pairs(torch.nn.functional.mse_loss)
    """

    function: Callable[[Any, Any], Tensor]

    metric = "loss"
    lower_is_better = True

    def inputs(self, batch: Any) -> Any:
        return batch if isinstance(batch, Tensor) else pair_of(self, batch)[0]

    def loss(self, output: Any, batch: Any) -> Tensor:
        return self.function(output, batch[1])

    def measure(self, model: nn.Module, batches: Iterable[Any]) -> Figures:
        """The mean over samples of a loss that is a mean itself."""
        total, count = 0.0, 0
        for batch in batches:
            size = self.count(batch)
            total += size * float(self.loss(called(model, self.inputs(batch)), batch))
            count += size
        return {"loss": total / max(count, 1)}
