"""A network as a chain of stages: where it can be taken apart, and how each part runs from the full network's features.

A stage ends where everything that the rest of the network knows of the image is one tensor: the output of a module.
Nothing is rewritten to run stages by themselves. One forward pass of the narrow network hands over what each stage
makes of its input, and goes on with the full network's features instead (`stagewise`).
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from sentei.errors import ConfigError
from sentei.graph import ChannelGraph
from sentei.graph import labels as lab
from sentei.graph.copying import rebuilt
from sentei.graph.dispatch import Dispatcher
from sentei.graph.forward import run
from sentei.graph.graph import HasKeep
from sentei.graph.inputs import Inputs
from sentei.graph.outputs import output_tensors
from sentei.graph.part import part_of
from sentei.graph.resize import carries_units, named_tensors
from sentei.supernet.dataflow import Dataflow, Output, record

Visit = Callable[[int, Tensor], Tensor | None]
Split = Literal["resolution", "block"]


@dataclass(frozen=True, eq=False)
class Boundary:
    """The tensor between two stages."""

    module: str
    """It is this module's output."""
    shape: tuple[int, ...]
    """Without the batch."""
    dim: int
    """Where its channels are."""
    units: np.ndarray
    """The unit of each channel, in the numbering of the graph's grouping; -1 where a channel belongs to none."""

    def kept(self, graph: ChannelGraph, plan: HasKeep) -> Tensor | None:
        """Channels that are left here of the full network's, int64; None where all are."""
        kept = (self.units < 0) | graph.kept_units(plan)[self.units]
        return None if kept.all() else torch.from_numpy(np.flatnonzero(kept))


@dataclass(frozen=True, eq=False)
class Stages:
    """The stages of a network, in order. Made by `find_stages`."""

    names: tuple[str, ...]
    boundaries: tuple[Boundary, ...]
    """One fewer than stages."""
    inside: tuple[np.ndarray, ...]
    """Per stage: groups (places in `graph.groups`) that may shrink and that no other stage sees."""
    between: tuple[np.ndarray, ...]
    """Per boundary: groups that may shrink and live in the two stages beside it alone."""
    terms: Mapping[str, np.ndarray]
    """The stage of each term of `graph.costs_of.parts(name)`, by the name of the cost."""

    def __len__(self) -> int:
        return len(self.names)

    def feature_bytes(self) -> int:
        """Memory of one image's features at all boundaries, in float32."""
        return 4 * sum(int(np.prod(b.shape)) for b in self.boundaries)

    def costs(self, graph: ChannelGraph, name: str, widths: np.ndarray) -> np.ndarray:
        """A cost of each stage at widths [..., n_groups] -> [..., n_stages]; they add up to the network's."""
        parts = graph.costs_of.parts(name, widths)
        return np.stack([parts[..., self.terms[name] == i].sum(-1) for i in range(len(self))], -1)


def find_stages(
    model: nn.Module, graph: ChannelGraph, names: Sequence[str] = (), split: Split = "resolution"
) -> Stages:
    """Take a network apart where the spatial size changes, after each block, or after the modules that are named.

    >>> find_stages(resnet20, graph).names
    ('layer1', 'layer2', 'output')
    >>> find_stages(resnet20, graph, split="block").names
    ('layer1.0', 'layer1.1', 'layer1', 'layer2.0', 'layer2.1', 'layer2', 'layer3.0', 'layer3.1', 'output')

    A block is a module in which something may shrink that no other module sees, and no two parts of which are blocks;
    where there are not more of them than spatial sizes, those decide. `names` are modules in place of either, each of
    which ends a stage; what follows the last one joins it if nothing in there may shrink. Automatic stages in which
    nothing may shrink join the next one. A network that cannot be taken apart is one stage. Raises ConfigError, naming
    the module, for a name that does not exist, is not called exactly once, is out of order, or whose output is not all
    that the rest of the network sees.
    """
    if split not in get_args(Split) or (names and split != "resolution"):
        beside = f" beside stages {', '.join(names)}" if names else ""
        raise ConfigError(f"split is {split!r}{beside}; expected 'resolution' or 'block', and 'resolution' with names")
    flow = record(model, graph)
    ends = _named(model, flow, names) if names else _automatic(flow)
    if split == "block":
        ends = max(ends, _blocks(graph, flow), key=len)
    boundaries, positions = _boundaries(model, graph, [o.module for o in ends])
    left = _worthwhile(graph, flow, ends, boundaries, last_only=bool(names))
    stages = _assemble(graph, flow, [ends[i] for i in left], [boundaries[i] for i in left], positions[left])
    _prove(model, graph, stages)
    return stages


def feature_ends(model: nn.Module, graph: ChannelGraph) -> tuple[Boundary, ...]:
    """The last single tensor of each spatial size: where a network can be compared with another of its kind.

    >>> [b.module for b in feature_ends(resnet20, graph)]
    ['layer1', 'layer2', 'layer3']
    """
    flow = record(model, graph)
    ends = _automatic(flow)
    behind = [o for o in _events(flow) if not ends or flow.order[o.node] < flow.order[ends[-1].node]]
    ends += [o for o in behind if np.prod(_size(o)) > 1][-1:]
    return _boundaries(model, graph, [o.module for o in ends])[0]


@contextmanager
def visiting(model: nn.Module, boundaries: Sequence[Boundary], visit: Visit) -> Iterator[None]:
    """Show the features at each boundary to `visit(i, features)`, and go on with what it returns, if anything."""
    modules = dict(model.named_modules())
    hooks = [
        modules[b.module].register_forward_hook(lambda _, __, out, i=i: visit(i, out)) for i, b in enumerate(boundaries)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


# -- where to cut


def _automatic(flow: Dataflow) -> list[Output]:
    """The last single tensor before each change of the spatial size; a pool belongs to the layers before it."""
    events = _events(flow)
    ends: list[Output] = []
    size: tuple[int, ...] | None = None
    first = 0
    for i, (before, after) in enumerate(zip(events, events[1:], strict=False), 1):
        size = size or _size(before)
        if after.layers > before.layers and _size(after) != size:
            ends.append(_outside(events[first:i], after, events))
            size, first = _size(after), i
    return ends


def _blocks(graph: ChannelGraph, flow: Dataflow) -> list[Output]:
    """The outputs of blocks: with two blocks in it a module is none, with one it is that block with what is around."""
    places = [{m.param for m in group.members} for group in graph.groups if not group.frozen]
    single = {o.module: o.node for o in flow.outputs if _is_single(flow, o)}
    found: list[str] = []
    for name in sorted(single, key=lambda name: -name.count(".")):
        parts = [block for block in found if block.startswith(f"{name}.")]
        if len(parts) < 2 and any(all(p.startswith(f"{name}.") for p in params) for params in places):
            found = [block for block in found if block not in parts] + [name]
    ends = {single[name] for name in found}
    return [out for out in _events(flow) if out.node in ends]


def _events(flow: Dataflow) -> list[Output]:
    """Modules' outputs with a spatial size that are single tensors, as data flow; the outermost module of each."""
    seen: dict[Any, Output] = {}
    for out in flow.outputs:
        nested = out.node in seen and out.module.count(".") >= seen[out.node].module.count(".")
        if _is_single(flow, out) and not nested:
            seen[out.node] = out
    return sorted(seen.values(), key=lambda o: -flow.order[o.node])


def _is_single(flow: Dataflow, out: Output) -> bool:
    return out.node in flow.cuts and flow.calls[out.module] == 1 and not out.overwritten and out.tensor.ndim > 2


def _outside(candidates: Sequence[Output], after: Output, events: Sequence[Output]) -> Output:
    """The last candidate that is not inside the very block that changes the size."""
    last, inner = candidates[-1], after.module.split(".")
    shared = [a for a, b in zip(last.module.split("."), inner, strict=False) if a == b]
    while shared and last.module.startswith(block := ".".join(shared)):
        if any(e.module == block and _size(e) == _size(after) for e in events):
            free = [c for c in candidates if not c.module.startswith(f"{block}.")]
            return free[-1] if free else last
        shared.pop()
    return last


def _size(out: Output) -> tuple[int, ...]:
    return tuple(out.tensor.shape[2:])


def _named(model: nn.Module, flow: Dataflow, names: Sequence[str]) -> list[Output]:
    known = [n for n, _ in model.named_modules() if n]
    outputs = {o.module: o for o in flow.outputs}
    ends: list[Output] = []
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, 3, 0.4)
            hint = f"did you mean {' or '.join(near)}?" if near else f"its first modules are {', '.join(known[:8])}"
            raise ConfigError(f"no module {name!r} in this model to end a stage; {hint}")
        if flow.calls[name] != 1:
            times = f"{flow.calls[name]} times" if flow.calls[name] else "never"
            raise ConfigError(f"module {name} is called {times} in a forward pass; a stage ends at a single call")
        if name in flow.several or name not in outputs:
            raise ConfigError(f"module {name} does not return one tensor that depends on the input; a stage must")
        out = outputs[name]
        _check_single(flow, out)
        if ends and flow.order[out.node] >= flow.order[ends[-1].node]:
            raise ConfigError(f"stages {ends[-1].module} and {name} do not chain: name them as data flows, each once")
        ends.append(out)
    return ends


def _check_single(flow: Dataflow, out: Output) -> None:
    name = out.module
    if out.node not in flow.order:
        raise ConfigError(f"the network's output does not depend on module {name}, so no stage can end there")
    if out.node not in flow.cuts:
        other = flow.bypass(out.node)
        around = f"the output of module {other}" if other else "the network's input"
        raise ConfigError(
            f"no stage can end at module {name}: what follows would have several inputs, because {around} also "
            "reaches it. Name a module through whose output everything flows"
        )
    if out.overwritten:
        raise ConfigError(
            f"no stage can end at module {name}: what follows overwrites its output in place. Name the module that does"
        )


# -- what belongs to which stage


def _worthwhile(
    graph: ChannelGraph, flow: Dataflow, ends: Sequence[Output], boundaries: Sequence[Boundary], last_only: bool
) -> list[int]:
    """Which ends stay, where stages in which nothing may shrink join another; `last_only`: only the last one may."""
    member, at = _members(graph, _parameters(flow, ends)), _crossing(graph, boundaries)
    left = list(range(len(ends)))
    while left:
        inside = member & _alone(member, at)
        empty = [i for i in range(len(member)) if not inside[i].any() and (i == len(left) or not last_only)]
        if not empty:
            break
        gone = min(empty[0], len(left) - 1)
        member[gone] |= member[gone + 1]
        member, at = np.delete(member, gone + 1, 0), np.delete(at, gone, 0)
        del left[gone]
    return left


def _parameters(flow: Dataflow, ends: Sequence[Output]) -> list[set[str]]:
    """Of each stage."""
    starts = [[e.node] for e in ends] + [list(flow.roots)]
    stops = [None, *(e.node for e in ends)]
    return [flow.parameters(start, stop) for start, stop in zip(starts, stops, strict=True)]


def _members(graph: ChannelGraph, params: Sequence[set[str]]) -> np.ndarray:
    """Which groups that may shrink live in each stage [n_stages, n_groups], by the parameters of each."""
    member = np.zeros((len(params), len(graph.groups)), bool)
    for g, group in enumerate(graph.groups):
        places = {m.param for m in group.members}
        member[:, g] = [not group.frozen and bool(places & p) for p in params]
    return member


def _crossing(graph: ChannelGraph, boundaries: Sequence[Boundary]) -> np.ndarray:
    """Which groups have units at each boundary [n_boundaries, n_groups]."""
    at = np.zeros((len(boundaries), len(graph.groups)), bool)
    for i, b in enumerate(boundaries):
        at[i, graph.grouping.group_of[b.units[b.units >= 0]]] = True
    return at


def _alone(member: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Groups that one stage sees, and no boundary."""
    found: np.ndarray = (member.sum(0) == 1) & ~at.any(0)
    return found


def _assemble(
    graph: ChannelGraph, flow: Dataflow, ends: Sequence[Output], boundaries: Sequence[Boundary], positions: np.ndarray
) -> Stages:
    """`positions`: how many contractions have run until each boundary."""
    n, params = len(ends) + 1, _parameters(flow, ends)
    member, at = _members(graph, params), _crossing(graph, boundaries)
    alone = _alone(member, at)
    inside = tuple(np.flatnonzero(member[i] & alone) for i in range(n))
    between = tuple(
        np.flatnonzero(at[i] & (at.sum(0) == 1) & (member.sum(0) == 2) & member[i] & member[i + 1])
        for i in range(len(ends))
    )
    stage_of = {p: i for i in reversed(range(n)) for p in params[i]}
    contraction = np.searchsorted(positions, np.arange(len(graph.trace_record.contractions)), side="right")
    terms = {
        "macs": contraction,
        "activation_bytes": contraction,
        "latency_ms": contraction,
        "params": np.array([stage_of.get(p, n - 1) for p in graph.params], np.int64),
    }
    return Stages((*(b.module for b in boundaries), "output"), tuple(boundaries), inside, between, terms)


def _boundaries(model: nn.Module, graph: ChannelGraph, ends: Sequence[str]) -> tuple[tuple[Boundary, ...], np.ndarray]:
    """The units at each boundary, and how many contractions have run until there."""
    model = rebuilt(model, {}).eval()
    sources = {id(t): n for n, t in named_tensors(model).items() if carries_units(t) and t.ndim}
    mode = Dispatcher(sources, units=graph.slot_units())
    found: list[Boundary] = []
    positions: list[int] = []
    bare = [Boundary(name, (), 1, np.zeros(0, np.int64)) for name in ends]

    def visit(i: int, out: Tensor) -> None:
        layers = [(d, layer) for layer in mode.layers(out) for d in lab.varying(layer)]
        dim = layers[0][0] if len(layers) == 1 else 1
        units = lab.first_along(layers[0][1], dim).numpy() if len(layers) == 1 else np.full(out.shape[dim], -1)
        found.append(Boundary(ends[i], tuple(out.shape[1:]), dim, units))
        positions.append(len(mode.trace.contractions))

    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    with visiting(model, bare, visit):
        run(mode, model, Inputs(*graph.inputs.filled(device)), graph.forward)
    return tuple(found), np.array(positions, np.int64)


def _prove(model: nn.Module, graph: ChannelGraph, stages: Stages) -> None:
    """On another image, with the first one's features put in at a boundary, the output must be the first one's."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    features: dict[int, Tensor] = {}

    def keep(i: int, out: Tensor) -> None:
        features[i] = out.clone()

    model = rebuilt(model, {}).eval()
    part = part_of(model, graph.forward)
    with torch.no_grad():
        args, kwargs = graph.inputs.filled(device)
        with visiting(model, stages.boundaries, keep):
            expected = output_tensors(part(*args, **kwargs))
        for i, boundary in enumerate(stages.boundaries):
            args, kwargs = graph.inputs.filled(device, seed=1)
            with visiting(model, [boundary], lambda _, __, i=i: features[i].clone()):  # type: ignore[misc]
                found = output_tensors(part(*args, **kwargs))
            if not all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)):
                raise ConfigError(
                    f"no stage can end at module {boundary.module}: what follows also reads something else. Name a "
                    "module through whose output everything flows"
                )
