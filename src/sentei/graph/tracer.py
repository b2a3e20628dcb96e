"""What rules work with: the label layers of tensors, and the record of what must live or die together.

A rule moves the label layers from an operation's inputs to its outputs and records *ties*: pairs of labels that are one
unit. In a reference run (see `sentei.surgery.check`) the channels of a plan's removed units are masked instead,
wherever a layer reads or mixes channels.
"""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from sentei.graph import labels as lab
from sentei.graph.labels import Layers
from sentei.graph.lives import Lives
from sentei.graph.operation import Call
from sentei.graph.record import At, Cuts, Numbers, Occurrence, Seen, Shape, Site, Split, Tie, Trace, Vector
from sentei.graph.resize import is_layer


@dataclass
class Failure:
    """Where and why a forward pass stopped."""

    message: str
    where: str
    layers: Layers
    error: BaseException
    at: At


class LabelMode(TorchDispatchMode):
    """Carries label layers through a forward pass and fills a `Trace`; `Dispatcher` sends it the operations.

    `sources` maps id(tensor) of parameters and buffers to their names. A first pass gives every index of every `slots`
    entry, a (parameter, dimension), a label of its own and finds the ties; `choices` are the axes along which splits
    shrink, by operation number (see `Split`). A later pass knows the `units`, the number of the unit at each index of
    each slot, and uses them as labels: wherever two elements meet, they must be the same. With `kept`, a bool for each
    unit, and real tensors it computes the reference of a cut, in which operations compute with the plain `numbers` that
    the cut model computes with (a scale derived from the running width, say).
    """

    def __init__(
        self,
        sources: Mapping[int, str],
        slots: Container[tuple[str, int]] = (),
        choices: Mapping[int, int] | None = None,
        units: Mapping[tuple[str, int], np.ndarray] | None = None,
        kept: Tensor | None = None,
        numbers: Mapping[Occurrence, Numbers] | None = None,
    ) -> None:
        super().__init__()
        self.trace = Trace()
        self.given = numbers or {}
        self.sources, self.slots, self.choices = sources, slots, choices or {}
        self.units, self.kept = units, kept
        self.op = 0
        self.occurrence = Occurrence("", "", 0)
        self.stack: list[tuple[str, nn.Module, int]] = []
        self.params: dict[int, Layers] = {}
        self.made: dict[tuple[str, str, int], int] = defaultdict(int)
        self.aliases: dict[int, list[weakref.ref[Tensor]]] = defaultdict(list)
        self.failed: Failure | None = None
        self.strangers: set[int] = set()
        """Modules that ran and are none of the model's, by id."""
        self.count_cost = True
        self.lives = Lives(self.trace.lives)

    # -- where we are

    @property
    def where(self) -> str:
        return self.stack[-1][0] if self.stack else ""

    @property
    def module(self) -> nn.Module | None:
        return self.stack[-1][1] if self.stack else None

    @property
    def at(self) -> At:
        return At(self.op, self.op - self.stack[-1][2] if self.stack else self.op)

    # -- labels of tensors

    def layers(self, t: Tensor) -> Layers:
        """The label layers of a tensor; those of parameters and float buffers are made on first sight."""
        found: Layers | None = getattr(t, "_sentei_layers", None)
        if found is not None:
            return found
        if id(t) not in self.sources:
            return ()
        if id(t) not in self.params:
            self.params[id(t)] = self._source_layers(self.sources[id(t)], t)
            self.trace.read.add(self.sources[id(t)])
        return self.params[id(t)]

    def _source_layers(self, name: str, t: Tensor) -> Layers:
        out = []
        for d, n in enumerate(t.shape):
            if n > 1 and self.units is not None:
                if (name, d) in self.units:
                    out.append(lab.place(torch.from_numpy(self.units[name, d]), d, t.shape))
            elif n > 1 and (name, d) in self.slots:
                out.append(lab.place(self._new_labels(name, d, n), d, t.shape))
        return tuple(out)

    def _new_labels(self, name: str, d: int, n: int) -> Tensor:
        start = self.trace.total
        self.trace.slots[name, d] = len(self.trace.sizes)
        self.trace.sizes.append(n)
        self.trace.total += n
        return torch.arange(start, start + n)

    def own_labels(self, kind: str, t: Tensor, d: int) -> Tensor | None:
        """A layer for dimension `d` of a tensor that the forward makes; it is known again in later passes by its
        number among those of its `kind` in the module."""
        self.made[self.where, kind, d] += 1
        key = f"{self.where}#{kind}{self.made[self.where, kind, d]}", d
        if t.shape[d] < 2:
            return None
        if self.units is None:
            labels = self._new_labels(*key, t.shape[d])
            self.trace.made[key] = range(int(labels[0]), int(labels[-1]) + 1)
            self.trace.sized = True
            return lab.place(labels, d, t.shape)
        units = self.units.get(key, ())
        if len(units) != t.shape[d] or max(units) < 0:
            return None
        return lab.place(torch.from_numpy(units), d, t.shape)

    def only_made(self, layer: Tensor) -> bool:
        """Whether no parameter has a part in these labels."""
        small = lab.narrow(layer, lab.varying(layer)).reshape(-1)
        found = small < 0
        for made in self.trace.made.values():
            found |= (small >= made.start) & (small < made.stop)
        return bool(found.all())

    def put(self, t: Tensor, layers: Sequence[Tensor]) -> None:
        """Attach layers to an output. A layer that is constant singles out one unit, which must then stay."""
        real = []
        for layer in layers:
            if lab.varying(layer):
                real.append(layer)
            elif layer.numel():
                self.freeze(layer.reshape(-1)[:1], "a single channel of it is picked out")
        if self.units is None and self.stack and not is_layer(self.stack[-1][1]):
            self.trace.seen += [Seen(self.where, "own", layer) for layer in real]
        t._sentei_layers = tuple(real)  # type: ignore[attr-defined]

    def sizes(self, t: Tensor) -> tuple[Vector, ...]:
        """The dimensions of a tensor: labels where it has them, numbers elsewhere."""
        along = {d: x for x in reversed(self.layers(t)) for d in lab.varying(x)}
        return tuple(lab.first_along(along[d], d) if d in along else n for d, n in enumerate(t.shape))

    # -- records

    def tie(self, a: Tensor, b: Tensor, why: str | None = None) -> None:
        """Elementwise with broadcasting: where both are labels, they are one unit. See `Tie`."""
        if a.ndim == b.ndim > 1:
            dims = (*lab.varying(a), *lab.varying(b))
            a, b = lab.narrow(a, dims), lab.narrow(b, dims)
        if a.shape != b.shape:
            a, b = torch.broadcast_tensors(a, b)
        self.trace.ties.append(Tie(self.where, a.reshape(-1), b.reshape(-1), why, self.at))

    def freeze(self, layer: Tensor, why: str) -> None:
        small = lab.narrow(layer, lab.varying(layer))
        self.trace.frozen.append((small[small >= 0], f"{why} (in {self.where})" if self.where else why))

    def sized(self) -> None:
        """A size was met that the model's own code may have computed (not one of PyTorch's layers)."""
        if not self.stack or not is_layer(self.stack[-1][1]):
            self.trace.sized = True

    def cut_at(self, vector: Tensor, ends: Iterable[int]) -> None:
        """A labelled dimension is cut at these places: how many units stay before each must not depend on which do."""
        self.sized()
        fronts = [vector[:end] for end in ends]
        self.trace.cuts.setdefault(self.occurrence, Cuts(self.where, self.at, [])).fronts += fronts

    def shaped(self, t: Tensor, layers: Sequence[Tensor]) -> None:
        """Note the sizes of a tensor that was reshaped."""
        along = [[x for x in layers if d in lab.varying(x)] for d in range(t.ndim)]
        sizes = tuple(lab.first_along(x[0], d) if len(x) == 1 and len(lab.varying(x[0])) == 1 else t.shape[d]
                      for d, x in enumerate(along))  # fmt: skip
        self.trace.shapes[self.occurrence] = Shape(self.where, self.at, sizes)

    def inside(self, layer: Tensor, why: str) -> None:
        """Freeze indices that live inside a unit and are no unit of their own."""
        self.freeze(layer, why)
        self.trace.inside.append(layer[layer >= 0])

    def mixes(self, layer: Tensor) -> None:
        """This operation mixes the units of `layer`: cutting changes its statistics."""
        small = lab.narrow(layer, lab.varying(layer))
        self.trace.mixing.append((small[small >= 0], self.where))

    def collapse(self, layer: Tensor, dim: int) -> Tensor:
        """Labels along `dim`; what varies along other dimensions too is tied together. Shape [size]."""
        vary = lab.varying(layer)
        if vary == (dim,):
            return lab.first_along(layer, dim)
        rows = lab.narrow(layer, vary).movedim(dim, 0).reshape(layer.shape[dim], -1)
        if rows.shape[1] > 1:
            best = rows.amax(1, keepdim=True)
            self.tie(rows, best.expand_as(rows))
            return best[:, 0]
        return rows[:, 0]

    def split(self, matrix: Tensor, view: bool = False, prefer: int = -1) -> Tensor:
        """Labels of one dimension seen as parts [a, b, ...]: tie all but the axis that may shrink; relabel.

        `prefer` is the axis to try first.
        """
        if self.units is not None:
            return matrix
        kind = type(self.module).__name__ if self.stack else ""
        order = [matrix.ndim - 1, *range(matrix.ndim - 1)]
        if prefer >= 0:
            order.insert(0, order.pop(order.index(prefer)))
        self.trace.splits.append(Split(self.op, (kind, matrix.ndim, self.at.step), matrix, view, tuple(order)))
        axis = order[self.choices.get(self.op, 0)]
        first = matrix[tuple(slice(None) if d == axis else slice(0, 1) for d in range(matrix.ndim))]
        first = first.expand(matrix.shape)
        self.tie(matrix, first)
        return first

    def site(self, attr: str, vector: Tensor) -> None:
        if self.module is not None and hasattr(self.module, attr):
            self.trace.sites.append(Site(self.where, attr, vector))

    # -- the reference run

    def mask_of(self, layer: Tensor) -> Tensor:
        """True where the layer's unit is kept, compact shape."""
        assert self.kept is not None
        small = lab.narrow(layer, lab.varying(layer))
        return (small < 0) | self.kept[small.clamp_min(0)]

    def silence(self, t: Tensor, dims: Sequence[int]) -> Tensor:
        """The tensor with removed units zero, for layers that vary along `dims`: nothing reads them."""
        for layer in self.layers(t):
            if set(dims).intersection(lab.varying(layer)):
                mask = self.mask_of(layer)
                if not bool(mask.all()):
                    t = t.masked_fill(~mask.to(t.device), 0)
        return t

    def kept_along(self, t: Tensor, dims: Sequence[int]) -> dict[int, Tensor]:
        """For each dimension in `dims` that loses units: the indices that stay."""
        out = {}
        if self.kept is not None:
            for layer in self.layers(t):
                for d in set(dims).intersection(lab.varying(layer)):
                    mask = self.mask_of(layer).movedim(d, 0).reshape(layer.shape[d], -1)[:, 0]
                    if not bool(mask.all()):
                        out[d] = mask.nonzero()[:, 0].to(t.device)
        return out

    # -- writes into views

    def remember_alias(self, call: Call) -> None:
        for t in (*call.tensors(), *call.outputs()):
            refs = self.aliases[t.untyped_storage()._cdata]
            if not any(r() is t for r in refs):
                refs.append(weakref.ref(t))

    def write(self, t: Tensor, layers: Layers) -> None:
        """Set the layers of a tensor that was written in place, and of every live view of the same storage."""
        old = self.layers(t)
        refs = [r() for r in self.aliases.get(t.untyped_storage()._cdata, [])]
        views = [v for v in refs if v is not None and v is not t]
        single = not old and any(self.layers(v) for v in views)  # one channel of a view has no layer of its own
        if not single and len(old) == len(layers) and all(map(lab.same, old, layers)):
            return
        for v in (t, *views) if self.trace.made else ():  # what is written tells more than a size
            v._sentei_layers = tuple(x for x in self.layers(v) if not self.only_made(x))  # type: ignore[attr-defined]
        if not views or not any(self.layers(v) for v in (t, *views)) and not layers:
            self.put(t, layers)
            return
        every = [layers, *(self.layers(v) for v in views)]
        if any(len(x) > 1 for x in every) or t.untyped_storage().nbytes() > 2**28:
            for v in (t, *views):
                self.give_up(v, "written in place through a view")
            return
        size = t.untyped_storage().nbytes() // t.element_size()
        flat = torch.full((size,), lab.NONE)
        for v in views:
            for layer in self.layers(v):
                flat.as_strided(v.shape, v.stride(), v.storage_offset()).copy_(layer)
        cell = flat.as_strided(t.shape, t.stride(), t.storage_offset())
        cell.copy_(layers[0]) if layers else cell.fill_(lab.NONE)
        for v in (t, *views):
            layer = lab.tidy(flat.as_strided(v.shape, v.stride(), v.storage_offset()).clone())
            v._sentei_layers = (layer,) if lab.varying(layer) else ()  # type: ignore[attr-defined]

    def give_up(self, t: Tensor, why: str) -> None:
        for layer in self.layers(t):
            self.freeze(layer, why)
        if id(t) not in self.sources:
            t._sentei_layers = ()  # type: ignore[attr-defined]


def unknown(mode: LabelMode, call: Call) -> None:
    """No rule: freeze what reaches the operation, never guess."""
    for t in call.tensors():
        for layer in mode.layers(t):
            mode.freeze(layer, f"operation {call.name} has no rule")
    for o in call.outputs():
        o._sentei_layers = ()  # type: ignore[attr-defined]


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
