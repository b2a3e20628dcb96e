"""ISTA as it happens, and a picture of the scales before and after."""

from __future__ import annotations

import io
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import torch
from PIL import Image, ImageDraw
from rich.live import Live
from rich.table import Table
from torch import Tensor, nn

from sentei.atomic import write_atomic
from sentei.console import screen
from sentei.graph import ChannelGraph
from sentei.methods.ista.lasso import Penalised, lasso, live_plan
from sentei.methods.ista.rounds import Round
from sentei.plan.allocate import told

EVERY = 0.5
"""Seconds between two updates."""


class LassoView:
    """On a terminal a live table: Lasso term, sparsity by group, live MACs against the budget."""

    def __init__(self, groups: Sequence[Penalised], limits: dict[str, float], graph: ChannelGraph, shown: bool) -> None:
        console = screen()
        self.groups, self.limits, self.graph = groups, limits, graph
        self.live = Live(console=console, transient=True, auto_refresh=False) if shown and console.is_terminal else None
        self.seen, self.steps, self.last = 0.0, 0, ""

    def __enter__(self) -> LassoView:
        if self.live is not None:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live is not None:
            self.live.stop()

    def stepped(self, model: nn.Module, penalties: Sequence[float], number: int) -> None:
        self.steps += 1
        if self.live is not None and time.perf_counter() - self.seen > EVERY:
            self.seen = time.perf_counter()
            self.live.update(self.table(model, penalties, number), refresh=True)

    def rounded(self, record: Round) -> None:
        self.steps, self.last = 0, "" if record.loss is None else f", loss {record.loss:.3f} in the last"

    def table(self, model: nn.Module, penalties: Sequence[float], number: int) -> Table:
        cost, full = self.graph.cost(live_plan(model, self.graph, self.groups)), self.graph.cost()
        limits = "".join(f", budget {told(name, limit)}" for name, limit in self.limits.items())
        out = Table(
            title=f"ista, epoch {number}, step {self.steps}{self.last}: "
            f"Lasso {lasso(model, self.groups, penalties):.3f}",
            caption=f"live: {cost.macs:,} MACs ({cost.macs / max(full.macs, 1):.1%}), {cost.params:,} params{limits}",
        )
        for name in ("group", "zero", ""):
            out.add_column(name)
        for g in self.groups:
            zero = int((g.norms(model) == 0).sum())
            full_bars = round(20 * zero / g.width)
            out.add_row(g.name, f"{zero}/{g.width}", "█" * full_bars + "░" * (20 - full_bars))
        return out


def picture(before: dict[str, Tensor], after: dict[str, Tensor], path: Path) -> None:
    """A PNG with one panel a group: |gamma| of its units in falling order, before (grey) and after (blue)."""
    wide, high, across = 220, 110, 4
    rows = -(-len(before) // across)
    image = Image.new("RGB", (wide * across, high * rows + 18), "white")
    draw = ImageDraw.Draw(image)
    draw.text((6, 3), "|gamma| of each unit, sorted: grey before, blue after", fill="black")
    for i, (name, old) in enumerate(before.items()):
        left, top = wide * (i % across) + 8, high * (i // across) + 20
        new = after[name]
        zeros = int((new == 0).sum())
        draw.text((left, top), f"{name[-22:]} {zeros}/{len(new)} zero", fill="black")
        largest = max(float(torch.cat([old, new]).max()), 1e-12)
        base, room = top + high - 14, high - 32
        for values, colour in ((old, "#b0b0b0"), (new, "#2060c0")):
            tops = (base - values.sort(descending=True).values / largest * room).tolist()
            step = (wide - 20) / len(tops)
            line = [(left + step * (k + side), y) for k, y in enumerate(tops) for side in (0, 1)]
            draw.line(line, fill=colour, width=2)
        draw.line([(left, base), (left + wide - 20, base)], fill="black")
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    write_atomic(path, buffer.getvalue())
