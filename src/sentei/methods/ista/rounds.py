"""The rounds of ISTA: what one has brought, where the first starts, how rho goes on, and what is going wrong."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

ALPHAS = (1.0, 0.1, 0.01, 0.001)
"""The paper's choices."""
STEADY = 0.1
"""alpha where rho may rise as far as it takes."""
BRISK = 0.1
"""Share of units that become zero in an epoch, above which rho has no need to rise."""


@dataclass(frozen=True)
class Round:
    """One round of sparse training, an epoch for instance, and the network at its end."""

    rho: float
    loss: float | None
    """Mean training loss of the round; None where nobody told it."""
    lasso: float
    """rho times the sum of lambda |gamma|."""
    zeros: dict[str, int]
    """Units whose scales are exactly zero, by group."""
    widths: dict[str, int]
    macs: int
    params: int
    value: float | None
    """The metric on validation data, of the network with fresh BatchNorm statistics."""
    steps: int
    reached: int | None
    """The step after which the live network met the budget; the rest of the round trains it on."""
    seconds: float

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Round:
        return cls(**{f.name: record[f.name] for f in fields(cls)})

    @property
    def sparsity(self) -> float:
        return sum(self.zeros.values()) / max(sum(self.widths.values()), 1)

    @property
    def ended(self) -> bool:
        return self.reached is not None

    def line(self, number: int, macs: int, told: Callable[[float], str]) -> str:
        value = "" if self.value is None else f", val {told(self.value)}"
        loss = "" if self.loss is None else f"  loss {self.loss:.3f}"
        bars = "".join("▁▂▃▄▅▆▇█"[round(7 * self.zeros[n] / w)] for n, w in self.widths.items())
        return (
            f"ista {number}: rho {self.rho:.2g}{loss}  Lasso {self.lasso:.3f}  "
            f"{self.sparsity:.1%} zero {bars}  {self.macs / max(macs, 1):.1%} of the MACs{value}"
        )

    def point(self, metric: str) -> dict[str, Any]:
        """What the summary keeps of it."""
        kept = ("rho", "loss", "lasso", "macs", "params", "steps", "reached", "seconds")
        named = {name: getattr(self, name) for name in kept}
        return {**named, f"val_{metric}": self.value, "sparsity": self.sparsity}


Fell = Callable[[Round], bool]
"""Whether a round has destroyed the network."""


def intact(now: Round) -> bool:
    """No round has, for all that is known."""
    return False


def starting_point(
    alpha: float | None, rho: float | None, gammas: np.ndarray, costs: np.ndarray, lr: float, steps: int
) -> tuple[float, float]:
    """alpha and the first rho.

    A rho that is given decides alpha (Ye et al. 2018, section 4.3): the mean |alpha gamma| is about
    100 mu lambda rho, a hundred steps to zero. A rho that will rise starts where an epoch of `steps` shrinks the mean
    |alpha gamma| by a tenth, if no gradient holds against it.
    """
    mean, pace = max(float(np.abs(gammas).mean()), 1e-12), lr * float(costs.mean())
    if rho is None:
        alpha = STEADY if alpha is None else alpha
        return alpha, alpha * mean / (10 * pace * max(steps, 1))
    if alpha is None:
        alpha = min(ALPHAS, key=lambda a: abs(math.log(a) - math.log(100 * pace * rho / mean)))
    return alpha, rho


def next_rho(first: float, growth: float, rounds: Sequence[Round], fell: Fell = intact) -> float:
    """rho of the next round: it rises, faster while the scales stand still. While many become zero, or after the loss
    has jumped, it stays. A round that destroyed the network is done over with less, and its rho stays out of reach."""
    if not rounds:
        return first
    fine = [r for r in rounds if not fell(r)]
    ceiling = min((r.rho for r in rounds if fell(r)), default=math.inf) / math.sqrt(growth)
    if not fine or fell(rounds[-1]):
        start = fine[-1].rho if fine else rounds[-1].rho / growth**2
        return min(math.sqrt(start * rounds[-1].rho), ceiling)
    return min(_raised(fine, growth), ceiling)


def _raised(rounds: Sequence[Round], growth: float) -> float:
    now, before = rounds[-1], rounds[-2] if len(rounds) > 1 else None
    gained = now.sparsity - (before.sparsity if before else 0.0)
    if gained >= BRISK or (before is not None and gained > 0.01 and _jumped(now.loss, before.loss)):
        return now.rho
    still = before is not None and gained < 0.01 and now.lasso / now.rho > 0.95 * before.lasso / before.rho
    return now.rho * growth ** (2 if still else 1)


def _jumped(now: float | None, before: float | None) -> bool:
    return now is not None and before is not None and now > 1.5 * before


def diagnose(rounds: Sequence[Round], fell: Fell = intact, guess: float | None = None) -> str | None:
    """What goes wrong and what to change (Ye et al. 2018, section 4.3), or None. `guess` is the loss of guessing."""
    now, first = rounds[-1], rounds[0]
    if now.sparsity > 0.95:
        return "Nearly everything becomes zero: lower rho or growth."
    if fell(now) and now.sparsity > first.sparsity + 0.1:
        return "More channels became zero than the network survives: lower rho or growth."
    if now.loss is not None and (not math.isfinite(now.loss) or (guess is not None and now.loss > 0.9 * guess)):
        return "The loss is as high as that of guessing: lower the learning rate (sparse_lr), or rho."
    patient = 3 if rounds[max(len(rounds) - 3, 0)].rho == now.rho else 8  # a rho that rises may start too low
    if len(rounds) >= patient and now.sparsity < 0.01 and now.lasso / now.rho < 0.8 * first.lasso / first.rho:
        return "The Lasso term falls but no scale reaches zero: use a smaller alpha (0.1, 0.01) and start again."
    return None
