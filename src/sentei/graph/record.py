"""What a forward pass told: ties between labels, splits, contractions. The raw material of a `ChannelGraph`."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

Vector = Tensor | int
"""A dimension of a tensor: the labels along it, or its plain size where no unit lives there."""
Ending = tuple[int, str]
"""The operation that failed and the type of the error; (0, "") where all went well."""


class Occurrence(NamedTuple):
    """The `nth` operation of a name in a module: how it is known again in a pass at other widths, where others may come
    and go (torch.einsum does without a product over one channel)."""

    where: str
    operation: str
    nth: int


Numbers = dict[int, Any]
"""The plain numbers among the arguments of an operation: by position, or the values of a constant tensor (-1)."""


class At(NamedTuple):
    """A place in the forward pass: the number of the operation, and its number within the module that runs."""

    op: int
    step: int


@dataclass
class Tie:
    """Where a[i] and b[i] are labels they belong to one unit, says an operation in module `where`.

    Where only one of them is a label, that unit must stay if `why` is given.
    """

    where: str
    a: Tensor
    b: Tensor
    why: str | None
    at: At


@dataclass
class Split:
    """A labelled dimension seen as several parts: they can shrink only evenly, along one axis of `labels`.

    `op` numbers the operation; `signature` is the same for all calls of one line of a module class; `view` tells a
    reshape from a cut into pieces.
    """

    op: int
    signature: tuple[str, int, int]
    labels: Tensor
    view: bool
    order: tuple[int, ...]
    """The axes in the order in which they are tried."""


@dataclass
class Cuts:
    """Where an operation cut a labelled dimension: the labels before each place."""

    where: str
    at: At
    fronts: list[Tensor]


@dataclass
class Shape:
    """What a reshape made of a labelled tensor."""

    where: str
    at: At
    sizes: tuple[Vector, ...]


@dataclass(frozen=True)
class Kernel:
    """How a convolution moves over its input: what its time depends on apart from the widths."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    transposed: bool
    space: tuple[int, ...]
    """Of the input."""


@dataclass
class Contraction:
    """A conv or matrix product: MACs are `constant` times the product of `factors`, outputs that of `out_factors`.

    The factors of a convolution end with its outputs and its inputs of one channel group, those of a matrix product
    with the size that is summed over and its columns.
    """

    where: str
    constant: int
    factors: tuple[Vector, ...]
    out_factors: tuple[Vector, ...]
    itemsize: int
    at: At
    operation: str
    kernel: Kernel | None = None


@dataclass
class Life:
    """The bytes of one storage, its `sizes` times `itemsize`, and the first and the last operation that touch it."""

    sizes: tuple[Vector, ...]
    itemsize: int
    first: int
    last: int


@dataclass
class Site:
    """A module attribute that must hold the number of units kept among `labels`, or the part of it at `path`.

    `origin` says where labels were found that depend on how splits shrink: place in `Trace.seen`, and dimension.
    """

    module: str
    attr: str
    labels: Tensor
    path: tuple[Any, ...] = ()
    origin: tuple[int, int] | None = None


@dataclass
class Seen:
    """Labels on a tensor that entered (`in`) or left (`out`) a module, or that one of its own operations made."""

    module: str
    role: str
    layer: Tensor


@dataclass
class Read:
    """The forward pass read a plain attribute of a module before operation `op`."""

    module: str
    attr: str
    op: int


@dataclass(frozen=True)
class Memory:
    """An attribute in which the forward pass keeps features, and what it held before: no tensor."""

    module: str
    attr: str
    before: Any
    labels: Tensor


@dataclass(frozen=True)
class WeightNorm:
    """A weight computed from two parameters: `magnitude` times `direction` over its norm for each index of `dim`."""

    direction: str
    magnitude: str
    dim: int


@dataclass
class Trace:
    """The record of one model.

    Labels are numbered through, slot after slot: `slots` maps (parameter, dimension) to a place in `sizes`; `made` are
    the slots of tensors that the forward makes itself, under names that no parameter has. `inside` are indices inside
    units, `ordered` units whose order matters, `produced` labels in the order in which contractions bring them forth,
    `mixing` the units over which a module takes statistics, `sums` the labels of the operands of each addition, `read`
    the parameters and buffers that some operation takes. `cuts` tells, by number of the operation, where it took labels
    from among others by their position: groups must be uniform over the labels before each place. `contracted` are the
    labels over which two activations were multiplied (attention). `numbers` are the plain numbers that operations
    computed with, `counts` the numbers of operations by module and name.
    """

    slots: dict[tuple[str, int], int] = field(default_factory=dict)
    sizes: list[int] = field(default_factory=list)
    made: dict[tuple[str, int], range] = field(default_factory=dict)
    total: int = 0
    ties: list[Tie] = field(default_factory=list)
    splits: list[Split] = field(default_factory=list)
    frozen: list[tuple[Tensor, str]] = field(default_factory=list)
    inside: list[Tensor] = field(default_factory=list)
    ordered: list[Tensor] = field(default_factory=list)
    contractions: list[Contraction] = field(default_factory=list)
    lives: list[Life] = field(default_factory=list)
    sites: list[Site] = field(default_factory=list)
    produced: list[Tensor] = field(default_factory=list)
    mixing: list[tuple[Tensor, str]] = field(default_factory=list)
    sums: list[tuple[Tensor, ...]] = field(default_factory=list)
    read: set[str] = field(default_factory=set)
    weight_norms: list[WeightNorm] = field(default_factory=list)
    cuts: dict[Occurrence, Cuts] = field(default_factory=dict)
    shapes: dict[Occurrence, Shape] = field(default_factory=dict)
    counts: dict[tuple[str, str], int] = field(default_factory=lambda: defaultdict(int))
    contracted: list[Tensor] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)
    memories: list[Memory] = field(default_factory=list)
    numbers: dict[Occurrence, Numbers] = field(default_factory=dict)
    output_shapes: list[tuple[int, ...]] = field(default_factory=list)
    sized: bool = False
    """Whether sizes that the model's own code computed were met: such code has to be tried at several widths."""
    training: Ending | None = None
    """How the pass in train mode ended, if there was one."""


def tied_pairs(trace: Trace) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All pairs of different labels that were tied, and for each pair the number of its `Tie`."""
    if not trace.ties:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64)
    a, b = (torch.cat([getattr(t, side) for t in trace.ties]).numpy() for side in "ab")
    event = np.repeat(np.arange(len(trace.ties)), [len(t.a) for t in trace.ties])
    real = (a >= 0) & (b >= 0) & (a != b)
    return a[real], b[real], event[real]


def unmatched(trace: Trace) -> list[tuple[np.ndarray, str]]:
    """Labels that met a constant where they had to meet a label, with the reason that freezes them."""
    out = []
    for t in trace.ties:
        if t.why is not None:
            a, b = t.a.numpy(), t.b.numpy()
            alone = (a < 0) != (b < 0)
            if alone.any():
                out.append((np.maximum(a, b)[alone], f"{t.why} (in {t.where})" if t.where else t.why))
    return out
