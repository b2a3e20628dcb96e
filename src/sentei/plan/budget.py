"""How large the pruned model may be."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
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
    >>> Budget(latency=0.5), Budget(latency_ms=5)       # half the time, or five milliseconds
    (Budget(latency=0.5), Budget(latency_ms=5))

    A float of at most 1 is a fraction of the full model, anything larger an absolute value. `macs` counts
    multiply-accumulates and `activation_bytes` the bytes written by conv and linear layers on the traced
    example inputs, `params` the elements of all parameters, `memory` the most bytes of activations that are alive
    at once. `latency` is always a fraction and `latency_ms` always milliseconds, of a forward pass on the example
    inputs; they need a graph with measured times (`ChannelGraph.with_latency`), which `sentei.prune` makes itself.

    Raises ConfigError if nothing is set or a value is not positive, ambiguous (the integer 1) or not a
    number.
    """

    macs: float | None = None
    params: float | None = None
    latency: float | None = None
    latency_ms: float | None = None
    activation_bytes: float | None = None
    memory: float | None = None

    def __post_init__(self) -> None:
        if not self.limits:
            raise ConfigError("a budget needs at least one limit, for instance Budget(macs=0.5)")
        for name, value in self.limits.items():
            _validate(name, value)

    @property
    def timed(self) -> bool:
        """Whether it limits milliseconds."""
        return self.latency is not None or self.latency_ms is not None

    def in_milliseconds(self, limit: float) -> Budget:
        """The same limits, with this one for the time."""
        return replace(self, latency=None, latency_ms=limit)

    @property
    def limits(self) -> dict[str, float]:
        """The limits that are set, as given."""
        return {f.name: v for f in fields(self) if (v := getattr(self, f.name)) is not None}

    def resolve(self, graph: ChannelGraph) -> dict[str, float]:
        """The limits as absolute values for this model, by the name of the cost; fractions of counts are rounded down.

        ConfigError where it limits milliseconds and the graph has no measured times.
        """
        if self.timed and not graph.timed:
            raise ConfigError(
                f"{self!r} limits the time, and this graph has no measured times: "
                "graph.with_latency(LatencyTable.measure(graph, model)) adds them"
            )
        full = graph.cost()
        counts = {name: value for name, value in self.limits.items() if not name.startswith("latency")}
        limits: dict[str, float] = {name: _absolute(value, getattr(full, name)) for name, value in counts.items()}
        times = [self.latency_ms] if self.latency_ms is not None else []
        if self.latency is not None:
            times.append(self.latency * (full.latency_ms or 0.0))
        return {**limits, "latency_ms": min(times)} if times else limits

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
    if name == "latency_ms":
        return
    if name == "latency":
        if value > 1:
            raise ConfigError(f"latency={value!r} is a share of the full model's time: at most 1.0. For milliseconds "
                              f"write latency_ms={value!r}")  # fmt: skip
        return
    if isinstance(value, int) and value == 1:
        raise ConfigError(f"{name}=1 is ambiguous: write 1.0 for the whole model, or a fraction such as 0.5")
    if 1 < value < 2:
        raise ConfigError(f"{name}={value!r}: a fraction is at most 1.0, an absolute limit at least 2")


def _absolute(value: float, full: int) -> int:
    # Through the decimal text, so that 0.7 of 10 is 7 and not 6.
    return math.floor(Fraction(repr(float(value))) * full) if value <= 1 else math.floor(value)
