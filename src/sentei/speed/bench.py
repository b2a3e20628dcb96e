"""How fast networks run, measured side by side."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from sentei.bars import live_bar
from sentei.errors import ConfigError, ExportError
from sentei.graph.copying import rebuilt
from sentei.graph.inputs import Inputs
from sentei.graph.outputs import output_tensors
from sentei.graph.part import Forward, Part, check_forward
from sentei.machine import machine
from sentei.speed.layers import LayerTimes, fastest, layer_times, profiled
from sentei.speed.runtimes import Pass, Placed, default_runtime, runtime_of
from sentei.speed.survey import Survey, survey
from sentei.speed.timing import Clock, Interval, Timer, clock_for, clock_name, measure
from sentei.threads import with_threads

Seconds = Mapping[str, np.ndarray]
"""Of each layer, one for each pass."""
PROFILED = 0.2
"""Time for the profile of the layers, as a share of that for measuring."""


@dataclass(frozen=True)
class Measured:
    """One network: milliseconds of a pass over the batch, multiply-accumulates of one sample, parameters, and the
    bytes of weights and of the activations that are alive at the worst moment (see `Survey`)."""

    name: str
    ms: Interval
    macs: int
    params: int
    memory_bytes: int


@dataclass(frozen=True)
class Comparison:
    """A network against the first one. `rest_ms` is the time that the first and this one spend outside of their layers
    (additions, pooling, changes of layout); None, and no `layers`, where the runtime does not tell."""

    name: str
    speedup: Interval
    macs_kept: float
    layers: tuple[LayerTimes, ...]
    rest_ms: tuple[float, float] | None

    @property
    def efficiency(self) -> float:
        """Speed-up times share of MACs kept: 1 if time had fallen as the MACs did."""
        return self.speedup.value * self.macs_kept


@dataclass(frozen=True)
class Bench:
    """What `bench` measured, and how. `comparisons` are those of all networks but the first with the first.

    `sure` tells whether every interval of a ratio (of the time, for a single network) got under 2 % of its value.
    """

    runtime: str
    threads: int
    batch: int
    device: str
    clock: str
    inputs: Any
    machine: Mapping[str, Any]
    versions: Mapping[str, str]
    rounds: int
    sure: bool
    networks: tuple[Measured, ...]
    comparisons: tuple[Comparison, ...]


def bench(
    networks: Mapping[str, nn.Module],
    example: Any,
    *,
    runtime: str | None = None,
    threads: int = 1,
    batch: int | None = None,
    device: str = "cpu",
    seconds: float = 30.0,
    forward: Forward | None = None,
    progress: bool = False,
) -> Bench:
    """Measure networks side by side, all of them in every round, in an order that is shuffled anew.

    >>> found = bench({"dense": model, "small": small}, torch.zeros(1, 3, 224, 224))  # doctest: +SKIP
    >>> found.comparisons[0].speedup  # doctest: +SKIP
    Interval(value=1.87, low=1.86, high=1.88)

    Times are medians of the fast half of the rounds, with 95 % intervals of the bootstrap; CPU time of the calling
    thread where it computes alone, else wall time (`clock`).

    Args:
        networks: by name; the others are compared with the first. They stay as they are: copies run, in evaluation
            mode.
        example: tensor, tuple (by position) or dict (by keyword), as for `trace`. Only shapes and types count: all
            networks are measured on the same normal random numbers.
        runtime: onnxruntime, openvino, eager or compile; ONNX Runtime if it is installed, else eager, unless given.
        batch: the first dimension of every input; that of the example unless given.
        device: cpu, cuda, cuda:1, ...
        seconds: measuring ends when the interval of each ratio is under 2 % of it, or after about so long.
        forward: the part of the networks to measure, as `trace` takes it.
        progress: show a live bar.

    Raises ConfigError for settings out of range, ExportError where the runtime is missing or refuses a network.
    """
    _check(networks, threads, seconds, device)
    check_forward(forward)
    chosen = runtime if runtime is not None else default_runtime()
    where = runtime_of(chosen)
    versions = {"torch": str(torch.__version__), **where.versions()}
    inputs, size = batched(Inputs.of(example), batch)
    example = _example(inputs)
    with with_threads(threads):
        parts = {name: n if forward is None else Part(n, forward) for name, n in networks.items()}
        known = {name: _survey(name, part, inputs, device) for name, part in parts.items()}
        placed = {name: where.place(part, example, threads=threads, device=device) for name, part in parts.items()}
        passes = {name: network.once for name, network in placed.items()}
        clock = _clock(passes, threads, device)
        timer, sure = _timed(passes, clock, seconds, progress)
        spent = _profiled(placed, known, PROFILED * seconds)
        used = machine(torch.device(device))
    return Bench(
        chosen, threads, size, device, clock_name(clock), inputs.spec(), used,
        versions, timer.rounds, sure,
        tuple(
            Measured(n, timer.interval(n).times(1e3), s.macs // size, s.params, s.memory_bytes)
            for n, s in known.items()
        ),
        _comparisons(timer, known, spent, any(isinstance(part, Part) for part in parts.values())),
    )  # fmt: skip


def _comparisons(
    timer: Timer, known: Mapping[str, Survey], spent: Mapping[str, Seconds], inside: bool
) -> tuple[Comparison, ...]:
    """Of all networks with the first; `inside`: layers are named as in the model that a `Part` holds."""
    first, *others = known
    dense, out = known[first], []
    for name in others:
        kept = known[name].macs / max(dense.macs, 1)
        layers = layer_times((dense.layers, spent[first]), (known[name].layers, spent[name])) if spent else ()
        named = tuple(replace(x, name=x.name.removeprefix("model.")) for x in layers) if inside else layers
        rest = (fastest(spent[first], ""), fastest(spent[name], "")) if spent else None
        out.append(Comparison(name, timer.speedup(name, first), kept, named, rest))
    return tuple(out)


def _check(networks: Mapping[str, nn.Module], threads: int, seconds: float, device: str) -> None:
    if not networks or not all(isinstance(n, nn.Module) for n in networks.values()):
        raise ConfigError('expected bench({"dense": model, "small": small}, example), networks by name')
    if threads < 1 or not seconds > 0:
        raise ConfigError(f"threads={threads}, seconds={seconds}: expected at least 1 thread and more than 0 seconds")
    try:
        kind = torch.device(device).type
    except RuntimeError:
        kind = ""
    if kind not in ("cpu", "cuda"):
        raise ConfigError(f"device {device!r}: expected cpu, cuda or cuda:N")
    if kind == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device {device!r}: PyTorch finds no GPU here; take cpu")


def batched(inputs: Inputs, batch: int | None) -> tuple[Inputs, int]:
    """The inputs with another first dimension, and that dimension."""
    tensors = [t for t in output_tensors([inputs.args, dict(inputs.kwargs)]) if t.dim()]
    sizes = {t.shape[0] for t in tensors}
    if batch is None:
        return inputs, next(iter(sizes)) if len(sizes) == 1 else 1
    if batch < 1 or len(sizes) != 1:
        raise ConfigError(
            f"batch={batch} on inputs {inputs}: expected 1 or more, and inputs whose first dimensions are all the same"
        )
    return Inputs.from_spec(_rebatched(inputs.spec(), batch)), batch


def _rebatched(spec: Any, batch: int) -> Any:
    if isinstance(spec, list):
        return [_rebatched(x, batch) for x in spec]
    if isinstance(spec, dict) and isinstance(spec.get("tensor"), list):
        return {**spec, "tensor": [batch, *spec["tensor"][1:]] if spec["tensor"] else []}
    return {k: _rebatched(v, batch) for k, v in spec.items()} if isinstance(spec, dict) else spec


def _example(inputs: Inputs) -> Any:
    args, kwargs = inputs.filled()
    if args and kwargs:
        raise ConfigError("inputs by position and by keyword at once: give all by position, or all by keyword")
    return args or kwargs


def _survey(name: str, network: nn.Module, inputs: Inputs, device: str) -> Survey:
    args, kwargs = inputs.filled(device)
    try:
        return survey(rebuilt(network, {}).to(device), args or kwargs)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ExportError(f"{name} does not run on {inputs}: {str(error).splitlines()[0]}") from error


def _clock(passes: Mapping[str, Pass], threads: int, device: str) -> Clock:
    """One clock for all."""
    clocks = {clock_for(once, threads, device=device) for once in passes.values()}
    return clocks.pop() if len(clocks) == 1 else time.perf_counter


def _timed(passes: Mapping[str, Pass], clock: Clock, seconds: float, progress: bool) -> tuple[Timer, bool]:
    first, *others = passes
    timer = Timer(passes, clock)
    with live_bar(progress) as bars:
        task = bars.add_task("Measuring", total=None, status="")
        sure = measure(
            timer,
            lambda t: [t.speedup(n, first) for n in others] or [t.interval(first)],
            seconds,
            told=lambda t, width: bars.update(task, status=f"{t.rounds:,} rounds, interval {width:.1%}"),
        )
    return timer, sure


def _profiled(placed: Mapping[str, Placed], known: Mapping[str, Survey], seconds: float) -> Mapping[str, Seconds]:
    """Seconds of each layer of each network; nothing where nothing is compared, or the runtime does not tell."""
    if len(placed) < 2:
        return {}
    profiles = {}
    for name, network in placed.items():
        profile = network.profile(known[name].layers)
        if profile is None:
            return {}
        profiles[name] = profile
    return profiled(profiles, seconds)
