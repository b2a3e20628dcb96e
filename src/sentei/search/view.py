"""A search as it happens: one line a batch, which stays; on a terminal a live bar below them."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType

from sentei.bars import live_bar
from sentei.console import say
from sentei.search.store import Record
from sentei.search.strategy import FAILED, Batch


class SearchView:
    """Cycle, phase, best fitness, structures done, known already and failed, their rate, and the time left.

    Args:
        total: structures to be evaluated if the search runs to its end, an estimate.
        told: a fitness as text.
    """

    def __init__(self, total: int | None, shown: bool = True, told: Callable[[float], str] = "{:.2%}".format) -> None:
        self.fitness = told
        self.total, self.shown = total, shown
        self.best, self.done, self.known, self.failed = FAILED, 0, 0, 0
        self.started = time.perf_counter()
        self.batch = Batch("start", 0, [])
        self.bar = live_bar(shown, times=False)
        self.task = self.bar.add_task("search", total=total, status="")

    def __enter__(self) -> SearchView:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def began(self, batch: Batch, cached: int) -> None:
        self.batch = batch
        self.known += cached
        self._update()

    def evaluated(self, record: Record) -> None:
        self.done += 1
        self.failed += record["error"] is not None
        self.best = max(self.best, record.get("fitness", FAILED))
        self._update()

    def told(self, batch: Batch, best: float) -> None:
        self.best = best
        self._update()
        if self.shown:
            say(f"search: {self._title()}: {self.status()}")

    def status(self) -> str:
        """One line on where the search stands."""
        spent = max(time.perf_counter() - self.started, 1e-9)
        parts = [f"best {self.fitness(self.best)}" if self.best > FAILED else "best -"]
        parts.append(f"{self.done} evaluated, {self.known} known, {self.failed} failed")
        if self.done:
            rate = self.done / spent
            parts.append(f"{60 * rate:.0f} a minute" if rate > 1 / 60 else f"{3600 * rate:.1f} an hour")
            if self.total is not None:
                parts.append(f"{max(self.total - self.done - self.known, 0) / rate:,.0f} s left")
        return "  ".join(parts)

    def _title(self) -> str:
        return f"cycle {self.batch.cycle} {self.batch.phase}"

    def _update(self) -> None:
        self.bar.update(self.task, completed=self.done + self.known, description=self._title(), status=self.status())
