"""Trial cuts: run the model as a plan would leave it, on meta tensors, and see whether it follows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from sentei.graph.bundles import steps_of
from sentei.graph.dispatch import Dispatcher
from sentei.graph.forward import as_numpy
from sentei.graph.graph import ChannelGraph, HasKeep
from sentei.graph.inputs import Inputs
from sentei.graph.measure import other_sizes
from sentei.graph.record import At, Numbers, Occurrence, tied_pairs
from sentei.graph.rehearsal import rehearse
from sentei.graph.resize import cut_shape, named_tensors

Atom = tuple[tuple[int, ...], int]
"""What shrinks on its own, a group or a bundle of groups that keep the same share, with its number of steps."""
NARROW = 7
"""Groups of at most so many units are tried at each of their widths."""
SHARES = ((0.75, 0.95), (0.15, 0.35), (0.4, 0.8))
"""Ranges of the shares that are kept in the trials after the first."""


@dataclass(frozen=True)
class Keep:
    """The least that the graph needs of a plan."""

    keep: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Mismatch:
    """Why a cut model is not wired as the graph says; `units` are those at fault, `at` the operation that showed it."""

    message: str
    units: np.ndarray
    where: str
    at: At = At(0, 0)

    def why(self) -> str:
        return f"cannot shrink: {self.message}" + (f" (in {self.where})" if self.where else "")


def mismatch(
    model: nn.Module,
    graph: ChannelGraph,
    plan: HasKeep,
    inputs: Inputs | None = None,
    swap: bool = False,
    numbers: dict[Occurrence, Numbers] | None = None,
) -> Mismatch | None:
    """Run a cut model on the units of the graph: wherever two channels meet, they must be of one unit. None: they are.

    With `swap`, `model` is the full model and is cut for the duration. `numbers` takes in the plain numbers that the
    cut model computes with.
    """
    wrong = None if swap else _wrong_shape(named_tensors(model), graph, plan)
    if wrong is not None:
        return wrong
    mode = Dispatcher({}, units=graph.slot_units(plan))
    cuts = graph.cuts(plan) if swap else {}
    attrs = graph.attributes(model, plan, cuts) if swap else []
    failed = None
    try:
        rehearse(mode, model, inputs or graph.inputs, cuts, attrs, graph.trace_record.training, graph.forward)
    except Exception:
        assert mode.failed is not None
        f = mode.failed
        failed = Mismatch(f.message, as_numpy(f.layers), f.where, f.at)
        f.error.__traceback__ = None  # its frames hold all tensors of the pass, in a cycle
    if numbers is not None:
        numbers.update(mode.trace.numbers)
    a, b, event = tied_pairs(mode.trace)
    if len(a):
        tie = mode.trace.ties[event[0]]
        first = event == event[0]
        units = np.concatenate([a[first], b[first]])
        return Mismatch("channels no longer meet the same channels", units, tie.where, tie.at)
    if failed is None and inputs is None and mode.trace.output_shapes != graph.trace_record.output_shapes:
        shapes = f"{mode.trace.output_shapes} instead of {graph.trace_record.output_shapes}"
        failed = Mismatch(f"the outputs are {shapes}", np.zeros(0, np.int64), "", mode.at)
    kept = graph.kept_labels(plan)
    strayed = other_sizes(graph.trace_record, mode.trace, kept, failed is None, inputs is None)
    found = None
    if strayed is not None:
        labels = strayed.labels
        found = Mismatch(strayed.message, graph.grouping.unit_of[labels[labels >= 0]], strayed.where, strayed.at)
    return min((f for f in (found, failed) if f), key=lambda f: f.at.op, default=None)


def _wrong_shape(found: Mapping[str, Tensor], graph: ChannelGraph, plan: HasKeep) -> Mismatch | None:
    """The first parameter of a cut model whose shape is not what the plan leaves."""
    cuts = graph.cuts(plan)
    for name, shape in graph.params.items():
        expected = tuple(cut_shape(shape, cuts.get(name, ())))
        if name not in found or tuple(found[name].shape) != expected:
            have = tuple(found[name].shape) if name in found else "absent"
            text = f"parameter {name} has the wrong size: {have}, the plan leaves {expected}"
            return Mismatch(text, np.zeros(0, np.int64), "")
    return None


def trial_plans(graph: ChannelGraph) -> list[Keep]:
    """Plans that together show whether the model's own code follows any widths, the first of them by itself most.

    One suffices where the code never met a size that it may have computed. Otherwise shares vary from trial to trial,
    narrow groups go through all their widths, and any two groups of one width differ at least once. Only the last ones
    keep single units, since a size of one could pass by broadcasting.
    """
    first = trial_plan(graph)
    if not graph.trace_record.sized or not first.keep:
        return [first]
    rng = np.random.default_rng(1)
    atoms = _atoms(graph)
    ranks = _ranks(atoms)
    rounds = max([len(SHARES), *(n - 2 + _digits(max(ranks), n - 2) for _, n in atoms if 3 < n <= NARROW)])
    widths = sorted({n for _, n in atoms})
    plans = [first]
    for i in range(rounds):
        share = {n: rng.uniform(*SHARES[(i + k) % len(SHARES)]) for k, n in enumerate(widths)}
        steps = [_step(n, rank, i, share[n]) if n > 3 else n - 1 for (_, n), rank in zip(atoms, ranks, strict=True)]
        plans.append(_plan(graph, atoms, steps, rng))
    return [p for p in (*plans, *_narrow_plans(graph, atoms, rng)) if p.keep]


def _ranks(atoms: Sequence[Atom]) -> list[int]:
    """For each atom: how many before it have its width."""
    seen: dict[int, int] = defaultdict(int)
    ranks = []
    for _, n in atoms:
        ranks.append(seen[n])
        seen[n] += 1
    return ranks


def _digits(rank: int, base: int) -> int:
    """How many digits a rank has."""
    return 1 + _digits(rank // base, base) if rank >= base else 1


def _step(n: int, rank: int, trial: int, share: float) -> int:
    """How much of n > 3 stays, 2 to n - 1. In each trial another digit of the rank says by how much more it is than
    what others of the same width keep: what keeps as much as another would pass for its follower."""
    choices = n - 2
    base = min(choices, NARROW)
    if n > NARROW:
        return 2 + (round(n * share) - 2 + rank // base ** (trial % len(SHARES)) % base) % choices
    return 2 + (trial + rank // base ** max(trial - choices + 1, 0) % base) % choices


def _narrow_plans(graph: ChannelGraph, atoms: Sequence[Atom], rng: np.random.Generator) -> Iterator[Keep]:
    """Keep single units of all narrow groups, then of some groups of two or three, so that any two differ once."""
    yield _plan(graph, atoms, [1 if n <= NARROW else n // 2 for _, n in atoms], rng)
    narrow = [i for i, (_, n) in enumerate(atoms) if n <= 3]
    for bit in range(len(narrow).bit_length()):
        for side in (0, 1):
            steps = [max(n // 2, 2) if n > 3 else n for _, n in atoms]
            for rank, i in enumerate(narrow, 1):
                if rank >> bit & 1 == side:
                    steps[i] = 1
            yield _plan(graph, atoms, steps, rng)


def trial_plan(graph: ChannelGraph, only: Iterable[int] | None = None, seed: int = 0) -> Keep:
    """Keep about half of every unfrozen group: random units, and a number that no even split could pass by luck."""
    rng = np.random.default_rng(seed)
    wanted = None if only is None else set(only)
    atoms = [(members, n) for members, n in _atoms(graph) if wanted is None or wanted.intersection(members)]
    steps: list[int] = []
    for _, width in atoms:
        n = np.arange(1, width)
        awkward = n[(n % 2 > 0) & (n % 3 > 0) & (n > 1)]
        choice = awkward if len(awkward) else n[-1:]
        nearest = choice[np.argsort(np.abs(choice - width * rng.uniform(0.4, 0.7)), kind="stable")]
        alike = sum(other == width for _, other in atoms[: len(steps)])
        steps.append(int(nearest[alike % min(len(nearest), 4)]))
    return _plan(graph, atoms, steps, rng)


def _atoms(graph: ChannelGraph) -> list[Atom]:
    bundled = {i for b in graph.bundles for i in b}
    atoms: list[Atom] = [
        ((i,), g.width) for i, g in enumerate(graph.groups) if i not in bundled and not g.frozen and g.width > 1
    ]
    for b in graph.bundles:
        if not graph.groups[b[0]].frozen:
            atoms.append((b, steps_of(graph.groups[i].width for i in b)))
    return [a for a in atoms if a[1] > 1]


def _plan(graph: ChannelGraph, atoms: Sequence[Atom], steps: Sequence[int], rng: np.random.Generator) -> Keep:
    keep = {}
    for (members, total), n in zip(atoms, steps, strict=True):
        for i in members:
            g = graph.groups[i]
            if n < total:
                keep[g.name] = np.sort(rng.permutation(g.width)[: g.width // total * n])
    return Keep(keep)
