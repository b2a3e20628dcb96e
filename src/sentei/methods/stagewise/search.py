"""The search of stage-wise pruning: tables of stage distances grow, are merged, and the best structures measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sentei.methods.common.measuring import measure
from sentei.methods.common.pruning import Pruning
from sentei.supernet.proxies import StageDistances, SubnetAccuracy
from sentei.supernet.tables import Proposer, Tables, distances_of
from sentei.supernet.training import Supernet

if TYPE_CHECKING:
    from sentei.methods.stagewise import Stagewise


@dataclass(frozen=True)
class StageSearch:
    """One search of a trained supernet, under one limit."""

    how: Stagewise
    pruning: Pruning
    net: Supernet
    accuracy: SubnetAccuracy

    def result(self) -> tuple[np.ndarray, dict[str, Any]]:
        """Widths of the best structure, int64 [n_groups], and what the summary says of the search."""
        pruning, net = self.pruning, self.net
        ((cost, limit),) = pruning.budget.resolve(pruning.graph).items()
        proposer = Proposer(net, pruning.recipe.seed)
        tables = self._tables(proposer, cost, limit)
        levels, distances = tables.best(limit, self.how.candidates, proposer)
        pruning.say(f"Measuring the {len(levels)} structures of least distance as a whole ...")
        records = self._measure(self.accuracy, levels, "candidates")
        widths = np.stack([net.space.widths(row) for row in levels.tolist()])
        best = int(np.argmax([r["fitness"] for r in records]))
        costs = getattr(pruning.graph.costs(widths), cost)
        tried = [
            {"distance": float(d), "accuracy": r["accuracy"], "loss": r["loss"], cost: int(c)}
            for d, r, c in zip(distances, records, costs, strict=True)
        ]
        rows = [len(table.cost) for table in tables.stages]
        return widths[best], {"search": {"strategy": "merge", "rows": rows, "picked": best, "candidates": tried}}

    def _tables(self, proposer: Proposer, cost: str, limit: int) -> Tables:
        """Measure structures stage by stage, in rounds that look nearer and nearer to what the merge picks."""
        how, pruning, stages = self.how, self.pruning, len(self.net.stages)
        memory, bf16 = how.memory_mb * 2**20, pruning.recipe.bf16
        evaluator = StageDistances.of(self.net, pruning.data, how.table_images, memory, bf16)
        enough = proposer.enough()
        rounds = 1 if enough is not None and enough <= how.evaluations else how.rounds
        count = min(how.evaluations, enough or how.evaluations)
        parts = [len(part) for part in np.array_split(np.arange(count), min(rounds, count))]
        kept = evaluator.feature_bytes <= evaluator.memory
        told = "are kept" if kept else "exceed the limit and are computed again for each structure"
        images = evaluator.settings["images"]
        pruning.say(
            f"Measuring {count} structures stage by stage on {images} validation images; the full network's "
            f"features ({evaluator.feature_bytes / 2**20:,.0f} MB) {told} ..."
        )
        levels = proposer.first(parts[0])
        records = self._measure(evaluator, levels, "stages")
        for number, part in enumerate(parts[1:], 1):
            tables = Tables.of(proposer, cost, levels, distances_of(records, stages))
            parents, distances = tables.best(limit, how.candidates, proposer)
            pruning.say(f"  round {number} of {len(parts)}: least total distance {distances[0]:.4f} within the budget")
            new = proposer.bred(parents, part, number)
            records += self._measure(evaluator, new, "stages")
            levels = np.concatenate([levels, new])
        return Tables.of(proposer, cost, levels, distances_of(records, stages))

    def _measure(
        self, evaluator: StageDistances | SubnetAccuracy, levels: np.ndarray, title: str
    ) -> list[dict[str, Any]]:
        how, pruning = self.how, self.pruning
        widths = [self.net.space.widths(row) for row in levels.tolist()]
        return measure(
            evaluator, widths, journal=pruning.run.journal, where=how.executor, workers=how.workers, title=title,
            shown=pruning.progress,
        )  # fmt: skip
