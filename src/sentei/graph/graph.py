"""The one object: which slices of which parameters live or die together, and what any plan costs."""

from __future__ import annotations

import copy
import difflib
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike
from torch import nn

from sentei.errors import PlanError
from sentei.graph.bundles import completed
from sentei.graph.copying import rebuilt
from sentei.graph.cost import COUNTS, Cost, CostModel, Costs
from sentei.graph.fields import Field, site_values
from sentei.graph.groups import Group, Grouping
from sentei.graph.inputs import Inputs
from sentei.graph.labels import stay
from sentei.graph.latency import Latency, Times
from sentei.graph.memory import emptied
from sentei.graph.part import Forward, name_of
from sentei.graph.record import Site, Trace
from sentei.graph.resize import Attribute, Cuts, attributes, named_tensors
from sentei.graph.structure import Structure


class HasKeep(Protocol):
    """Anything that says which units of which groups stay: a `Plan`."""

    @property
    def keep(self) -> Mapping[str, np.ndarray]: ...


class ChannelGraph:
    """Made by `trace`. Knows the groups of a model, their places in its parameters, and the cost of any plan.

    >>> graph = trace(model, torch.zeros(1, 3, 32, 32))
    >>> graph.groups[0]
    Group('conv1', width=16, 12 members)
    >>> graph.cost().macs, graph.cost(plan).macs
    """

    def __init__(
        self,
        trace: Trace,
        grouping: Grouping,
        params: Mapping[str, tuple[int, ...]],
        inputs: Inputs,
        sites: Sequence[Site] = (),
        bundles: Sequence[tuple[int, ...]] = (),
        forward: Forward | None = None,
    ) -> None:
        self.groups: tuple[Group, ...] = grouping.groups
        self.sites = (*trace.sites, *sites)
        self.unfollowed: tuple[Field, ...] = ()
        self.bundles = tuple(bundles)
        self.inputs = inputs
        self.forward = forward
        """Runs the part of the model that was traced; None: all of it was."""
        self.trace_record = trace
        self.grouping = grouping
        self.params = dict(params)
        self._index = {g.name: i for i, g in enumerate(self.groups)}
        self._starts = np.cumsum([0, *trace.sizes])
        self.costs_of = CostModel(trace, grouping, params)
        self.structure = self._structure()

    def __repr__(self) -> str:
        free = sum(not g.frozen for g in self.groups)
        cost = self.cost()
        return (
            f"ChannelGraph({len(self.groups)} groups, {free} prunable; {cost.macs:,} MACs, {cost.params:,} parameters)"
        )

    def following(self, sites: Sequence[Site], unfollowed: Sequence[Field]) -> ChannelGraph:
        """The same graph with more plain values of modules that follow widths, and those that a cut leaves alone."""
        new = copy.copy(self)
        new.sites, new.unfollowed = (*self.sites, *sites), tuple(unfollowed)
        return new

    # -- groups and plans

    def group(self, name: str) -> Group:
        """The group of that name; PlanError with the nearest names if there is none."""
        return self.groups[self.index(name)]

    def index(self, name: str) -> int:
        if name not in self._index:
            near = difflib.get_close_matches(name, self._index, 3, 0.4)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise PlanError(f"there is no group named {name!r} among the {len(self.groups)} groups{hint}")
        return self._index[name]

    def bundle_of(self, group: int) -> Sequence[int]:
        """The places of all groups that keep the same share as this one, itself included."""
        return next((b for b in self.bundles if group in b), (group,))

    def bind(self, keep: Mapping[str, ArrayLike]) -> dict[str, np.ndarray]:
        """Check kept units against the groups; returns them as sorted int64 arrays. PlanError if they do not fit.

        Groups that must keep the same share (`bundles`) keep as large a share as the one of them that keeps most: what
        `cut`, `slim` and all costs do with a plan that gives them different ones.
        """
        out = {}
        for name, units in keep.items():
            group = self.group(name)
            idx = np.unique(np.asarray(units, dtype=np.int64))
            if idx.size != np.asarray(units).size:
                raise PlanError(f"group {name}: some units are named twice in {np.asarray(units).tolist()[:20]}")
            if idx.size == 0:
                raise PlanError(f"group {name}: no unit is kept; keep at least one of its {group.width}")
            if idx[0] < 0 or idx[-1] >= group.width:
                raise PlanError(f"group {name} has units 0..{group.width - 1}, the plan keeps {idx[0]}..{idx[-1]}")
            if group.frozen and idx.size < group.width:
                raise PlanError(f"group {name} cannot be cut: {group.why}")
            out[name] = idx
        return dict(self._completed(out))

    def _completed(self, keep: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        if not self.bundles:
            return keep
        names = [[self.groups[i].name for i in b] for b in self.bundles]
        return completed(keep, names, {g.name: g.width for g in self.groups})

    def widths(self, plan: HasKeep | None = None) -> np.ndarray:
        """Units kept in each group, int64 [n_groups]."""
        out = np.array([g.width for g in self.groups], np.int64)
        for name, idx in (self._completed(plan.keep) if plan else {}).items():
            out[self.index(name)] = len(idx)
        return out

    # -- cost

    def cost(self, plan: HasKeep | None = None) -> Cost:
        """What the network that `plan` leaves costs (the whole network by default)."""
        costs = self.costs(self.widths(plan))
        counts = {name: round(float(getattr(costs, name))) for name in COUNTS}
        return Cost(**counts, latency_ms=float(costs.latency_ms) if self.timed else None)

    def costs(self, widths: np.ndarray) -> Costs:
        """Costs of many width vectors at once: int [..., n_groups] in the order of `groups` -> arrays [...]."""
        return self.costs_of(widths)

    def with_latency(self, times: Times) -> ChannelGraph:
        """The same graph with measured times, so that budgets may limit milliseconds.

        >>> graph = graph.with_latency(sentei.LatencyTable.measure(graph, model))  # doctest: +SKIP
        >>> graph.cost(plan).latency_ms  # doctest: +SKIP
        3.41

        Raises PlanError if the times are those of another model.
        """
        new = copy.copy(self)
        new.costs_of = self.costs_of.with_column("latency_ms", Latency(self.costs_of, self.trace_record, times))
        return new

    @property
    def timed(self) -> bool:
        """Whether milliseconds are known."""
        return "latency_ms" in self.costs_of.columns

    def macs_by_layer(self, plan: HasKeep | None = None) -> dict[str, int]:
        """MACs of the network that `plan` leaves by module, in the order in which they first run: the parts of
        `cost`.

        >>> graph.macs_by_layer()  # doctest: +SKIP
        {'conv1': 442368, 'layer1.0.conv1': 2359296, ...}
        """
        out: dict[str, int] = {}
        parts = self.costs_of.parts("macs", self.widths(plan))
        for product, macs in zip(self.trace_record.contractions, parts, strict=True):
            out[product.where] = out.get(product.where, 0) + int(round(float(macs)))
        return out

    def prunable(self) -> tuple[float, float]:
        """Shares of (MACs, parameters) that some unfrozen group touches."""
        frozen = np.array([g.frozen for g in self.groups], bool)
        none = self.costs_of(np.where(frozen, self.widths(), 0))
        full = self.costs_of(self.widths())
        return 1 - float(none.macs) / max(float(full.macs), 1.0), 1 - float(none.params) / max(float(full.params), 1.0)

    # -- what a plan does to parameters

    def kept_units(self, plan: HasKeep) -> np.ndarray:
        """True for every unit that stays, in the numbering of `grouping`."""
        kept = np.ones(len(self.grouping.group_of), bool)
        for name, idx in self._completed(plan.keep).items():
            units = self.grouping.units[self.index(name)]
            kept[units] = False
            kept[units[idx]] = True
        return kept

    def kept_labels(self, plan: HasKeep) -> np.ndarray:
        """True for every label whose unit stays."""
        return self.kept_units(plan)[self.grouping.unit_of]

    def slot_units(self, plan: HasKeep | None = None) -> dict[tuple[str, int], np.ndarray]:
        """For each (parameter, dimension): the unit at each index that stays; -1 where indices carry no unit."""
        units = self.grouping.unit_of.copy()
        for labels in self.trace_record.inside:
            units[labels.numpy()] = -1
        for made in self.trace_record.made.values():
            own = units[made.start : made.stop]
            own[self.grouping.group_of[own] < 0] = -1
        kept = np.ones(len(units), bool) if plan is None else self.kept_labels(plan)
        starts = self._starts
        return {
            key: units[starts[s] : starts[s + 1]][kept[starts[s] : starts[s + 1]]]
            for key, s in self.trace_record.slots.items()
        }

    def cuts(self, plan: HasKeep) -> Cuts:
        """Per parameter and buffer: the (dimension, kept indices) that the plan selects."""
        kept = self.kept_labels(plan)
        out: dict[str, list[tuple[int, np.ndarray]]] = {}
        for (name, dim), s in self.trace_record.slots.items():
            part = kept[self._starts[s] : self._starts[s + 1]]
            if not part.all():
                out.setdefault(name, []).append((dim, np.flatnonzero(part)))
        return out

    def attributes(self, model: nn.Module, plan: HasKeep, cuts: Cuts) -> list[Attribute]:
        """Module attributes that the plan changes, with their new values; `cuts` are those of the plan."""
        kept = self.kept_labels(plan)
        names = {id(t): n for n, t in named_tensors(model).items()}
        counts = {}
        for i, site in enumerate(self.sites):
            left = stay(site.labels.numpy(), kept)
            if not left.all():
                counts[i] = int(left.sum())
        lost = [m for m in self.trace_record.memories if not stay(m.labels.numpy(), kept).all()]
        given = [*site_values(model, self.sites, counts), *emptied(model, lost)]
        return attributes(model, names, cuts, given)

    def without_memory(self, model: nn.Module) -> nn.Module:
        """The model, or a copy that holds no features of earlier passes if it does."""
        held = emptied(model, self.trace_record.memories)
        return rebuilt(model, {}, held) if held else model

    def stale(self, plan: HasKeep) -> tuple[str, ...]:
        """Plain numbers of modules that may speak of a width that the plan changes, and that a cut leaves alone."""
        kept = self.kept_labels(plan)
        return tuple(f.name for f in self.unfollowed if any(not stay(v, kept).all() for v in f.vectors))

    @property
    def unread(self) -> tuple[str, ...]:
        """Parameters that the forward never reads, in eval and in train mode: they cost memory and do nothing.

        None are known of a model of which a part was traced: the rest of it may read them.
        """
        if self.forward is not None:
            return ()
        return tuple(name for name in self.params if name not in self.trace_record.read)

    def mixing(self, plan: HasKeep) -> tuple[str, ...]:
        """Modules whose statistics run over units that the plan removes (layer norm, softmax over channels, ...)."""
        kept = self.kept_labels(plan)
        hit = [where for labels, where in self.trace_record.mixing if not kept[labels.numpy()].all()]
        return tuple(dict.fromkeys(hit))

    def ordered(self, name: str) -> bool:
        """Whether the order of a group's units matters (a convolution slides over its channels)."""
        g = self.index(name)
        of = self.grouping.group_of[self.grouping.unit_of]
        return any(g in of[v.numpy()] for v in self.trace_record.ordered)

    def check_fits(self, model: nn.Module) -> None:
        """PlanError if the model is not the one (or not built like the one) this graph was traced from."""
        found = {n: tuple(t.shape) for n, t in named_tensors(model).items() if isinstance(t, nn.Parameter)}
        for name in [*self.params, *found]:
            ours, theirs = self.params.get(name, "absent"), found.get(name, "absent")
            if ours != theirs:
                raise PlanError(
                    f"this graph is of another model: parameter {name} is {ours} in the graph and {theirs} here"
                )

    def _structure(self) -> Structure:
        digest = hashlib.sha256(json.dumps(sorted(self.params.items())).encode())
        for g in self.groups:
            digest.update(f"{g.name} {g.width} {g.frozen}".encode())
            for m in g.members:
                digest.update(f"{m.param} {m.dim}".encode() + m.indices.tobytes())
        groups = {g.name: (g.width, g.frozen) for g in self.groups}
        return Structure(
            self.params,
            groups,
            self.inputs.spec(),
            digest.hexdigest(),
            {g.name: self._places(g) for g in self.groups if not g.frozen},
            self.cost().macs,
            tuple(self.trace_record.output_shapes),
            tuple(tuple(self.groups[i].name for i in b) for b in self.bundles),
            None if self.forward is None else name_of(self.forward),
        )

    def _places(self, group: Group) -> tuple[tuple[str, int, int], ...]:
        return tuple((m.param, m.dim, m.indices.shape[1]) for m in group.members if m.param in self.params)
