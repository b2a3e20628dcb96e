"""How large the pruned model may be."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from fractions import Fraction

from sentei.errors import ConfigError
from sentei.graph import ChannelGraph


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Upper limits for the pruned model; all that are set must hold.

    >>> Budget(macs=0.5)                    # half the multiply-accumulates of the full model
    Budget(macs=0.5)
    >>> Budget(macs=20_000_000, params=0.3)
    Budget(macs=20000000, params=0.3)

    A float of at most 1 is a fraction of the full model, anything larger an absolute value. `macs` counts
    multiply-accumulates and `activation_bytes` the bytes written by conv and linear layers on the traced
    example inputs, `params` the elements of all parameters.

    Raises ConfigError if nothing is set or a value is not positive, ambiguous (the integer 1) or not a
    number.
    """

    macs: float | None = None
    params: float | None = None
    latency_ms: float | None = None
    activation_bytes: float | None = None

    def __post_init__(self) -> None:
        if self.latency_ms is not None:
            raise ConfigError(
                f"latency_ms={self.latency_ms!r}: this version cannot plan for a measured latency; "
                "set macs, params or activation_bytes instead"
            )
        if not self.limits:
            raise ConfigError("a budget needs at least one limit, for instance Budget(macs=0.5)")
        for name, value in self.limits.items():
            _validate(name, value)

    @property
    def limits(self) -> dict[str, float]:
        """The limits that are set, as given."""
        return {f.name: v for f in fields(self) if (v := getattr(self, f.name)) is not None}

    def resolve(self, graph: ChannelGraph) -> dict[str, int]:
        """The limits as absolute values for this model; fractions are rounded down."""
        full = graph.cost()
        return {name: _absolute(value, getattr(full, name)) for name, value in self.limits.items()}

    def __repr__(self) -> str:
        return f"Budget({', '.join(f'{name}={value!r}' for name, value in self.limits.items())})"


def refuse_other(budget: object) -> None:
    """ConfigError, with what to write, for what is no Budget."""
    if not isinstance(budget, Budget):
        written = f"sentei.Budget(macs={budget})" if isinstance(budget, (int, float)) else "sentei.Budget(macs=0.5)"
        raise ConfigError(f"budget is {budget!r}; expected a Budget, for instance {written}")


def _validate(name: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(f"{name}={value!r}: expected a number")
    if value <= 0:
        raise ConfigError(f"{name}={value!r}: a limit must be larger than 0")
    if isinstance(value, int) and value == 1:
        raise ConfigError(f"{name}=1 is ambiguous: write 1.0 for the whole model, or a fraction such as 0.5")
    if 1 < value < 2:
        raise ConfigError(f"{name}={value!r}: a fraction is at most 1.0, an absolute limit at least 2")


def _absolute(value: float, full: int) -> int:
    # Through the decimal text, so that 0.7 of 10 is 7 and not 6.
    return math.floor(Fraction(repr(float(value))) * full) if value <= 1 else math.floor(value)
