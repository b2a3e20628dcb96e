"""Data sets by reference: one call gives normalised train, validation and test splits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sentei.data import sources
from sentei.data.dataset import Data, describe, kind_of
from sentei.data.rows import of_classes
from sentei.data.shardlist import KIND, located_pattern
from sentei.data.sources import IMAGENET, Source, Statistics
from sentei.data.splits import TensorSplit, stratified_split
from sentei.data.subset import ALL, Subset
from sentei.errors import DataError
from sentei.models.user_file import load_function

NAMES = ("digits", "cifar10", "cifar100", "fashion-mnist")
FOLDERS = ("imagefolder:", "segmentation:", "coco:")
"""What references to a folder begin with."""
Normalize = str | tuple[Sequence[float], Sequence[float]]


def located(ref: str, root: str | Path | None) -> tuple[str, str | None]:
    """A reference and a root that mean the same from every folder: what is relative becomes absolute.

    >>> located("digits", None)
    ('digits', None)
    """
    if ref.startswith(KIND):
        ref = KIND + located_pattern(ref.removeprefix(KIND), root)
    elif ".py:" in ref:
        file, _, function = ref.rpartition(":")
        ref = f"{Path(file).expanduser().resolve()}:{function}"
    elif in_folder(ref) is not None:
        ref = f"{kind_of(ref)}:{_folder(ref, root).resolve()}"
    elif root is None and ref != "digits":
        held = [r for r in sources.candidate_roots(None) if r.is_dir()]
        root = next((r for r in held if sources.holds(r, ref)), held[0] if held else None)
    return ref, None if root is None else str(Path(root).expanduser().resolve())


def in_folder(ref: str) -> str | None:
    """The folder that a reference names; None for other references.

    >>> in_folder("imagefolder:photos"), in_folder("digits")
    ('photos', None)
    """
    return next((ref.removeprefix(kind) for kind in FOLDERS if ref.startswith(kind)), None)


def _folder(ref: str, root: str | Path | None) -> Path:
    path = Path(in_folder(ref) or ref).expanduser()
    if not path.is_dir() and not path.is_absolute():
        path = next((r / path for r in sources.candidate_roots(root) if (r / path).is_dir()), path)
    return path


def load_data(
    ref: str,
    *,
    root: str | Path | None = None,
    val: int | float | None = None,
    seed: int = 0,
    image_size: int | None = None,
    device: str | torch.device = "cpu",
    normalize: Normalize | None = None,
    workers: int | None = None,
    classes: int | Sequence[str] | None = None,
    per_class: int | None = None,
) -> Data:
    """Load a data set and split it: validation is seeded, stratified by class, and never overlaps train.

    >>> data = load_data("digits")
    >>> len(data.train), len(data.val), len(data.test), data.input_shape
    (1257, 180, 360, (1, 8, 8))

    Args:
        ref: ``digits``, ``cifar10``, ``cifar100``, ``fashion-mnist``; ``imagefolder:PATH`` with train/CLASS/images;
            ``segmentation:PATH`` with train/images and train/masks (see `sentei.data.segmentation`); ``coco:PATH`` with
            train.json and train/ (see `sentei.data.coco`), each with val or test or both besides;
            ``webdataset:PATTERN``, tar shards (see `sentei.data.shards`); or ``path/to/file.py:function``, which
            returns arrays (see `sentei.data.sources.from_function`) or a `Data`.
        root: where the files are; else the environment's SENTEI_DATA, else ./data. Missing data is downloaded
            by torchvision where there is a network.
        val: images, or fraction of the training images, for validation; None is the data set's own default
            (5,000 for CIFAR and Fashion-MNIST, 180 for digits, a tenth otherwise); 0 is no validation split.
        image_size: height and width in pixels. None keeps images as they are, but means 224 for image folders, and for
            segmentation where not all images are of one size.
        device: where the images live and the batches appear.
        normalize: ``imagenet``, ``none``, or (mean, std) for pixels in 0..1; None is the data set's own. Detectors
            normalise themselves: coco: takes none.
        workers: processes that decode files; None is one for each CPU (at most 8), and none where segmentation or
            detection images are few enough to be kept in memory; 0 is none.
        classes: so many classes, drawn by ``seed``, or those named, numbered anew from 0; for classification.
        per_class: at most so many training images of each class, drawn by ``seed``, those for validation included; test
            images all stay.

    Raises:
        DataError: unknown reference, or data that is missing, damaged or inconsistent; the text says where it
            was looked for and how to get it.
    """
    named = classes if classes is None or isinstance(classes, int) else tuple(classes)
    subset = Subset(named, per_class)
    given: dict[str, Any] = {"val": val, "seed": seed, "size": image_size, "device": device, "workers": workers}
    if ref.startswith(KIND):
        from sentei.data.shards import load_shards

        pattern, statistics = located_pattern(ref.removeprefix(KIND), root), _statistics(normalize, 3, IMAGENET)
        return load_shards(ref, pattern, statistics=statistics, subset=subset, **given)
    if in_folder(ref) is not None:
        given |= {"subset": subset} if subset != ALL else {}
        return _in_files(ref, _folder(ref, root), normalize, given)
    if ".py:" in ref:
        value = _called(ref)
        if isinstance(value, Data):
            _refuse_preparing(
                ref, val=val, image_size=image_size, normalize=normalize, classes=classes, per_class=per_class
            )
            return replace(value.on(device), name=ref)
        source = sources.from_function(ref, value)
    else:
        source = _source(ref, root)
    source = _part_of(ref, source, subset, seed)
    return _in_memory(ref, source, val, seed, image_size, torch.device(device), normalize)


def _in_files(ref: str, path: Path, normalize: Normalize | None, given: Mapping[str, Any]) -> Data:
    """Each kind is imported where it is wanted: torchvision, which decodes files, takes two seconds."""
    if "subset" in given and kind_of(ref) != "imagefolder":
        raise DataError(f"{kind_of(ref)}: images have no class of their own: leave classes and per_class out.")
    if kind_of(ref) == "coco":
        from sentei.data.coco import load_coco

        if normalize not in (None, "none"):
            raise DataError("coco: images are not normalised, as detectors do that themselves: leave normalize out.")
        return load_coco(ref, path, **given)
    statistics = _statistics(normalize, 3, IMAGENET)
    if kind_of(ref) == "imagefolder":
        from sentei.data.folder import load_folder

        return load_folder(ref, path, statistics=statistics, **given)
    from sentei.data.segmentation import load_segmentation

    return load_segmentation(ref, path, statistics=statistics, **given)


def _called(ref: str) -> Any:
    """What a user's function returns; DataError that names it, whatever goes wrong in there."""
    try:
        return load_function(ref, DataError)()
    except DataError as error:
        raise error if ref in str(error) else DataError(f"{ref}: {error}") from error
    except Exception as error:
        raise DataError(f"{ref} failed: {type(error).__name__}: {error}") from error


def _refuse_preparing(ref: str, **given: object) -> None:
    """DataError for settings that data of a user's own cannot follow."""
    if asked := [name for name, value in given.items() if value is not None]:
        raise DataError(f"{ref} returns batches as they are: {', '.join(asked)} cannot be applied; do it there")


def _source(ref: str, root: str | Path | None) -> Source:
    if ref == "digits":
        return sources.digits()
    if ref in ("cifar10", "cifar100"):
        return sources.cifar(ref, root)
    if ref == "fashion-mnist":
        return sources.fashion_mnist(root)
    near = get_close_matches(ref, NAMES, 1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise DataError(
        f"Unknown data set {ref!r}.{hint} Known: {', '.join(NAMES)}, {', '.join(f'{kind}PATH' for kind in FOLDERS)}, "
        f"{KIND}PATTERN, path/to/file.py:function."
    )


def _part_of(ref: str, source: Source, subset: Subset, seed: int) -> Source:
    """A source with some of its classes, and some training images of each; as large a share for validation."""
    if subset == ALL:
        return source
    names = source.names or tuple(map(str, range(source.classes or int(source.labels.max()) + 1)))
    chosen = subset.classes_of(ref, names, seed)
    parts: dict[str, Any] = {"classes": len(chosen), "names": tuple(names[i] for i in chosen) if source.names else None}
    for part in ("", "test_", "val_"):
        images, labels = getattr(source, f"{part}images"), getattr(source, f"{part}labels")
        if images is not None:
            kept, new = of_classes(labels, chosen)
            parts |= {f"{part}images": images[kept], f"{part}labels": new}
    if subset.per_class is not None:
        few = subset.kept(parts["labels"], seed)
        parts |= {"images": parts["images"][few], "labels": parts["labels"][few]}
    if isinstance(source.val, int) and source.val:
        share = source.val * len(parts["labels"]) / len(source.labels)
        parts["val"] = max(round(share), len(chosen))
    return replace(source, **parts)


def _in_memory(
    ref: str,
    source: Source,
    val: int | float | None,
    seed: int,
    image_size: int | None,
    device: torch.device,
    normalize: Normalize | None,
) -> Data:
    images, labels = source.images, source.labels
    if source.val_images is not None and source.val_labels is not None:
        parts = {"train": (images, labels), "val": (source.val_images, source.val_labels)}
    else:
        kept, held = stratified_split(labels.numpy(), source.val if val is None else val, seed)
        parts = {"train": (images[kept], labels[kept]), "val": (images[held], labels[held])}
    parts["test"] = (source.test_images, source.test_labels)
    classes = source.classes or int(max(y.max() for _, y in parts.values() if len(y))) + 1
    _check_parts(ref, parts, classes)
    default = source.statistics or _measure(parts["train"][0])
    mean, std = _statistics(normalize, images.shape[3], default)
    splits = {
        name: TensorSplit(_resize(x, image_size).to(device), y.to(device), mean, std, source.augment)
        for name, (x, y) in parts.items()
    }
    height, width, channels = splits["train"].images.shape[1:]
    shape = (channels, height, width)
    described = describe(ref, splits, classes, shape, seed, mean, std)
    return Data(
        ref, splits["train"], splits["val"], splits["test"], classes, shape, device, described,
        class_names=source.names,
    )  # fmt: skip


def _check_parts(ref: str, parts: dict[str, tuple[Tensor, Tensor]], classes: int) -> None:
    shape = parts["train"][0].shape[1:]
    for name, (x, y) in parts.items():
        if len(y) and (int(y.min()) < 0 or int(y.max()) >= classes):
            raise DataError(f"{ref}: {name} has labels {int(y.min())}..{int(y.max())}, expected 0..{classes - 1}.")
        if x.shape[1:] != shape:
            raise DataError(f"{ref}: {name} images are {tuple(x.shape[1:])}, the training images {tuple(shape)}.")
        if x.dtype != parts["train"][0].dtype:
            raise DataError(f"{ref}: {name} images are {x.dtype}, the training images {parts['train'][0].dtype}.")
        if x.is_floating_point() and not bool(torch.isfinite(x).all()):
            raise DataError(f"{ref}: {name} images contain NaN or infinity.")


def _measure(images: Tensor) -> Statistics:
    """Mean and standard deviation of each channel over the training images."""
    unit = 255.0 if images.dtype == torch.uint8 else 1.0
    flat = images.reshape(-1, images.shape[3]).double() / unit
    std = flat.std(dim=0).clamp_min(1e-3)
    return tuple(flat.mean(dim=0).tolist()), tuple(std.tolist())


def _statistics(normalize: Normalize | None, channels: int, default: Statistics) -> Statistics:
    if normalize is None:
        mean, std = default
    elif normalize == "imagenet":
        mean, std = IMAGENET
    elif normalize == "none":
        mean, std = (0.0,) * channels, (1.0,) * channels
    elif isinstance(normalize, str):
        raise DataError(f"normalize={normalize!r} is unknown. Expected 'imagenet', 'none' or (mean, std).")
    else:
        mean, std = tuple(map(float, normalize[0])), tuple(map(float, normalize[1]))
    if len(mean) != channels or len(std) != channels or min(std) <= 0:
        raise DataError(f"normalize has mean {mean} and std {std}; expected {channels} values each, std above 0.")
    return mean, std


def _resize(images: Tensor, size: int | None) -> Tensor:
    """Images N,H,W,C brought to size x size once, with antialiasing."""
    if size is None or images.shape[1:3] == (size, size) or len(images) == 0:
        return images
    parts = images.permute(0, 3, 1, 2).split(4096)
    resized = [F.interpolate(p.float(), (size, size), mode="bilinear", antialias=True) for p in parts]
    out = torch.cat([r.round().clamp(0, 255).to(images.dtype) if images.dtype == torch.uint8 else r for r in resized])
    return out.permute(0, 2, 3, 1).contiguous()
