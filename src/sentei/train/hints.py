"""Features that a network is to share with its teacher, beside the outputs.

Romero et al., "FitNets: Hints for Thin Deep Nets" (ICLR 2015, arXiv 1412.6550), without their regressors: of a network
that was cut it is known which of the teacher's channels it still has.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TINY = 1e-8


@dataclass(frozen=True, eq=False)
class Hint:
    """The output of a module, to be that of the teacher's module of the same name."""

    module: str
    dim: int = 1
    """Where its channels are."""
    kept: Tensor | None = None
    """The teacher's channels that the network has, int64, in order; all of them unless given."""
    variance: float = 1.0
    """Of the teacher's features: with it a distance of 0 is equal, and one of 1 no better than their mean."""

    def wanted(self, features: Tensor) -> Tensor:
        """What the network should have there, of the teacher's features."""
        return features if self.kept is None else features.index_select(self.dim, self.kept.to(features.device))

    def distance(self, found: Tensor, features: Tensor) -> Tensor:
        """Mean squared error over the variance."""
        precise = torch.promote_types(found.dtype, torch.float32)
        return F.mse_loss(found.to(precise), self.wanted(features).to(precise)) / max(self.variance, TINY)


@dataclass(frozen=True, eq=False)
class Hints:
    """Several of them, as a term of a loss.

    >>> hints = Hints([Hint("layer1"), Hint("layer2", kept=torch.tensor([0, 2, 5]))])
    >>> with hints.of(model) as found, hints.of(teacher) as wanted:
    ...     model(x), teacher(x)
    >>> hints.distance(found, wanted)
    """

    places: Sequence[Hint]

    @contextmanager
    def of(self, model: nn.Module) -> Iterator[dict[str, Tensor]]:
        """The features that the model's passes leave at these places."""
        found: dict[str, Tensor] = {}

        def keep(name: str, out: Tensor) -> None:
            found[name] = out

        hooks = [
            model.get_submodule(h.module).register_forward_hook(lambda _, __, out, name=h.module: keep(name, out))
            for h in self.places
        ]
        try:
            yield found
        finally:
            for hook in hooks:
                hook.remove()

    def distance(self, found: dict[str, Tensor], wanted: dict[str, Tensor]) -> Tensor:
        """The mean of the distances at all places."""
        return torch.stack([h.distance(found[h.module], wanted[h.module]) for h in self.places]).mean()
