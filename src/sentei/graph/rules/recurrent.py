"""Recurrent layers, each as one operation: LSTM, GRU and RNN with their layers, directions and projections, and cells.

The rows of the weights are gates times hidden units: unit h has the rows h, H + h, 2 H + h, ... of `weight_ih`,
`weight_hh` and the biases. `weight_hh` reads the state of the step before, `weight_hr` projects hidden units to the
state, and the next layer reads the states of both directions. PyTorch gives all layers and directions one size, so
their units are tied: unit h goes everywhere or nowhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sentei.graph import labels as lab
from sentei.graph.calls import COUNTED, MIXERS, Call, rule
from sentei.graph.rules.contraction import add_product, contract, size_along, split_layers
from sentei.graph.shapes import MIXED, SHAPES
from sentei.graph.tracer import LabelMode
from sentei.graph.whole import CELLS, PACKED, RECURRENT

LAYERS = (*RECURRENT, *CELLS)
ONE_SIZE = "all layers, directions and states of a recurrent layer have one size"
PROJECTED = "PyTorch wants hidden_size > proj_size, so so many hidden units stay"
TIME = "varies over time in a recurrent layer"


@dataclass(frozen=True)
class Cell:
    """The weights of one direction of one layer."""

    w_ih: Tensor
    w_hh: Tensor
    biases: tuple[Tensor, ...]
    w_hr: Tensor | None

    @property
    def hidden(self) -> int:
        return (self.w_hh if self.w_hr is None else self.w_hr).shape[1]

    @property
    def state(self) -> int:
        """Size of the output: hidden units, or what they are projected to."""
        return self.w_hh.shape[1]

    @property
    def gates(self) -> int:
        return self.w_ih.shape[0] // self.hidden

    def check(self, name: str, size: int) -> None:
        """RuntimeError if the weights do not fit each other or an input of `size`."""
        rows = self.gates * self.hidden
        expected: dict[str, tuple[Tensor, tuple[int, ...]]] = {
            "weight_ih": (self.w_ih, (rows, size)),
            "weight_hh": (self.w_hh, (rows, self.state)),
        }
        expected |= {f"bias {i}": (b, (rows,)) for i, b in enumerate(self.biases)}
        if self.w_hr is not None:
            expected["weight_hr"] = (self.w_hr, (self.state, self.hidden))
        for what, (weight, shape) in expected.items():
            if tuple(weight.shape) != shape:
                raise RuntimeError(f"{what} of {name} is {tuple(weight.shape)}, expected {shape}")


@dataclass(frozen=True)
class Parts:
    """The arguments of a recurrent operation, whatever its kind. `cells` are [layers][directions]."""

    x: Tensor
    states: tuple[Tensor, ...]
    cells: list[list[Cell]]

    @property
    def first(self) -> Cell:
        return self.cells[0][0]


def parts(name: str, args: Sequence[Any]) -> Parts:
    """From the arguments of `aten.lstm` and its relatives (for padded or packed sequences) or of a cell."""
    if name.endswith("_cell"):
        x, hx, w_ih, w_hh, *biases = args
        cell = Cell(w_ih, w_hh, tuple(b for b in biases if b is not None), None)
        return Parts(x, _states(hx), [[cell]])
    packed = isinstance(args[3], (list, tuple))
    x, hx, params, has_biases, layers = args[0], *args[1 + packed : 5 + packed]
    directions = 2 if args[7 + packed] else 1
    each = len(params) // (layers * directions)
    plain = 4 if has_biases else 2
    cells = []
    for start in range(0, len(params), each):
        own = params[start : start + each]
        cells.append(Cell(own[0], own[1], tuple(own[2:plain]), own[plain] if each > plain else None))
    return Parts(x, _states(hx), [cells[i : i + directions] for i in range(0, len(cells), directions)])


def _states(hx: Any) -> tuple[Tensor, ...]:
    return tuple(hx) if isinstance(hx, (list, tuple)) else (hx,)


# -- shapes


def _shape(name: str) -> Any:
    def shape(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        p = parts(name, args)
        size = p.x.shape[-1]
        for layer in p.cells:
            for cell in layer:
                cell.check(name, size)
                if (cell.hidden, cell.state) != (p.first.hidden, p.first.state):
                    raise RuntimeError(ONE_SIZE)
            size = len(layer) * layer[0].state
        for t, n in zip(p.states, (p.first.state, p.first.hidden), strict=False):
            if t.shape[-1] != n:
                raise RuntimeError(f"a state of {name} has size {t.shape[-1]}, expected {n}")
        states = tuple(torch.empty(t.shape, dtype=p.x.dtype, device="meta") for t in p.states)
        if name.endswith("_cell"):
            return states if len(states) > 1 else states[0]
        lead = list(p.x.shape[:-1])
        if len(lead) == 2 and args[-1]:  # batch first: computed the other way round
            return torch.empty((lead[1], lead[0], size), dtype=p.x.dtype, device="meta").transpose(0, 1), *states
        return torch.empty((*lead, size), dtype=p.x.dtype, device="meta"), *states

    return shape


# -- labels


@rule(*(f"aten.{name}" for name in LAYERS))
def recurrent(mode: LabelMode, call: Call) -> None:
    p = parts(call.name.removeprefix("aten."), call.args)
    last = p.x.ndim - 1
    x, rest = split_layers(mode, mode.layers(p.x), last)
    across = [layer for layer in rest if _over_batch(mode, layer, call)]
    state = hidden = None
    for depth, layer in enumerate(p.cells):
        units = [_cell(mode, cell, x, depth) for cell in layer]
        if state is None and hidden is None:
            state, hidden = units[0]
        for own_state, own_hidden in units:
            _together(mode, own_state, state)
            _together(mode, own_hidden, hidden)
        _count(mode, call, p, layer, x)
        x = _joined([u for u, _ in units], layer[0].state)
    for t, units_of in zip(p.states, (state, hidden), strict=False):
        _tie_state(mode, t, units_of)
    _put(mode, call, (state, hidden), x, across)


def _cell(mode: LabelMode, cell: Cell, x: Tensor | None, depth: int) -> tuple[Tensor | None, Tensor | None]:
    """Labels of the state and of the hidden units, after all that meets in this cell was tied."""
    rows, columns = [], []
    for w in (cell.w_ih, cell.w_hh):
        row, rest = split_layers(mode, mode.layers(w), 0)
        column, _ = split_layers(mode, tuple(rest), 1)
        rows.append(row)
        columns.append(column)
    rows += [split_layers(mode, mode.layers(b), 0)[0] for b in cell.biases]
    contract(mode, x, columns[0])
    hidden = next((r.reshape(cell.gates, -1)[0] for r in rows if r is not None), None)
    for row in rows:
        contract(mode, None if row is None else row.reshape(cell.gates, -1), hidden)
    state = hidden
    if cell.w_hr is not None:
        state, rest = split_layers(mode, mode.layers(cell.w_hr), 0)
        contract(mode, hidden, split_layers(mode, tuple(rest), 1)[0])
        if hidden is not None:
            mode.freeze(hidden[: cell.state + 1], PROJECTED)
        if state is not None:
            mode.trace.produced.append(state)
    contract(mode, state, columns[1])
    if hidden is not None:
        mode.trace.produced.append(hidden)
        mode.mixes(hidden)
        mode.site("hidden_size", hidden)
    if depth == 0 and columns[0] is not None:
        mode.site("input_size", columns[0])
    if cell.w_hr is not None and state is not None:
        mode.mixes(state)
        mode.site("proj_size", state)
    return state, hidden


def _together(mode: LabelMode, a: Tensor | None, b: Tensor | None) -> None:
    if a is not b:
        contract(mode, a, b)


def _joined(states: Sequence[Tensor | None], size: int) -> Tensor | None:
    if all(s is None for s in states):
        return None
    return torch.cat([torch.full((size,), lab.NONE) if s is None else s for s in states])


def _over_batch(mode: LabelMode, layer: Tensor, call: Call) -> bool:
    """Units along the batch pass, as sequences are independent of each other."""
    if call.name.endswith("_cell"):
        batch = 0
    elif call.has("batch_sizes"):
        batch = -1
    else:
        batch = 0 if call["batch_first"] else 1
    if lab.varying(layer) == (batch,):
        return True
    mode.freeze(layer, TIME)
    return False


def _tie_state(mode: LabelMode, t: Tensor, units: Tensor | None) -> None:
    """An initial state that carries units must carry those of the layer; zeros are made in the right size."""
    for layer in mode.layers(t):
        small = lab.narrow(layer, lab.varying(layer))
        if units is not None and t.ndim - 1 in lab.varying(layer):
            mode.tie(small, units.expand_as(small), ONE_SIZE)
        elif lab.varying(layer) != (t.ndim - 2,):
            mode.freeze(layer, TIME)


def _put(
    mode: LabelMode, call: Call, units: Sequence[Tensor | None], out: Tensor | None, across: Sequence[Tensor]
) -> None:
    """Labels of the outputs: the sequence of states (unless it is a cell), then the last states."""
    tensors = call.outputs()
    along = list(units[: len(tensors)])
    if not call.name.endswith("_cell"):
        along = [out, *units[: len(tensors) - 1]]
    for t, own in zip(tensors, along, strict=True):
        layers = [] if own is None else [lab.place(own, t.ndim - 1, t.shape)]
        for layer in across:
            units_along = lab.first_along(layer, lab.varying(layer)[0])
            sequence = t is tensors[0] and not call.name.endswith("_cell")
            layers.append(lab.place(units_along, lab.varying(layer)[0] if sequence else t.ndim - 2, t.shape))
        mode.put(t, layers)


def _count(mode: LabelMode, call: Call, p: Parts, layer: Sequence[Cell], x: Tensor | None) -> None:
    """Steps times batch times (gates x hidden x (input + state) + hidden x state), for each direction."""
    steps = [size_along(p.x, mode, d) for d in range(p.x.ndim - 1)]
    for cell in layer:
        pair = {}
        for name, w in (("ih", cell.w_ih), ("hh", cell.w_hh), ("hr", cell.w_hr)):
            if w is not None:
                pair[name] = [size_along(w, mode, 0), size_along(w, mode, 1)]
        state = (pair["hr"] if "hr" in pair else pair["hh"])[0 if "hr" in pair else 1]
        add_product(mode, call, 1, (*steps, *pair.pop("ih")), (*steps, state))
        for sizes in pair.values():
            add_product(mode, call, 1, (*steps, *sizes), (0,))


# -- the reference


def _kept(mode: LabelMode, call: Call) -> Any:
    """Reference run: nothing reads a removed unit, neither the layer's own next step nor the next layer."""
    name, args = call.name.removeprefix("aten."), list(call.args)
    p = parts(name, args)
    args[0] = mode.silence(p.x, [p.x.ndim - 1])
    first = {id(cell.w_ih) for cell in p.cells[0]}
    recurrent = {id(t) for layer in p.cells for c in layer for t in (c.w_ih, c.w_hh, c.w_hr) if t is not None}
    reads = recurrent - first

    def silenced(a: Any) -> Any:
        if isinstance(a, Tensor):
            return _columns_kept(mode, a) if id(a) in reads else a
        return [silenced(b) for b in a] if isinstance(a, (list, tuple)) else a

    return call.func(args[0], *(silenced(a) for a in args[1:]), **call.kwargs)


def _columns_kept(mode: LabelMode, w: Tensor) -> Tensor:
    for _, idx in mode.kept_along(w, [1]).items():
        w = torch.zeros_like(w).index_copy_(1, idx, w.index_select(1, idx))
    return w


# -- packed sequences


def _pack_shape(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Lengths without values are taken to be full: what is cut does not depend on them."""
    x, lengths, batch_first = args
    batch, time = x.shape[:2] if batch_first else (x.shape[1], x.shape[0])
    sizes = torch.full((time,), batch)
    if not lengths.is_meta:
        sizes = (lengths[None] > torch.arange(int(lengths.max()))[:, None]).sum(1)
    return torch.empty((int(sizes.sum()), *x.shape[2:]), dtype=x.dtype, device="meta"), sizes


def _pad_shape(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    data, sizes, batch_first, _, total = args
    time = total if total > 0 else len(sizes)
    lead = (int(sizes[0]), time) if batch_first else (time, int(sizes[0]))
    lengths = (sizes[:, None] > torch.arange(int(sizes[0]))[None]).sum(0)
    return torch.empty((*lead, *data.shape[1:]), dtype=data.dtype, device="meta"), lengths


@rule(*(f"aten.{name}" for name in PACKED))
def packed(mode: LabelMode, call: Call) -> None:
    """Batch and time become one dimension, and two again; features stay."""
    x, out = call.args[0], call.out[0]
    lead = 2 if call.name == "aten._pack_padded_sequence" else 1
    layers = []
    for layer in mode.layers(x):
        if min(lab.varying(layer)) < lead:
            mode.freeze(layer, TIME)
        else:
            small = lab.narrow(layer, lab.varying(layer))
            layers.append(small.reshape(*[1] * (3 - lead), *small.shape[lead:]).expand(out.shape))
    mode.put(out, layers)


SHAPES.update({"aten._pack_padded_sequence": _pack_shape, "aten._pad_packed_sequence": _pad_shape})
MIXED.update(f"aten.{name}" for name in PACKED)
COUNTED.update(f"aten.{name}" for name in LAYERS)
MIXERS.update({f"aten.{name}": _kept for name in LAYERS})
SHAPES.update({f"aten.{name}": _shape(name) for name in LAYERS})
MIXED.update(f"aten.{name}" for name in RECURRENT)
