"""Which sizes of a file's inputs are free: the batch, the image, or none."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from sentei.errors import ExportError

Batch = int | Literal["dynamic"] | None
Image = int | tuple[int, int] | Literal["dynamic"] | None
BATCH, HEIGHT, WIDTH = "batch", "height", "width"
MOST_BATCH, TIMES = 16, 2
"""Where memory is planned ahead: the largest batch, and how many times as high and wide as the example an image is."""
STEP = 32
"""Networks halve images five times at most, as a rule; another size must not be refused for that."""


@dataclass(frozen=True)
class Axes:
    """The sizes that are free."""

    batch: bool = False
    image: bool = False

    def __bool__(self) -> bool:
        return self.batch or self.image

    def __str__(self) -> str:
        """As an option says it, and as an argument.

        >>> str(Axes(batch=True)), str(Axes())
        ("batch='dynamic'", 'fixed sizes')
        """
        named = [f"{name}='dynamic'" for name in ("batch", "image") if getattr(self, name)]
        return " and ".join(named) or "fixed sizes"


def resized(tensors: Sequence[Tensor], batch: int | None = None, size: tuple[int, int] | None = None) -> list[Tensor]:
    """Example inputs with another batch or another image size; values are repeated."""
    return [_repeated(t, {d: n for d, n in _sizes(tensors, t, batch, size).items() if n is not None}) for t in tensors]


def filled(tensors: Sequence[Tensor], seed: int) -> list[Tensor]:
    """Inputs of these shapes: normal numbers where floating, what is there elsewhere."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(t.shape, generator=generator).to(t.dtype) if t.is_floating_point() else t.clone() for t in tensors
    ]


def based(tensors: Sequence[Tensor], batch: Batch, image: Image) -> list[Tensor]:
    """The example in the sizes that are asked for. A free batch is traced with 2: an example of 1 would fix it."""
    if image is not None and not images_of(tensors):
        raise ExportError(f"image={image!r}: no input is an image N,C,H,W; leave `image` out")
    if batch is not None and not tensors[0].ndim:
        raise ExportError(f"batch={batch!r}: the first input is a number without a batch; leave `batch` out")
    count = 2 if batch == "dynamic" else batch
    size = (image, image) if isinstance(image, int) else image if isinstance(image, tuple) else None
    if (count is not None and count < 1) or (size is not None and min(size) < 1):
        raise ExportError(f"batch={batch!r}, image={image!r}: expected positive numbers or 'dynamic'")
    return resized(tensors, count, size)


def others(tensors: Sequence[Tensor], axes: Axes) -> Iterator[tuple[str, list[Tensor]]]:
    """Inputs of other sizes, as far as those are free, each with its name."""
    batch = tensors[0].shape[0] if axes.batch else None
    size = _another(tensors) if axes.image else None
    if batch is not None:
        yield "a batch of 1", resized(tensors, 1)
        yield f"a batch of {batch + 1}", resized(tensors, batch + 1)
    if size is not None:
        yield f"images of {size[0]}x{size[1]}", resized(tensors, None, size)
    if batch is not None and size is not None:
        yield f"a batch of {batch + 1} with images of {size[0]}x{size[1]}", resized(tensors, batch + 1, size)


def images_of(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [t for t in tensors if t.ndim == 4 and t.is_floating_point()]


def free_sizes(tensors: Sequence[Tensor], axes: Axes) -> list[dict[int, str]]:
    """For each input the names of its free dimensions."""
    batch, size = (0 if axes.batch else None), ((0, 0) if axes.image else None)
    names = {0: BATCH, 2: HEIGHT, 3: WIDTH}
    return [{d: names[d] for d, n in _sizes(tensors, t, batch, size).items() if n is not None} for t in tensors]


def collection(tensors: Sequence[Tensor], axes: Axes, bounded: bool) -> Any:
    """What torch.export takes as dynamic shapes; None where all are fixed."""
    if not axes:
        return None
    dynamic: Any = torch.export.Dim.DYNAMIC
    shapes = torch.export.ShapesCollection()
    for tensor, free in zip(tensors, free_sizes(tensors, axes), strict=True):
        if free:
            most = most_of(tensor, free)
            shapes[tensor] = {d: dynamic(min=1, max=most[d]) if bounded else dynamic for d in free}
    return shapes


def most_of(tensor: Tensor, free: Mapping[int, str]) -> dict[int, int]:
    """The largest sizes where memory is planned ahead."""
    return {d: MOST_BATCH if name == BATCH else TIMES * tensor.shape[d] for d, name in free.items()}


def _another(tensors: Sequence[Tensor]) -> tuple[int, int]:
    """Another image size, not square, that halves as often as that of the example."""
    height, width = images_of(tensors)[0].shape[2:]
    return height + math.gcd(height, STEP), width + min(2 * math.gcd(width, STEP), width)


def _sizes(
    tensors: Sequence[Tensor], tensor: Tensor, batch: int | None, size: tuple[int, int] | None
) -> dict[int, int | None]:
    """New sizes of the dimensions of one input; None where it has none of its own."""
    with_batch = tensor.ndim > 0 and tensor.shape[0] == tensors[0].shape[0]
    height, width = size if size is not None and any(tensor is t for t in images_of(tensors)) else (None, None)
    return {0: batch if with_batch else None, 2: height, 3: width}


def _repeated(tensor: Tensor, sizes: Mapping[int, int]) -> Tensor:
    out = tensor
    for dim, size in sizes.items():
        out = out.index_select(dim, torch.arange(size) % out.shape[dim])
    return out.clone()
