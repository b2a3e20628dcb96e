"""Which units of the trained network a narrower structure takes over."""

from __future__ import annotations

import hashlib
from typing import Literal

import numpy as np
from torch import nn

from sentei.errors import ConfigError
from sentei.graph import ChannelGraph
from sentei.plan import CRITERIA, Plan, plan_from_widths

Inherit = Literal["l1", "bn_scale", "random"]


class Inheritance:
    """From widths to a plan, the same whenever and wherever it is asked.

    >>> Inheritance(model, graph, "l1").plan(widths)

    "l1" and "bn_scale" keep the units with the largest weights or BatchNorm scales. "random" draws units that depend
    on the seed and on the widths alone, so that a structure has one fitness.
    """

    def __init__(self, model: nn.Module, graph: ChannelGraph, how: Inherit, seed: int = 0) -> None:
        if how not in ("l1", "bn_scale", "random"):
            raise ConfigError(f"inherit is {how!r}; expected 'l1', 'bn_scale' or 'random'")
        self.graph, self.seed = graph, seed
        self.scores = None if how == "random" else CRITERIA[how](model, graph)

    def plan(self, widths: np.ndarray) -> Plan:
        scores = self.scores
        if scores is None:
            drawn = hashlib.sha256(np.asarray(widths, np.int64).tobytes()).digest()
            rng = np.random.default_rng([self.seed, int.from_bytes(drawn[:8], "little")])
            scores = {g.name: rng.random(g.width) for g in self.graph.groups if not g.frozen}
        return plan_from_widths(self.graph, widths, scores)
