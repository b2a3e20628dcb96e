"""Ask and tell: what a search strategy is.

A strategy is a generator of batches: it yields structures to evaluate and is sent their fitness. Everything it knows
follows from its seed and what it was told, so that the same answers lead it to the same state: to resume is to replay.

It may also work one by one, for workers that shall never wait for each other: `propose` a structure whenever there is
room for one, `learn` each answer when it comes. What it then knows follows from the order of both, too.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass

import numpy as np

from sentei.errors import ConfigError
from sentei.search.space import Levels, Space

FAILED = float("-inf")
"""Fitness of a structure that could not be evaluated."""

ATTEMPTS = 100


@dataclass(frozen=True)
class Batch:
    """Structures that can be evaluated in any order, or at once."""

    phase: str
    cycle: int
    structures: list[Levels]


@dataclass(frozen=True)
class Proposal:
    """One structure of a strategy that works one by one."""

    number: int
    """How many were proposed before."""
    phase: str
    cycle: int
    levels: Levels
    source: int = -1
    """What it is derived from; the strategy's own affair."""


Steps = Generator[Batch, np.ndarray, None]
Draft = tuple[str, int, Levels | None, int]
"""Phase, cycle, structure and source of a proposal; None as structure where there is none left."""


class Strategy(ABC):
    """Proposes structures and learns from their fitness.

    >>> while batch := strategy.ask():
    ...     strategy.tell([fitness(space.widths(levels)) for levels in batch.structures])
    >>> strategy.best, strategy.best_fitness

    Args:
        evaluations: how many structures to propose at most; None leaves the end to the strategy.
        repeats: propose structures again that were proposed before.
    """

    def __init__(self, space: Space, *, seed: int = 0, evaluations: int | None = None, repeats: bool = False) -> None:
        if evaluations is not None and evaluations < 1:
            raise ConfigError(f"evaluations is {evaluations}; expected 1 or more")
        self.space, self.evaluations, self.repeats = space, evaluations, repeats
        self.rng = np.random.default_rng(seed)
        self.proposed = 0
        self.best: Levels | None = None
        self.best_fitness = FAILED
        self.exhausted = False
        """Whether structures that were not proposed before have run out."""
        self._seen: set[Levels] = set()
        self._openings: deque[Levels] = deque()
        self._steps = self.steps()
        self._batch: Batch | None = None
        self._started = False

    @abstractmethod
    def steps(self) -> Steps:
        """Yield batches, receive float [len(batch)] for each; return when there is nothing left to propose."""

    def begin_with(self, structures: Iterable[Levels]) -> None:
        """Structures to propose before any random one; to be called before the first is asked for."""
        self._openings.extend(structures)

    def opening(self) -> Levels:
        """The next of the structures to begin with, and random ones after them."""
        return self._openings.popleft() if self._openings else self.space.random(self.rng)

    def ask(self) -> Batch | None:
        """The batch to evaluate next, the same until `tell` is called; None at the end."""
        if not self._started:
            self._started = True
            self._advance(None)
        return self._batch

    def tell(self, fitness: list[float]) -> None:
        """The fitness of each structure of the last batch, in its order; higher is better."""
        if self._batch is None or len(fitness) != len(self._batch.structures):
            expected = "no batch" if self._batch is None else f"{len(self._batch.structures)} values"
            raise ValueError(f"tell got {len(fitness)} values; expected {expected}")
        values = np.array([FAILED if np.isnan(f) else f for f in fitness], np.float64)
        top = int(values.argmax())
        if self.best is None or values[top] > self.best_fitness:
            self.best, self.best_fitness = self._batch.structures[top], float(values[top])
        self._advance(values)

    def propose(self) -> Proposal | None:
        """The next structure, whatever is still out; None once there is nothing left to propose."""
        if self.proposed == self.evaluations:
            return None
        phase, cycle, levels, source = self.draft() or ("", 0, None, -1)
        if levels is None:
            return None
        self.proposed += 1
        return Proposal(self.proposed - 1, phase, cycle, levels, source)

    def learn(self, proposal: Proposal, fitness: float) -> None:
        """The fitness of a structure that `propose` gave, in any order."""
        value = FAILED if np.isnan(fitness) else float(fitness)
        if self.best is None or value > self.best_fitness:
            self.best, self.best_fitness = proposal.levels, value
        self.learned(proposal, value)

    def draft(self) -> Draft | None:
        """What to propose next, one by one; None at the end. ConfigError for a strategy of whole batches."""
        raise ConfigError(
            f"{type(self).__name__} proposes whole batches and has no steady state: leave out pending, or write its "
            "draft and learned"
        )

    def learned(self, proposal: Proposal, fitness: float) -> None:
        """Hear what came of a proposal; to be written together with `draft`, by those that want to know."""
        return

    def fresh(self, propose: Callable[[], Levels]) -> Levels | None:
        """The first of `propose()` that was not proposed before, failing that a random one; None if none is left."""
        for attempt in range(2 * ATTEMPTS):
            levels = propose() if attempt < ATTEMPTS else self.space.random(self.rng)
            if self.repeats or levels not in self._seen:
                self._seen.add(levels)
                return levels
        self.exhausted = True
        return None

    def room(self, most: int) -> int:
        """How many structures may still be proposed, up to some number."""
        return most if self.evaluations is None else min(most, self.evaluations - self.proposed)

    def _advance(self, values: np.ndarray | None) -> None:
        self._batch = None
        left = None if self.evaluations is None else self.evaluations - self.proposed
        if left == 0:
            return
        try:
            batch = next(self._steps) if values is None else self._steps.send(values)
        except StopIteration:
            return
        if not batch.structures:
            raise ValueError(f"{type(self).__name__} yielded a batch without structures; return instead")
        kept = batch.structures[:left]
        self.proposed += len(kept)
        self._batch = Batch(batch.phase, batch.cycle, kept)
