"""One line an epoch, which stays; on a terminal a live bar below them."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

from sentei.bars import live_bar
from sentei.console import say
from sentei.tasks import Task


class Progress:
    """Shows epochs, images/s, loss and validation metric of one training run."""

    def __init__(self, name: str, epochs: int, steps: int, start: int, task: Task, shown: bool = True) -> None:
        self.key, self.told = task.key, task.told
        self.name, self.epochs, self.steps, self.epoch, self.shown = name, epochs, steps, start, shown
        self.bar = live_bar(shown)
        self.task = self.bar.add_task(self._title(), total=epochs * steps, completed=start * steps, status="")
        self.value = self.note = ""
        self.images, self.since = 0, time.perf_counter()
        self.started, self.first = time.perf_counter(), start

    def _title(self) -> str:
        return f"{self.name} {min(self.epoch + 1, self.epochs)}/{self.epochs}"

    def __enter__(self) -> Progress:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def step_done(self, images: int, loss: float | None, note: str = "") -> None:
        self.images += images
        if loss is None:
            self.bar.advance(self.task)
            return
        speed = self.images / max(time.perf_counter() - self.since, 1e-9)
        self.note = f"  {note}" if note else ""
        status = f"{speed:,.0f} images/s  loss {loss:.3f}{self.note}{self.value}"
        self.bar.update(self.task, advance=1, status=status)

    def epoch_done(self, record: dict[str, Any]) -> None:
        self.epoch += 1
        self.value = f"  val {self.told(record[self.key])}" if self.key in record else ""
        self.bar.update(self.task, completed=self.epoch * self.steps, description=self._title())
        if self.shown:
            spent = time.perf_counter() - self.started
            left = spent / (self.epoch - self.first) * (self.epochs - self.epoch)
            say(
                f"{self.name} {self.epoch}/{self.epochs}  loss {record['loss']:.3f}{self.note}{self.value}  "
                f"{record['images_per_second']:,.0f} images/s  {left:,.0f} s left"
            )
        self.images, self.since = 0, time.perf_counter()
