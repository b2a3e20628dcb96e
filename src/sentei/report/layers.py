"""Where channels, MACs and milliseconds are, from the input of the network to its output."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sentei.report.blocks import Block, Section, Table, Text
from sentei.report.charts import Chart
from sentei.report.courses import figure
from sentei.report.figures import left_told, ms_told, plain, scaled, times_told
from sentei.report.reading import RunFiles, Timed
from sentei.report.tables import count
from sentei.speed.runtimes import SHOWN

MOST_STAGES, MOST_OF_ALL = 3, 0.9
"""A network has so many stages at least, of which none has more than this share of the MACs, where names allow."""


def depth(run: RunFiles) -> Section | None:
    """Channels and MACs of the network over its depth, before and after, and how far they are known."""
    layers: Mapping[str, Sequence[int]] = run.summary.get("layers", {})
    widths: Mapping[str, Sequence[int]] = run.summary["widths"] if run.pruned else {}
    blocks: list[Block] = []
    if widths:
        blocks += _widths(widths)
    blocks += _macs(layers) if layers else [Text("MACs by layer are not known: an earlier version made this run.")]
    folded = [*_stages(layers), *_groups(widths, run.summary.get("frozen", {}))]
    return Section("Where the channels and MACs went" if run.pruned else "Where the MACs are", [*blocks, *folded])


def _widths(widths: Mapping[str, Sequence[int]]) -> Iterator[Block]:
    before, after = [w[0] for w in widths.values()], [w[1] for w in widths.values()]
    cut = sum(b > a for b, a in zip(before, after, strict=True))
    about = (
        f"{cut} of {len(widths)} groups of channels became narrower: {sum(before):,} channels in all before, "
        f"{sum(after):,} after."
    )
    yield Text(about)
    yield from figure(Chart(
        "Widths over the depth of the network", about, "group of channels, from input to output", "channels",
        columns=(before, after),
    ))  # fmt: skip


def _groups(widths: Mapping[str, Sequence[int]], frozen: Mapping[str, str]) -> Iterator[Block]:
    rows = [[str(i), name, f"{b:,}", f"{a:,}", left_told(b, a)] for i, (name, (b, a)) in enumerate(widths.items(), 1)]
    if rows:
        yield Table("Widths: every group", ("#", "group", "before", "after", "left"), rows, left=2, folded=True)
    if frozen:
        whole = [[name, plain(why)] for name, why in frozen.items()]
        yield Table("Groups that stay whole, and why", ("group", "why"), whole, left=2, folded=True)


def _macs(layers: Mapping[str, Sequence[int]]) -> Iterator[Block]:
    before, after = [float(m[0]) for m in layers.values()], [float(m[-1]) for m in layers.values()]
    size, prefix = scaled(before)
    name, most = max(((n, m[0]) for n, m in layers.items()), key=lambda item: item[1])
    about = f"MACs of {len(layers)} layers; {name or 'the model itself'} had the most, {count(most)}."
    yield from figure(Chart(
        "MACs over the depth of the network", about, "layer, from input to output", f"MACs ({prefix or '1'})",
        columns=([v / size for v in before], [v / size for v in after]),
    ))  # fmt: skip


def _stages(layers: Mapping[str, Sequence[int]]) -> Iterator[Block]:
    """A row for each stage, and folded one for each layer."""
    pruned = any(len(m) > 1 for m in layers.values())
    full, total = (sum(m[i] for m in layers.values()) for i in (0, -1))

    def row(name: str, before: int, after: int) -> list[str]:
        rest = [count(after), left_told(total, after), left_told(before, after)] if pruned else []
        return [name or "the model itself", count(before), left_told(full, before), *rest]

    stages: dict[str, list[int]] = {}
    for name, stage in stages_of({n: m[0] for n, m in layers.items()}).items():
        held = stages.setdefault(stage, [0, 0])
        held[0], held[1] = held[0] + layers[name][0], held[1] + layers[name][-1]
    columns = ["MACs before", "of all", "MACs after", "of all", "left"] if pruned else ["MACs", "of all"]
    if stages:
        yield Table("MACs by stage", ["stage", *columns], [row(name, *held) for name, held in stages.items()])
    if len(stages) < len(layers):
        rows = [row(name, m[0], m[-1]) for name, m in layers.items()]
        yield Table("MACs: every layer", ["layer", *columns], rows, folded=True)


def stages_of(macs: Mapping[str, int]) -> dict[str, str]:
    """The stage of each layer: the shortest beginning of its name that tells a network's parts apart.

    >>> stages_of({"conv1": 5, "layer1.0.conv1": 40, "layer1.0.conv2": 5, "layer2.0.conv1": 50})
    {'conv1': 'conv1', 'layer1.0.conv1': 'layer1', 'layer1.0.conv2': 'layer1', 'layer2.0.conv1': 'layer2'}
    """
    depths = max((name.count(".") + 1 for name in macs), default=1)
    for depth in range(1, depths + 1):
        stages = {name: ".".join(name.split(".")[:depth]) for name in macs}
        sums: dict[str, int] = {}
        for name, stage in stages.items():
            sums[stage] = sums.get(stage, 0) + macs[name]
        if len(sums) >= MOST_STAGES and max(sums.values()) <= MOST_OF_ALL * sum(sums.values()):
            return stages
    return {name: name for name in macs}


def speed(run: RunFiles) -> Section | None:
    """What was measured: on the way to a budget of milliseconds, and by `sentei bench`."""
    found = run.summary.get("latency")
    blocks = [*(_budgeted(found) if found else []), *(_benched(run) if run.bench else [])]
    return Section("Speed", blocks) if blocks else None


def _budgeted(found: Mapping[str, Any]) -> Iterator[Block]:
    """The cuts on the way to a budget of milliseconds: foretold by the table of layers, then measured."""
    place = f"{SHOWN.get(found['runtime'], found['runtime'])}, {found.get('threads', 1)} thread"
    limit, error, tries = found.get("limit_ms"), found.get("error"), found.get("tries", [])
    text = (
        f"The budget limits the time{'' if limit is None else f' to {ms_told(limit)} ms as foretold'}, in {place}"
        f"{'s' * (found.get('threads', 1) != 1)}. The network takes {ms_told(found['small_ms'])} ms, where "
        f"{ms_told(found['predicted_ms'])} ms were foretold; the dense one takes {ms_told(found['dense_ms'])} ms."
    )
    if error is not None:
        text += f" The table of layers meets the networks that it was calibrated on within {error:.1%}."
    yield Text(text)
    rows = [
        [str(i), *(ms_told(t.get(name)) for name in ("asked_ms", "predicted_ms", "small_ms", "dense_ms")),
         *("-" if (v := t.get(name)) is None else f"{v:.1%}" for name in ("share", "used"))]
        for i, t in enumerate(tries, 1)
    ]  # fmt: skip
    if rows:
        names = ("cut", "ms asked for", "ms foretold", "ms measured", "ms dense", "of the dense", "of the budget")
        yield Table("Cuts under the budget of milliseconds", names, rows)


def _benched(run: RunFiles) -> Iterator[Block]:
    """Whole networks, and layers where they were looked at."""
    rows = []
    for entry in run.bench:
        dense, small = entry.network("dense"), entry.network("small")
        times = times_told(entry.speedup, entry.speedup_low, entry.speedup_high)
        ideal = "-" if entry.efficiency is None else f"{entry.efficiency:.2f}"
        rows.append(
            [entry.place, ms_told(dense.ms if dense else None), ms_told(small.ms if small else None), times, ideal]
        )
    names = ("where", "ms before", "ms after", "times as fast", "speed-up × MACs left")
    yield Table("Milliseconds a pass", names, rows)
    yield Text("Speed-up × MACs left is 1 where time falls as MACs do; below 1, a part of the time does not.")
    latest = next((e for e in reversed(run.bench) if e.layers), None)
    if latest is not None:
        yield from _milliseconds(latest)


def _milliseconds(entry: Timed) -> Iterator[Block]:
    timed = [layer for layer in entry.layers if layer.dense_ms is not None and layer.small_ms is not None]
    before, after = [layer.dense_ms or 0.0 for layer in timed], [layer.small_ms or 0.0 for layer in timed]
    about = f"Milliseconds of {len(timed)} layers in {entry.place}: {sum(before):.3g} before, {sum(after):.3g} after."
    yield from figure(Chart(
        "Milliseconds over the depth of the network", about, "layer, from input to output", "time (ms)",
        columns=(before, after),
    ))  # fmt: skip
    rows = [
        [layer.name, plain(layer.dense_width), plain(layer.small_width), ms_told(layer.dense_ms),
         ms_told(layer.small_ms), left_told(layer.dense_ms or 0, layer.small_ms or 0), layer.note or ""]
        for layer in timed
    ]  # fmt: skip
    names = ("layer", "width before", "width after", "ms before", "ms after", "time left", "note")
    yield Table(f"Milliseconds by layer, {entry.place}", names, rows, folded=True)
