"""A search in which no worker waits for another: a structure is proposed as soon as one returns."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from sentei.errors import ConfigError, SearchError
from sentei.search.engine import Search, record_of, value_of
from sentei.search.jobs import Job
from sentei.search.store import Record
from sentei.search.strategy import Batch, Proposal

FEWEST = 16
"""Answers at least between two lines of a view, and before a search in which all of them failed gives up."""


@dataclass
class SteadySearch(Search):
    """One search over one space, with so many structures out at any time.

    >>> SteadySearch(strategy, store, executor, pending=64).run().widths  # doctest: +SKIP

    What a strategy proposes depends on the answers that have come until then, hence on their order, which on several
    workers is that of chance. The journal keeps it: each record says which answer it was (`answer`), which proposal it
    answers (`number`), and how many had been proposed by then (`proposed`). A search that was killed is resumed by
    running it again with the same store: it hears the same answers in the same order, proposes what it had proposed,
    and goes on with the structures that were out. `pending` may then be another.
    """

    pending: int = 1
    out: dict[int, Proposal] = field(default_factory=dict)
    """Proposals without an answer, by number."""
    known: deque[tuple[Proposal, Record]] = field(default_factory=deque)
    """Those among them whose answer the store has from elsewhere."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pending < 1 or self.rounds != 1:
            raise ConfigError(
                f"pending is {self.pending}, rounds {self.rounds}; expected 1 or more, and 1 (halving needs batches)"
            )

    def drive(self) -> None:
        """Replay what was answered, then keep `pending` structures out until there is nothing left to propose."""
        for answer in self.store.answers:
            self._replay(answer)
        for proposal in self.out.values():
            self._send(proposal)
        while True:
            while len(self.out) < self.pending and (new := self._propose()):
                self._send(new)
            if not self.out:
                break
            self._take()
        if self.records:
            self.refuse_failure(len(self.records))
            self._note_best()

    def _propose(self) -> Proposal | None:
        proposal = self.strategy.propose()
        if proposal is not None:
            self.out[proposal.number] = proposal
        return proposal

    def _send(self, proposal: Proposal) -> None:
        """Look a structure up, or have it evaluated."""
        widths = self.space.widths(proposal.levels)
        record = self.store.get(widths, 1.0)
        if record is None:
            self.executor.submit(Job(proposal.number, tuple(widths.tolist())))
        else:
            self.known.append((proposal, record))

    def _take(self) -> None:
        """Wait for an answer, note it and its place, tell it."""
        if self.known:
            proposal, record = self.known.popleft()
            found, cached = {**record, "number": proposal.number, "phase": proposal.phase, "cycle": proposal.cycle}, 1
        else:
            outcome = self.executor.take()
            proposal = self.out[outcome.job.number]
            found, cached = record_of(proposal, outcome), 0
        place = {"answer": len(self.records), "proposed": self.strategy.proposed}
        record = self.store.add(self.space.widths(proposal.levels), 1.0, {**found, **place})
        self._tell(proposal, record, cached)

    def _replay(self, record: Record) -> None:
        while self.strategy.proposed < record["proposed"] and self._propose():
            pass
        proposal = self.out.get(record["number"])
        if proposal is None or self.space.widths(proposal.levels).tolist() != record["widths"]:
            raise SearchError(
                f"the journal's answer {record['answer']} is for proposal {record['number']} with the widths "
                f"{record['widths']}, which this search does not propose there: it is that of another search or of "
                "another version. Start over (--overwrite, overwrite=True)"
            )
        self._tell(proposal, record, cached=1)

    def _tell(self, proposal: Proposal, record: Record, cached: int) -> None:
        del self.out[proposal.number]
        self.records.append(record)
        before = self.strategy.best_fitness
        self.strategy.learn(proposal, value_of(record))
        if self.strategy.best_fitness > before:
            self._note_best()
        batch = Batch(proposal.phase, proposal.cycle, [proposal.levels])
        if self.watch:
            self.watch.began(batch, cached)
            if not cached:
                self.watch.evaluated(record)
        each = max(self.pending, FEWEST)
        if len(self.records) % each == 0:
            self.refuse_failure(len(self.records))
            if self.watch:
                self.watch.told(batch, self.strategy.best_fitness)

    def _note_best(self) -> None:
        if not self.curve or self.curve[-1][0] != len(self.records):
            self.curve.append((len(self.records), self.strategy.best_fitness))
