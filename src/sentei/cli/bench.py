"""`sentei bench`: how fast networks run, and whether time fell as the multiply-accumulates did."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from torch import nn

from sentei.cli.inspect import Inspect
from sentei.cli.options import MODEL, Dense, Output, Trust, device_of
from sentei.cli.running import print_json
from sentei.cli.saved import permit, saved_command
from sentei.console import say, screen
from sentei.errors import ConfigError, SenteiError
from sentei.graph.inputs import Inputs
from sentei.graph.part import Part
from sentei.lock import FolderLock
from sentei.models import load_weights
from sentei.report.tables import count, table
from sentei.runfiles import BENCH, is_started, read_summary
from sentei.speed.bench import Bench, Comparison, batched, bench
from sentei.speed.benchfile import Role, append_bench, as_file, entry_of, read_bench
from sentei.speed.layers import NOTICED, slow_layers
from sentei.speed.runtimes import SHOWN, default_runtime
from sentei.speed.survey import Layer
from sentei.tasks.task import Forward


@dataclass(frozen=True)
class Contender:
    """A network that is measured, and the run that it is the result of."""

    name: str
    role: Role
    model: nn.Module
    part: Forward | None = None
    folder: Path | None = None

    @property
    def measured(self) -> nn.Module:
        return self.model if self.part is None else Part(self.model, self.part)


@dataclass(frozen=True)
class BenchCommand:
    """Measure how fast networks run, side by side. A pruned run brings its dense network and is compared with it; of
    several networks all are compared with the first. The figures are added to bench.json in the folder of each run."""

    models: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN|MODEL...", help=MODEL)]
    runtime: Literal["onnxruntime", "openvino", "eager", "compile"] | None = None
    """Where they run; ONNX Runtime if it is installed, else PyTorch as it is (eager)."""
    threads: Annotated[int, tyro.conf.arg(metavar="N")] = 1
    """Threads that a pass may use."""
    batch: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Samples at once; one, or what --input says, unless given."""
    input: Annotated[str | None, tyro.conf.arg(metavar="N,C,H,W")] = None
    """Shape of the input; what a run was made with, or the model's usual one unless given."""
    device: str = "cpu"
    """cpu, cuda, cuda:1, ..."""
    seconds: float = 30.0
    """Measuring ends when the interval of every speed-up is under 2 %, or after so long."""
    num_classes: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Number of classes of a MODEL; its own unless given."""
    task: Annotated[str | None, tyro.conf.arg(metavar="TASK")] = None
    """What a MODEL is for, where only a part of it is traced: detection, or FILE.py:CLASS."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Add the figures to this file, and to no other."""
    trust: Trust = False
    """Let the code run that the config of a RUN names (FILE.py:FUNCTION)."""
    output: Output = field(default_factory=Output)

    def execute(self) -> None:
        self.check()
        with self.reserved():
            contenders, example = self.gathered()
            self.announce(contenders)
            found = bench(
                {c.name: c.measured for c in contenders}, example, runtime=self.runtime, threads=self.threads,
                batch=self.batch, device=device_of(self.device), seconds=self.seconds, progress=True,
            )  # fmt: skip
            entries = self.stored(found, contenders)
        if self.output.as_json:
            print_json(as_file(entries))
        else:
            show(found, contenders)
            self.tell_where(contenders)

    def check(self) -> None:
        """ConfigError, before any work, for what cannot be measured or stored."""
        if not self.models:
            raise ConfigError(f"give what to measure: {MODEL}")
        twice = next((ref for ref in self.models if self.models.count(ref) > 1), None)
        if twice is not None:
            raise ConfigError(f"{twice} is named twice; give every network once")
        if self.batch is not None and self.batch < 1:
            raise ConfigError(f"--batch {self.batch}: expected 1 or more")
        device_of(self.device)
        for file in [self.out] if self.out else [Path(ref) / BENCH for ref in self.models if is_started(ref)]:
            if file.exists():
                read_bench(file)

    @contextmanager
    def reserved(self) -> Iterator[None]:
        """The runs that are written to are this process's until all is stored."""
        locks = []
        try:
            for ref in self.models:
                if is_started(ref) and self.out is None:
                    locks.append(FolderLock(Path(ref)))
            yield
        finally:
            for lock in locks:
                lock.release()

    def gathered(self) -> tuple[list[Contender], Any]:
        """The networks, the one that others are compared with first, and inputs that all of them take."""
        contenders: list[Contender] = []
        inputs: dict[str, Any] = {}
        for ref in self.models:
            model, inputs[ref], part = self.named(ref).build()
            if not is_started(ref):
                contenders.append(Contender(ref, "other" if contenders else "dense", model, part))
            elif read_summary(ref)["verb"] == "prune":
                if not contenders:
                    contenders.append(Contender(f"dense of {ref}", "dense", dense_of(ref), part))
                contenders.append(Contender(ref, "small", model, part, Path(ref)))
            else:
                contenders.append(Contender(ref, "other" if contenders else "dense", model, part, Path(ref)))
        return contenders, self.common(inputs)

    def named(self, ref: str) -> Inspect:
        """What builds a network; the example has one sample unless --input says otherwise."""
        if is_started(ref):
            if read_summary(ref)["verb"] == "fidelity":
                raise ConfigError(f"{ref} compared proxies and left no network to measure")
            permit(ref, [saved_command(ref).dense.ref], self.trust)
        return Inspect(ref, input=self.input, num_classes=self.num_classes, task=self.task, trust=self.trust)

    def common(self, inputs: dict[str, Any]) -> Any:
        specs = {ref: Inputs.of(example) for ref, example in inputs.items()}
        first, *others = specs
        for ref in others:
            if batched(specs[ref], 1)[0].spec() != batched(specs[first], 1)[0].spec():
                raise ConfigError(
                    f"{first} takes inputs of {specs[first]}, {ref} of {specs[ref]}: give --input N,C,H,W for both"
                )
        return inputs[first]

    def announce(self, contenders: list[Contender]) -> None:
        runtime = self.runtime or default_runtime()
        if self.runtime is None and runtime == "eager":
            say("ONNX Runtime is not installed (pip install 'sentei[export]'): measuring in PyTorch as it is")
        names = ", ".join(c.name for c in contenders)
        say(f"Measuring {names} in {SHOWN[runtime]}, {threads_shown(self.threads)}, up to {self.seconds:g} s ...")
        if any(c.part is not None for c in contenders):
            say("Only the part that is traced is measured, not what decides by values (boxes, for instance)")

    def stored(self, found: Bench, contenders: list[Contender]) -> list[dict[str, Any]]:
        """The entries of all networks but dense ones that no one named, in their files."""
        told = [c for c in contenders if c.role != "dense" or c.folder is not None or len(contenders) == 1]
        entries = [entry_of(found, c.name, c.role) for c in told]
        if self.out is not None:
            append_bench(self.out, entries)
        else:
            for contender, entry in zip(told, entries, strict=True):
                if contender.folder is not None:
                    append_bench(contender.folder / BENCH, [entry])
        return entries

    def tell_where(self, contenders: list[Contender]) -> None:
        folders = [c.folder / BENCH for c in contenders if c.folder is not None]
        files = [self.out] if self.out is not None else folders
        if files:
            say(f"Added to {', '.join(map(str, files))}")


def dense_of(folder: str) -> nn.Module:
    """The network that a run was pruned from, with its weights where they still are: only times are wanted of it."""
    dense: Dense = saved_command(folder).dense
    model = dense.build()
    if dense.weights is not None:
        with suppress(SenteiError, OSError):
            load_weights(model, dense.weights, new_head=dense.num_classes)
    return model


def threads_shown(threads: int) -> str:
    return "1 thread" if threads == 1 else f"{threads} threads"


# -- what is shown


def show(found: Bench, contenders: list[Contender]) -> None:
    versions = ", ".join(f"{name} {version}" for name, version in found.versions.items())
    shape = str(Inputs.from_spec(found.inputs))
    title = f"{SHOWN[found.runtime]}, {threads_shown(found.threads)}, inputs {shape}, {found.device}"
    out = table(title, "network", "ms a pass", "95 % interval", "MACs", "parameters", "memory")
    for network in found.networks:
        ms = network.ms
        out.add_row(
            network.name, f"{ms.value:.3g}", f"{ms.low:.3g} to {ms.high:.3g}", count(network.macs),
            count(network.params), f"{network.memory_bytes / 1e6:.2f} MB",
        )  # fmt: skip
    screen().print(out)
    for compared in found.comparisons:
        show_comparison(compared, found, len(found.comparisons) > 1)
    clock = "CPU time of the thread" if found.clock == "thread" else "wall time"
    say(f"{found.rounds:,} rounds, {clock}, median of the fast half; {versions}")
    if not found.sure:
        say("The machine was too noisy for intervals under 2 %: give it more time (--seconds) or less to do")
    say("Memory: weights, and what is alive at the worst moment of a pass in PyTorch")


def show_comparison(compared: Comparison, found: Bench, several: bool) -> None:
    speed = compared.speedup
    whose = f"{compared.name}: s" if several else "S"
    say(
        f"{whose}peed-up {speed.value:.2f} ({speed.low:.2f} to {speed.high:.2f}) at {compared.macs_kept:.1%} of the "
        f"MACs; speed-up x MACs kept = {compared.efficiency:.2f} (1 is ideal)"
    )
    if compared.rest_ms is not None:
        before, after = compared.rest_ms
        if after > compared.macs_kept * before + NOTICED * sum(layer.small_ms for layer in compared.layers):
            say(f"Outside of layers (additions, pooling, changes of layout): {before:.3f} ms, then {after:.3f} ms")
    slow = slow_layers(compared.layers)
    if found.runtime == "compile":
        say("torch.compile fuses layers and does not tell where the time goes")
    if not slow:
        return
    out = table("Slower than their share of the MACs", "layer", "channels", "dense ms", "small ms", "MACs kept", "")
    out.columns[-1].justify = "left"
    for layer in slow:
        out.add_row(layer.name, f"{_widths(layer.dense)} -> {_widths(layer.small)}", f"{layer.dense_ms:.3f}",
                    f"{layer.small_ms:.3f}", f"{layer.share_macs:.0%}", layer.note)  # fmt: skip
    screen().print(out)
    if any(layer.note for layer in slow):
        say("Widths in larger steps are faster: sentei prune ... --round-to 8 (or 16)")


def _widths(layer: Layer) -> str:
    return ":".join("?" if width is None else str(width) for width in (layer.inputs, layer.outputs))
