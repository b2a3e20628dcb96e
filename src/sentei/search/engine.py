"""The search loop: ask the strategy, look up or evaluate, note, tell. `steady` has the one without batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from sentei.errors import ConfigError, SearchError
from sentei.search.jobs import Executor, Job, Outcome
from sentei.search.space import Levels, Space
from sentei.search.store import Record, Store
from sentei.search.strategy import FAILED, Batch, Proposal, Strategy


class Watch(Protocol):
    """Hears what happens; `SearchView` shows it."""

    def began(self, batch: Batch, cached: int) -> None: ...

    def evaluated(self, record: Record) -> None: ...

    def told(self, batch: Batch, best: float) -> None: ...


@dataclass(frozen=True)
class SearchResult:
    """The best structure and how it was found."""

    levels: Levels
    widths: np.ndarray
    """Of all groups, int64 [n_groups]."""
    fitness: float
    images: int
    """Samples that structures were trained on, over all of them."""
    report: dict[str, Any]
    """evaluations (structures), measurements (more of them where effort is shared out), failed, exhausted (no structure
    was left), fitness, seconds (summed over workers), and `curve`: structures and best fitness after each batch."""


@dataclass
class Search:
    """One search over one space.

    >>> Search(strategy, store, executor).run().widths  # doctest: +SKIP

    A search that was killed is resumed by running it again with the same store: what was evaluated is looked up, and
    because a strategy follows from its seed and the answers alone, it goes on as if it had never stopped.

    Args:
        rounds: successive halving (Jamieson and Talwalkar 2016, arXiv 1502.07943): a batch is first evaluated with
            1 / 2^(rounds - 1) of the effort; the better half goes on to twice as much, and so on. Whoever drops out
            ranks below the last that did not. 1 evaluates everything in full.
    """

    strategy: Strategy
    store: Store
    executor: Executor
    watch: Watch | None = None
    rounds: int = 1
    records: list[Record] = field(default_factory=list)
    curve: list[tuple[int, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ConfigError(f"rounds is {self.rounds}; expected 1 or more")

    @property
    def space(self) -> Space:
        return self.strategy.space

    def run(self) -> SearchResult:
        """Run to the end of the strategy; SearchError if no structure could be evaluated."""
        try:
            self.drive()
        finally:
            self.store.sync()
        best = self.strategy.best
        if best is None:
            raise SearchError("the strategy proposed nothing")
        measured = {id(record): record for record in self.records}.values()
        images = int(sum(record.get("images", 0) for record in measured))
        return SearchResult(best, self.space.widths(best), self.strategy.best_fitness, images, self._report())

    def drive(self) -> None:
        """Ask and tell until the strategy has nothing left to propose."""
        done = 0
        while (batch := self.strategy.ask()) is not None:
            fitness = self._fitness(batch)
            self.strategy.tell(fitness)
            done += len(batch.structures)
            self.curve.append((done, self.strategy.best_fitness))
            self.refuse_failure(done)
            if self.watch:
                self.watch.told(batch, self.strategy.best_fitness)

    def refuse_failure(self, done: int) -> None:
        """SearchError if none of so many structures could be evaluated."""
        if self.strategy.best_fitness == FAILED:
            raise SearchError(
                f"none of the first {done} structures could be evaluated; the first failed with: "
                f"{self.records[0]['error']}. What failed for good is not tried again: change the settings and "
                "start over (--overwrite, overwrite=True)"
            )

    def _fitness(self, batch: Batch) -> list[float]:
        """Fitness of each structure, over the rounds of successive halving."""
        widths = [self.space.widths(levels) for levels in batch.structures]
        fitness = [FAILED] * len(widths)
        going = list(range(len(widths)))
        for left in reversed(range(self.rounds)):
            share = 0.5**left
            records = self._evaluate(batch, [widths[i] for i in going], share)
            for i, record in zip(going, records, strict=True):
                fitness[i] = value_of(record)
            if left:
                going = sorted(going, key=lambda i: -fitness[i])[: -(-len(going) // 2)]
        # Whoever dropped out must not win by a fitness that was not measured in full.
        below = float(np.nextafter(min(fitness[i] for i in going), -np.inf))
        return [value if i in going else min(value, below) for i, value in enumerate(fitness)]

    def _evaluate(self, batch: Batch, widths: Sequence[np.ndarray], share: float) -> list[Record]:
        known = [self.store.get(w, share) for w in widths]
        first = len(self.records)
        todo: dict[tuple[int, ...], Job] = {}
        for i, (w, record) in enumerate(zip(widths, known, strict=True)):
            if record is None:
                todo.setdefault(tuple(w.tolist()), Job(first + i, tuple(w.tolist()), share))
        if self.watch:
            self.watch.began(batch, len(widths) - len(todo))
        for outcome in self.executor.run(list(todo.values())):
            record = self.store.add(np.array(outcome.job.widths), share, record_of(batch, outcome))
            if self.watch:
                self.watch.evaluated(record)
        found = [self.store.get(w, share) for w in widths]
        complete = [record for record in found if record is not None]
        assert len(complete) == len(widths)
        self.records += complete
        return complete

    def _report(self) -> dict[str, Any]:
        return {
            "evaluations": self.curve[-1][0],
            "measurements": len(self.records),
            "exhausted": self.strategy.exhausted,
            "failed": sum(r["error"] is not None for r in self.records),
            "fitness": self.strategy.best_fitness,
            "seconds": round(sum(r["seconds"] for r in self.records), 2),
            "curve": [list(point) for point in self.curve],
        }


def record_of(batch: Batch | Proposal, outcome: Outcome) -> Record:
    """What the journal says of an outcome."""
    return {
        "number": outcome.job.number,
        "phase": batch.phase,
        "cycle": batch.cycle,
        **(outcome.result or {}),
        "error": outcome.error,
        **({} if outcome.lasting else {"lasting": False}),
        "seconds": outcome.seconds,
    }


def value_of(record: Mapping[str, Any]) -> float:
    """Fitness of a record."""
    return FAILED if record["error"] is not None else float(record["fitness"])
