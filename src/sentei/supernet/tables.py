"""What each stage costs and how far it is from the full one, measured for many of its versions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sentei.supernet.merge import Table, merge
from sentei.supernet.training import SortedNet

INTERFACES = 5
"""Widths of a boundary that are tried; the groups there take the same share."""


@dataclass(frozen=True, eq=False)
class Proposer:
    """Structures whose stages are to be measured. One structure measures one version of every stage.

    A stage with few versions is enumerated. Of others the first versions are the same share everywhere and random
    ones; later ones are bred from those that the merge picked.
    """

    net: SortedNet
    seed: int = 0

    def columns(self, groups: np.ndarray) -> np.ndarray:
        """Places of some groups among the genes."""
        return np.flatnonzero(np.isin(self.net.space.genes, groups))

    @property
    def counts(self) -> np.ndarray:
        return np.array([len(c) for c in self.net.space.choices], np.int64)

    def versions(self) -> list[float]:
        """How many versions each stage has between given boundaries."""
        return [float(np.prod(self.counts[self.columns(g)].astype(float))) for g in self.net.stages.inside]

    def enough(self) -> int | None:
        """Structures that measure every version of every stage; None where boundaries are searched too."""
        if any(len(self.columns(g)) for g in self.net.stages.between):
            return None
        return int(min(max(self.versions()), 2**31))

    def first(self, count: int) -> np.ndarray:
        """Levels int64 [count, n_genes]."""
        rng = np.random.default_rng((self.seed, 0))
        levels = rng.integers(0, self.counts, (count, len(self.counts)))
        even = np.arange(0, int(self.counts.max()))[:count, None] / max(int(self.counts.max()) - 1, 1)
        for groups, versions in zip(self.net.stages.inside, self.versions(), strict=True):
            columns = self.columns(groups)
            if versions <= count and self.enough() is not None:
                every = np.stack(np.unravel_index(np.arange(int(versions)), self.counts[columns]), 1)
                levels[:, columns] = np.resize(rng.permutation(every), (count, len(columns)))
            else:
                levels[: len(even), columns] = self._evenly(even, columns)
        for groups in self.net.stages.between:
            columns = self.columns(groups)
            levels[:, columns] = self._evenly(rng.integers(0, INTERFACES, (count, 1)) / (INTERFACES - 1), columns)
            levels[: len(even), columns] = self._evenly(even, columns)
        return levels

    def bred(self, parents: np.ndarray, count: int, generation: int) -> np.ndarray:
        """Versions near those of the parents, levels [n_parents, n_genes]: stages of different parents, some genes
        moved by one or two levels."""
        rng = np.random.default_rng((self.seed, generation))
        levels = parents[rng.integers(0, len(parents), count)]
        for groups in self.net.stages.inside:
            columns = self.columns(groups)
            levels[:, columns] = parents[rng.integers(0, len(parents), count)][:, columns]
            moved = rng.random((count, len(columns))) < max(0.3, 1 / max(len(columns), 1))
            step = rng.choice([-2, -1, 1, 2], (count, len(columns)))
            levels[:, columns] = np.clip(levels[:, columns] + moved * step, 0, self.counts[columns] - 1)
        return levels

    def _evenly(self, share: np.ndarray, columns: np.ndarray) -> np.ndarray:
        return np.floor(share * (self.counts[columns] - 1) + 0.5).astype(np.int64)


@dataclass(frozen=True, eq=False)
class Tables:
    """The tables of all stages, with the levels behind each row."""

    net: SortedNet
    stages: tuple[Table, ...]
    levels: tuple[np.ndarray, ...]
    """Per stage int64 [rows, n_genes]; only the genes of the stage and of its boundaries mean something."""

    @classmethod
    def of(cls, proposer: Proposer, cost: str, levels: np.ndarray, distances: np.ndarray) -> Tables:
        """From structures, levels [n, n_genes], and the distance of each of their stages, [n, n_stages].

        `cost` is "macs", "params", "activation_bytes" or "latency_ms". Versions that were measured twice count by their
        mean.
        """
        net = proposer.net
        widths = np.stack([net.space.widths(row) for row in levels.tolist()])
        costs = net.stages.costs(net.graph, cost, widths)
        none = np.zeros(0, np.int64)
        sides = [none, *(proposer.columns(g) for g in net.stages.between), none]
        ends = [np.unique(levels[:, c], axis=0, return_inverse=True)[1].reshape(-1) for c in sides]
        tables, kept = [], []
        for i, groups in enumerate(net.stages.inside):
            columns = np.concatenate([sides[i], proposer.columns(groups), sides[i + 1]])
            _, where, row = np.unique(levels[:, columns], axis=0, return_index=True, return_inverse=True)
            mean = np.bincount(row.reshape(-1), distances[:, i]) / np.bincount(row.reshape(-1))
            tables.append(Table(costs[where, i], mean, ends[i][where], ends[i + 1][where]))
            kept.append(levels[where])
        return cls(net, tuple(tables), tuple(kept))

    def best(self, limit: float, top: int, proposer: Proposer) -> tuple[np.ndarray, np.ndarray]:
        """The `top` structures within the limit: levels [n, n_genes] and total distances [n]."""
        merged = merge(self.stages, limit, top=top)
        out = np.zeros((len(merged), len(self.net.space)), np.int64)
        between = (np.zeros(0, np.int64), *self.net.stages.between)
        for i, groups in enumerate(self.net.stages.inside):
            columns = np.concatenate([proposer.columns(between[i]), proposer.columns(groups)])
            rows = np.array([m.rows[i] for m in merged])
            out[:, columns] = self.levels[i][rows][:, columns]
        return out, np.array([m.distance for m in merged])


def distances_of(records: Sequence[Mapping[str, float]], stages: int) -> np.ndarray:
    """[n, n_stages] from what `StageDistances` said."""
    return np.array([[record[f"stage{i + 1}"] for i in range(stages)] for record in records])
