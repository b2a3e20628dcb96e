"""Milliseconds as a budget: a table of measured layers, held against whole networks.

Two widths an axis suffice, on multiples of the step in which kernels compute: times are nearly linear in between. What
a layer alone does not show (fused activations, layouts, additions) is met by one calibration on whole networks.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, Self

import numpy as np
from torch import nn

from sentei.atomic import write_atomic
from sentei.bars import live_bar
from sentei.errors import BudgetError, CheckpointError, ConfigError
from sentei.graph import ChannelGraph
from sentei.graph.latency import axes, size
from sentei.graph.part import Part
from sentei.graph.record import Contraction, Kernel
from sentei.machine import machine
from sentei.plan import Budget, Constraints, rescaler, uniform
from sentei.plan.allocate import plan_from_widths
from sentei.schema import validated
from sentei.sealed import read_json, sealed_json
from sentei.speed.one_layer import Layer, layer_at
from sentei.speed.runtimes import Pass, runtime_of
from sentei.speed.timing import Timer, clock_for, clock_name
from sentei.surgery.cut import cut
from sentei.threads import with_threads

STEPS = (8, 16)
"""Steps in which kernels may compute: the lanes of a vector of 256 or 512 bits."""
ROUNDS = 10
SHARES = (0.5, 0.25)
"""Uniform plans on which a table is calibrated, as shares of the MACs."""
VERSION = 1


@dataclass(frozen=True)
class LatencyTable:
    """How long the layers of a network take at any widths, in one runtime on this machine.

    >>> table = sentei.LatencyTable.measure(graph, model, runtime="onnxruntime")
    >>> table.save("cpu.json")
    >>> graph = graph.with_latency(table)                   # graph.cost(plan).latency_ms, in every method
    >>> plan = sentei.uniform(graph, sentei.Budget(latency=0.5))

    Milliseconds are CPU time where one thread computes in the caller (`clock`), else wall time; those of a forward pass
    on the inputs that the graph was traced with.
    """

    runtime: str
    threads: int
    clock: str
    """Whose time was taken: "thread" or "wall"."""
    step: int
    """Kernels compute in steps of so many channels."""
    layers: tuple[tuple[str, str], ...]
    """Module and operation of each layer."""
    times: tuple[tuple[float, float, float, float], ...]
    """Of each layer c0 + c1 a + c2 b + c3 a b milliseconds, a and b being its sizes that may shrink."""
    scale: float
    per_byte: float
    constant: float
    calibrated: tuple[tuple[float, float], ...]
    """Measured and predicted milliseconds of the whole networks of the calibration; the first is the dense one."""
    inputs: str
    machine: Mapping[str, Any]
    versions: Mapping[str, str]

    @property
    def coefficients(self) -> np.ndarray:
        """The layers' times, float64 [n_layers, 4]."""
        return np.array(self.times, np.float64).reshape(-1, 4)

    @property
    def error(self) -> float:
        """The largest relative error on the networks of the calibration."""
        return max(abs(predicted / measured - 1) for measured, predicted in self.calibrated)

    @classmethod
    def measure(
        cls,
        graph: ChannelGraph,
        model: nn.Module,
        *,
        runtime: str = "onnxruntime",
        threads: int = 1,
        progress: bool = False,
    ) -> LatencyTable:
        """Measure every layer alone, at two widths an axis, and four whole networks.

        >>> table = sentei.LatencyTable.measure(graph, model, runtime="eager")
        >>> table.error                                     # on the networks that it was calibrated on
        0.021

        Takes seconds for the layers, and as long as four exports for the networks. Layers that cannot be run alone
        (recurrent, deformable) are assumed to take as long for each MAC as the others. The model is left as it is.
        Raises ExportError if the runtime is not installed or does not take the network.
        """
        if threads < 1:
            raise ConfigError(f"threads is {threads}; expected 1 or more")
        ready = runtime_of(runtime)
        versions = ready.versions()
        with with_threads(threads), live_bar(progress, counted=True) as bar:
            step = vector_step(runtime, threads)
            task = bar.add_task("latency", total=2 * ROUNDS + len(SHARES) + 2)
            done: Callable[[], None] = lambda: bar.advance(task)  # noqa: E731
            times, clock = _layers(graph, runtime, threads, step, done)
            blank = cls(
                runtime, threads, clock, step,
                tuple((c.where, c.operation) for c in graph.trace_record.contractions),
                tuple(tuple(row) for row in times.tolist()), 1.0, 0.0, 0.0, (), str(graph.inputs), machine(), versions,
            )  # fmt: skip
            return _calibrated(blank, graph, model, done)

    def check_fits(self, graph: ChannelGraph) -> None:
        """ConfigError if the table is of another network, or of other inputs."""
        layers = tuple((c.where, c.operation) for c in graph.trace_record.contractions)
        found = "other layers" if layers != self.layers else f"inputs of {self.inputs}"
        if layers != self.layers or str(graph.inputs) != self.inputs:
            raise ConfigError(
                f"this latency table was measured on another network ({found}; here inputs of {graph.inputs}): measure "
                "one for this network, LatencyTable.measure(graph, model)"
            )

    def save(self, path: str | Path) -> None:
        """Write it as JSON, with a checksum."""
        write_atomic(path, sealed_json(self.to_plain()))

    def to_plain(self) -> dict[str, Any]:
        """As plain values that JSON can hold."""
        return {"format": "sentei latency table", "version": VERSION, **json.loads(json.dumps(asdict(self)))}

    @classmethod
    def from_plain(cls, given: Mapping[str, Any], where: object = "the latency table") -> Self:
        """Back from `to_plain`; CheckpointError, naming the first fault, if it is none."""
        values = {k: v for k, v in given.items() if k not in ("format", "version", "sha256")}
        if given.get("format") != "sentei latency table" or given.get("version") != VERSION:
            raise CheckpointError(f"{where} is no latency table of version {VERSION}")
        return validated(cls, values, where)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read it back; CheckpointError if the file is missing, damaged or no latency table."""
        try:
            found = read_json(Path(path).read_bytes())
        except OSError as error:
            raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
        if found is None:
            raise CheckpointError(f"{path} is damaged or was changed afterwards: its checksum does not match")
        return cls.from_plain(found, path)


@dataclass(frozen=True)
class Timing:
    """Where a budget of milliseconds is measured.

    >>> sentei.prune(model, data, budget=sentei.Budget(latency=0.5), timing=sentei.Timing("openvino", threads=2))
    """

    runtime: str = "onnxruntime"
    """onnxruntime, openvino, eager or compile."""
    threads: int = 1
    """Threads of the runtime."""
    table: str | None = None
    """A latency table measured before (`LatencyTable.save`)."""

    def read(self, path: str | Path, graph: ChannelGraph, hint: str = "") -> LatencyTable:
        """A table from a file; ConfigError if it was measured elsewhere, or for another network."""
        table = LatencyTable.load(path)
        if (table.runtime, table.threads) != (self.runtime, self.threads):
            raise ConfigError(
                f"{path} was measured in {table.runtime} with {table.threads} threads; asked for is {self.runtime} "
                f"with {self.threads}{hint}"
            )
        table.check_fits(graph)
        return table

    def settings(self) -> dict[str, Any]:
        """What decides the result: the content of the table, wherever it lies.

        ExportError if the runtime is not installed.
        """
        runtime_of(self.runtime).versions()
        given = asdict(self)
        return given if self.table is None else {**given, "table": LatencyTable.load(self.table).to_plain()}


def points(full: int, step: int) -> tuple[int, ...]:
    """The widths at which an axis is measured: what is whole in steps, and about half of that.

    >>> points(64, 16), points(58, 8), points(6, 8), points(1, 8)
    ((32, 64), (32, 56), (3, 6), (1,))
    """
    if full < 2 * step:
        return tuple(sorted({max(1, full // 2), full}))
    high = full // step * step
    return max(step, -(-high // (2 * step)) * step), high


def vector_step(runtime: str, threads: int) -> int:
    """In which steps of channels this runtime computes here: 16 if eight more cost as much as sixteen more, else 8."""

    def convolution(outputs: int) -> Layer:
        kernel = Kernel((3, 3), (1, 1), (1, 1), (1, 1), 1, False, (28, 28))
        return Layer((1, 64, 28, 28), (outputs, 64, 3, 3), kernel)

    tried = {n: convolution(n).prepare(runtime, threads) for base in (32, 64, 96) for n in (base, base + 8, base + 16)}
    timer = Timer(tried, clock_for(tried[32], threads))
    for _ in range(ROUNDS):
        timer.round()
    eight, sixteen = (sum(timer.fast(n + more) - timer.fast(n) for n in (32, 64, 96)) for more in STEPS)
    return 16 if eight > 0.75 * sixteen else 8


def _layers(
    graph: ChannelGraph, runtime: str, threads: int, step: int, done: Callable[[], None]
) -> tuple[np.ndarray, str]:
    """Coefficients of each layer's milliseconds, [n_layers, 4], and the clock."""
    contractions = graph.trace_record.contractions
    places = [_places(c, step) for c in contractions]
    found = [[layer_at(c, at) for at in each] for c, each in zip(contractions, places, strict=True)]
    passes: dict[Layer, Pass] = {}
    for layer in (one for each in found for one in each):
        if layer is not None and layer not in passes:
            passes[layer] = layer.prepare(runtime, threads)
    nothing = Layer((1, 1), (1, 1), None)  # a call costs something by itself
    passes.setdefault(nothing, nothing.prepare(runtime, threads))
    clock = clock_for(max(passes.items(), key=lambda p: np.prod(p[0].input))[1], threads)
    timer = Timer(passes, clock)
    for _ in range(ROUNDS):
        timer.round()
        done()
    call = timer.fast(nothing)
    times = np.zeros((len(contractions), 4))
    for i, (each, at) in enumerate(zip(found, places, strict=True)):
        measured = [max(timer.fast(layer) - call, 1e-9) * 1e3 for layer in each if layer is not None]
        if len(measured) == len(at):
            times[i] = interpolated(at, measured)
    return _guessed(graph, times), clock_name(clock)


def _places(c: Contraction, step: int) -> list[tuple[int, ...]]:
    """The widths at which a layer is measured."""
    factors = [c.factors[i] for i in axes(c)]
    return list(product(*((f,) if isinstance(f, int) else points(len(f), step) for f in factors)))


def interpolated(at: Sequence[tuple[int, ...]], measured: Sequence[float]) -> np.ndarray:
    """c0, c1, c2, c3 >= 0 such that c0 + c1 a + c2 b + c3 a b comes nearest to what was measured, in shares of it.

    >>> interpolated([(8, 8), (8, 16), (16, 8), (16, 16)], [1.0, 2.0, 2.0, 4.0]).round(6).tolist()
    [0.0, 0.0, 0.0, 0.015625]
    """
    a, b = np.zeros(len(at)), np.zeros(len(at))
    for axis, column in zip(np.array(at, np.float64).reshape(len(at), -1).T, (a, b), strict=False):
        column[:] = axis
    basis = np.stack([np.ones(len(at)), a, b, a * b], 1)
    return _nearest_to_one(basis / np.array(measured)[:, None])


def _nearest_to_one(columns: np.ndarray) -> np.ndarray:
    """Factors >= 0 of the columns, none of them negative, whose sum comes nearest to 1 in every row."""
    from scipy.optimize import nnls  # takes a quarter of a second, and most commands need none

    largest = np.where(columns.max(0) > 0, columns.max(0), 1.0)
    found: np.ndarray = nnls(columns / largest, np.ones(len(columns)))[0] / largest
    return found


def _guessed(graph: ChannelGraph, times: np.ndarray) -> np.ndarray:
    """Layers that could not be run alone take as long for each MAC as the others, at the full widths."""
    macs = graph.costs_of.parts("macs", graph.widths())
    known = times.any(1)
    full = np.zeros(len(times))
    for i, c in enumerate(graph.trace_record.contractions):
        a, b = ([float(size(c.factors[j])) for j in axes(c)] + [0.0, 0.0])[:2]
        full[i] = times[i] @ [1, a, b, a * b]
    rate = full[known].sum() / max(macs[known].sum(), 1)
    out = times.copy()
    out[~known, 0] = rate * macs[~known]
    return out


# -- whole networks


def _calibrated(
    table: LatencyTable, graph: ChannelGraph, model: nn.Module, done: Callable[[], None]
) -> LatencyTable:
    """The table with the scale, the milliseconds a byte and the constant that fit whole networks."""
    widths = [graph.widths(), *_calibration(graph, table.step)]
    passes = {}
    for i, each in enumerate(widths):
        small = cut(model, graph, plan_from_widths(graph, each)) if i else model
        passes[i] = whole_pass(small, graph, table.runtime, table.threads)
        done()
    timer = Timer(passes, clock_for(passes[0], table.threads))
    for _ in range(ROUNDS):
        timer.round()
        done()
    measured = np.array([timer.fast(i) * 1e3 for i in passes])
    plain = graph.with_latency(table)
    columns = [[float(plain.costs(w).latency_ms), float(plain.costs(w).activation_bytes), 1.0] for w in widths]
    scale, per_byte, constant = _nearest_to_one(np.array(columns) / measured[:, None]).tolist()
    predicted = np.array(columns) @ [scale, per_byte, constant]
    pairs = tuple(zip(measured.tolist(), predicted.tolist(), strict=True))
    return replace(table, scale=scale, per_byte=per_byte, constant=constant, calibrated=pairs)


def _calibration(graph: ChannelGraph, step: int) -> list[np.ndarray]:
    """Widths of networks that differ in size, and in where they are wide."""
    found, constraints = [], Constraints(round_to=step)
    for share in SHARES:
        for least in (share, (1 + share) / 2):
            try:
                found.append(graph.widths(uniform(graph, Budget(macs=least), constraints=constraints)))
                break
            except BudgetError:
                continue
    try:
        onto = rescaler(graph, Budget(macs=0.5), constraints)
        found.append(onto(graph.widths() * np.linspace(1.0, 0.3, len(graph.groups))))
    except BudgetError:
        pass
    return found


def whole_pass(model: nn.Module, graph: ChannelGraph, runtime: str, threads: int) -> Pass:
    """A forward pass of a network on inputs as those of the graph, or of the part that was traced."""
    args, kwargs = graph.inputs.filled()
    example = args if args else kwargs
    part = model if graph.forward is None else Part(model, graph.forward)
    return runtime_of(runtime).prepare(part, example, threads=threads)
