"""What autograd recorded of one forward pass: which module made which tensor, and through which all data flows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sentei.errors import TraceError
from sentei.graph import ChannelGraph
from sentei.graph.outputs import output_tensors
from sentei.graph.part import part_of, whose
from sentei.graph.resize import modes_kept, named_tensors, swapped

Node = Any
"""A node of the autograd graph."""


@dataclass(frozen=True, eq=False)
class Output:
    """The tensor that one call of a module returned. `layers`: calls of layers with weights until then."""

    module: str
    tensor: Tensor
    node: Node
    version: int
    layers: int

    @property
    def overwritten(self) -> bool:
        """Whether something has changed the tensor in place since."""
        return self.tensor._version != self.version


@dataclass(frozen=True, eq=False)
class Dataflow:
    """One forward pass. `order` numbers the nodes between input and output, from the output (0) down."""

    outputs: tuple[Output, ...]
    calls: Counter[str]
    several: frozenset[str]
    """Modules that returned something else than one tensor."""
    roots: tuple[Node, ...]
    order: dict[Node, int]
    cuts: frozenset[Node]
    """Nodes through which everything flows that the output knows of the input."""
    names: dict[Node, str]
    """Parameter names of leaves."""

    def parameters(self, start: Iterable[Node], stop: Node | None) -> set[str]:
        """Parameters that nodes from `start` depend on, without what lies behind `stop`."""
        return {self.names[n] for n in _reachable(start, stop) if n in self.names}

    def bypass(self, node: Node) -> str | None:
        """A module whose output reaches the network's output around `node`; None where the input itself does."""
        depth, made = self.order[node], {o.node: o.module for o in self.outputs}
        behind = (n for n in _reachable(self.roots, node) if n in self.order and self.order[n] > depth)
        around = sorted((n for n in behind if n in made), key=self.order.__getitem__)
        return made[around[0]] if around else None


def record(model: nn.Module, graph: ChannelGraph) -> Dataflow:
    """Run the model once on random inputs of the graph's shapes, and read what autograd recorded."""
    named = {n: t for n, t in named_tensors(model).items() if isinstance(t, nn.Parameter) and t.is_floating_point()}
    copies = {n: t.detach().requires_grad_() for n, t in named.items()}
    device = next((t.device for t in named.values()), torch.device("cpu"))
    args, kwargs = graph.inputs.filled(device)
    leaves = [t.requires_grad_() for t in output_tensors([args, kwargs]) if t.is_floating_point()]
    calls: Counter[str] = Counter()
    several: set[str] = set()
    outputs: list[Output] = []
    layers = 0

    def note(name: str, module: nn.Module, out: Any) -> None:
        nonlocal layers
        layers += any(p is not None and p.ndim > 1 for p in module._parameters.values())
        calls[name] += 1
        if not isinstance(out, Tensor):
            several.add(name)
        elif out.grad_fn is not None:
            outputs.append(Output(name, out, out.grad_fn, out._version, layers))

    handles = [
        m.register_forward_hook(lambda module, _, out, name=name: note(name, module, out))
        for name, m in model.named_modules()
        if name
    ]
    try:
        with modes_kept(model), torch.enable_grad(), swapped(model, {id(named[n]): copies[n] for n in named}):
            model.eval()
            # Clones, because a model may write into its input.
            part = part_of(model, graph.forward)
            found = part(*(_clone(a) for a in args), **{k: _clone(v) for k, v in kwargs.items()})
    except Exception as error:
        what = "the model" if graph.forward is None else whose(graph.forward)
        raise TraceError(f"{what} failed on inputs {graph.inputs}: {type(error).__name__}: {error}") from error
    finally:
        for handle in handles:
            handle.remove()
    roots = tuple(t.grad_fn for t in output_tensors(found) if t.grad_fn is not None)
    ids = {id(t) for t in leaves}
    order, cuts = _cut_nodes(roots, lambda n: id(getattr(n, "variable", None)) in ids)
    by_id = {id(t): n for n, t in copies.items()}
    names = {n: by_id[id(n.variable)] for n in _reachable(roots) if id(getattr(n, "variable", None)) in by_id}
    return Dataflow(tuple(outputs), calls, frozenset(several), roots, order, cuts, names)


def _clone(x: Any) -> Any:
    return x.clone() if isinstance(x, Tensor) else x


def _parents(node: Node) -> Iterator[Node]:
    return (n for n, _ in node.next_functions if n is not None)


def _reachable(start: Iterable[Node], stop: Node | None = None) -> set[Node]:
    seen: set[Node] = set()
    stack = [n for n in start if n is not stop]
    while stack:
        node = stack.pop()
        if node not in seen:
            seen.add(node)
            stack.extend(n for n in _parents(node) if n is not stop)
    return seen


def _topological(roots: Sequence[Node]) -> list[Node]:
    """All nodes behind the roots, each before what it was computed from."""
    done: list[Node] = []
    seen: set[Node] = set()
    stack = [(n, False) for n in roots]
    while stack:
        node, left = stack.pop()
        if left:
            done.append(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack.extend((n, False) for n in _parents(node) if n not in seen)
    return done[::-1]


def _cut_nodes(roots: Sequence[Node], is_input: Any) -> tuple[dict[Node, int], frozenset[Node]]:
    """Nodes between input and output in topological order, and those that no path from input to output avoids.

    A node is one of those if no edge of the ordered graph spans its place.
    """
    every = _topological(roots)
    active: set[Node] = set()
    for node in reversed(every):
        if is_input(node) or any(n in active for n in _parents(node)):
            active.add(node)
    order = {node: i for i, node in enumerate(n for n in every if n in active)}
    furthest = max((order[n] for n in roots if n in order), default=-1)
    cuts = set()
    for node, place in order.items():
        if furthest <= place:
            cuts.add(node)
        ends = len(order) if is_input(node) else max(order[n] for n in _parents(node) if n in active)
        furthest = max(furthest, ends)
    return order, frozenset(cuts)
