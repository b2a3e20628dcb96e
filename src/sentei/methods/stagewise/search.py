"""The search of stage-wise pruning: tables of stage distances grow, are merged, and the best structures measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from sentei.methods.common.measuring import Measuring, measure
from sentei.plan import Budget
from sentei.search import Crew
from sentei.supernet.proxies import StageDistances, SubnetMetric
from sentei.supernet.tables import Proposer, Tables, distances_of
from sentei.supernet.training import SortedNet
from sentei.train.journal import Journal


@dataclass(frozen=True, kw_only=True)
class StageSearch:
    """One search of a trained supernet, under one limit."""

    net: SortedNet
    budget: Budget
    distances: StageDistances
    metric: SubnetMetric
    evaluations: int
    """Structures measured for the tables."""
    rounds: int
    candidates: int
    """Structures measured as a whole at the end."""
    say: Callable[[str], None]
    seed: int = 0
    journal: Journal | None = None
    crew: Crew = Crew()
    progress: bool = False

    def result(self) -> tuple[np.ndarray, dict[str, Any]]:
        """Widths of the best structure, int64 [n_groups], and what the summary says of the search."""
        net = self.net
        ((cost, limit),) = self.budget.resolve(net.graph).items()
        proposer = Proposer(net, self.seed)
        tables = self._tables(proposer, cost, limit)
        levels, distances = tables.best(limit, self.candidates, proposer)
        self.say(f"Measuring the {len(levels)} structures of least distance as a whole ...")
        widths = self._widths(levels)
        records = measure(
            self.metric, list(widths), journal=self.journal, crew=self.crew, title="candidates", shown=self.progress
        )
        best = int(np.argmax([r["fitness"] for r in records]))
        costs = getattr(net.graph.costs(widths), cost)
        costs = costs if cost == "latency_ms" else costs.astype(np.int64)
        tried = [
            {"distance": float(d), **{k: v for k, v in r.items() if k.startswith("val_")}, cost: c}
            for d, r, c in zip(distances, records, costs.tolist(), strict=True)
        ]
        rows = [len(table.cost) for table in tables.stages]
        return widths[best], {"search": {"strategy": "merge", "rows": rows, "picked": best, "candidates": tried}}

    def _tables(self, proposer: Proposer, cost: str, limit: float) -> Tables:
        """Measure structures stage by stage, in rounds that look nearer and nearer to what the merge picks."""
        evaluator, stages = self.distances, len(self.net.stages)
        enough = proposer.enough()
        rounds = 1 if enough is not None and enough <= self.evaluations else self.rounds
        count = min(self.evaluations, enough or self.evaluations)
        parts = [len(part) for part in np.array_split(np.arange(count), min(rounds, count))]
        kept = evaluator.feature_bytes <= evaluator.memory
        told = "are kept" if kept else "exceed the limit and are computed again for each structure"
        images = evaluator.settings["images"]
        self.say(
            f"Measuring {count} structures stage by stage on {images} validation images; the full network's "
            f"features ({evaluator.feature_bytes / 2**20:,.0f} MB) {told} ..."
        )
        levels = proposer.first(parts[0])
        with Measuring(evaluator, self.journal, self.crew, self.progress) as measuring:
            records = measuring(list(self._widths(levels)), "stages")
            for number, part in enumerate(parts[1:], 1):
                tables = Tables.of(proposer, cost, levels, distances_of(records, stages))
                parents, distances = tables.best(limit, self.candidates, proposer)
                self.say(f"  round {number} of {len(parts)}: least total distance {distances[0]:.4f} within the budget")
                new = proposer.bred(parents, part, number)
                records += measuring(list(self._widths(new)), "stages")
                levels = np.concatenate([levels, new])
        return Tables.of(proposer, cost, levels, distances_of(records, stages))

    def _widths(self, levels: np.ndarray) -> np.ndarray:
        """Widths of all groups for rows of levels, int64 [n_structures, n_groups]."""
        return np.stack([self.net.space.widths(row) for row in levels.tolist()])
