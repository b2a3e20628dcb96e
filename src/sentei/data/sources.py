"""Where small images come from: scikit-learn, torchvision's files, IDX files, or a user's function."""

from __future__ import annotations

import gzip
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sentei.data.splits import Augment
from sentei.errors import DataError

Statistics = tuple[tuple[float, ...], tuple[float, ...]]

IMAGENET: Statistics = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
FASHION = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
FASHION_FOLDERS = ("FashionMNIST/raw", ".")


@dataclass(frozen=True)
class Source:
    """A data set as it was found: images N,H,W,C (uint8 or float32) and int64 labels, train and test."""

    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    val: int | float
    augment: Augment = Augment()
    statistics: Statistics | None = None
    classes: int | None = None
    val_images: Tensor | None = None
    val_labels: Tensor | None = None
    names: tuple[str, ...] | None = None
    """Of the classes, in the order of their numbers."""


def candidate_roots(root: str | Path | None) -> list[Path]:
    """Folders to look in: the one given, or else the environment's SENTEI_DATA and then ./data."""
    if root is not None:
        return [Path(root).expanduser()]
    named = os.environ.get("SENTEI_DATA")
    return [Path(p) for p in (named, "data") if p]


def holds(root: Path, name: str) -> bool:
    """Whether a folder holds the files of a data set known by name."""
    if name == "fashion-mnist":
        return any(_idx_path(root / sub, FASHION[0]) is not None for sub in FASHION_FOLDERS)
    return (root / {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}.get(name, name)).is_dir()


def digits() -> Source:
    """scikit-learn's 1,797 real 8x8 digits; a fixed stratified fifth is the test set."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch: Any = load_digits()
    pixels = torch.from_numpy(np.round(bunch.images * (255 / 16)).astype(np.uint8))[..., None]
    labels = torch.from_numpy(bunch.target).long()
    train, test = train_test_split(np.arange(len(labels)), test_size=360, stratify=labels.numpy(), random_state=0)
    return Source(
        pixels[train], labels[train], pixels[test], labels[test], val=180, augment=Augment(crop=1), classes=10,
        names=tuple("0123456789"),
    )  # fmt: skip


def cifar(name: str, root: str | Path | None) -> Source:
    """CIFAR-10 or CIFAR-100 as torchvision stores them, downloaded if they are nowhere to be found."""
    from torchvision import datasets

    kind: Any = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    roots = candidate_roots(root)
    home = next((r for r in roots if (r / kind.base_folder).is_dir()), None)
    if home is None:
        try:
            kind(roots[0], train=True, download=True)
        except Exception as error:  # no network, a broken archive, an unwritable folder: one advice
            raise _not_found(name, [r / kind.base_folder for r in roots], kind.url, error) from error
        home = roots[0]
    try:
        train, test = kind(home, train=True), kind(home, train=False)
    except (RuntimeError, OSError) as error:
        where = home / kind.base_folder
        raise DataError(
            f"{where} is incomplete or damaged ({error}). Remove it and unpack {kind.url} again."
        ) from error
    statistics: Statistics = {
        "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
        "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    }[name]
    return Source(
        torch.from_numpy(train.data),
        torch.tensor(train.targets),
        torch.from_numpy(test.data),
        torch.tensor(test.targets),
        val=5000,
        augment=Augment(flip=True, crop=4),
        statistics=statistics,
        classes=len(train.classes),
        names=tuple(train.classes),
    )


def fashion_mnist(root: str | Path | None) -> Source:
    """Fashion-MNIST from IDX files, plain or gzipped, in FashionMNIST/raw or in the root itself."""
    from torchvision import datasets

    roots = candidate_roots(root)
    folders = [r / sub for r in roots for sub in FASHION_FOLDERS]
    home = next((f for f in folders if all(_idx_path(f, name) for name in FASHION)), None)
    if home is None:
        try:
            datasets.FashionMNIST(roots[0], download=True)
            home = roots[0] / "FashionMNIST/raw"
        except Exception as error:
            raise _not_found("fashion-mnist", folders, datasets.FashionMNIST.mirrors[0], error) from error
    images, labels, test_images, test_labels = (torch.from_numpy(read_idx(home, name)) for name in FASHION)
    return Source(
        images[..., None],
        labels.long(),
        test_images[..., None],
        test_labels.long(),
        val=5000,
        augment=Augment(flip=True, crop=2),
        statistics=((0.2860,), (0.3530,)),
        classes=10,
        names=tuple(datasets.FashionMNIST.classes),
    )


def _idx_path(folder: Path, name: str) -> Path | None:
    return next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None)


def read_idx(folder: Path, name: str) -> NDArray[np.uint8]:
    """An IDX file of bytes: two zeros, type 8, the number of dimensions, their sizes, then the values."""
    path = _idx_path(folder, name)
    if path is None:
        raise DataError(f"{folder} holds neither {name} nor {name}.gz.")
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        dims = raw[3]
        shape = struct.unpack_from(f">{dims}I", raw, 4)
        if raw[:3] != b"\0\0\x08":
            raise ValueError("not an IDX file of unsigned bytes")
        return np.frombuffer(raw, np.uint8, offset=4 + 4 * dims).reshape(shape).copy()
    except (OSError, EOFError, IndexError, ValueError, struct.error) as error:
        raise DataError(f"{path} is damaged or not an IDX file ({error}). Remove it and fetch it again.") from error


def from_function(ref: str, value: Any) -> Source:
    """What a user's function has returned: (x_train, y_train, x_test, y_test), or a dict with these keys.

    Images are arrays or tensors, N,C,H,W (assumed where both fit), N,H,W,C or N,H,W, of uint8 (0 to 255) or
    float (kept as they are); labels are class numbers from 0. A dict may also hold x_val and
    y_val, num_classes, mean and std.
    """
    keys = ("x_train", "y_train", "x_test", "y_test")
    if isinstance(value, (tuple, list)) and len(value) == 4:
        value = dict(zip(keys, value, strict=True))
    if not isinstance(value, dict) or not set(keys) <= value.keys():
        given = f"a dict with the keys {sorted(value)}" if isinstance(value, dict) else type(value).__name__
        raise DataError(f"{ref} returned {given}. Expected sentei.Data.of(...), or the four arrays "
                        f"{', '.join(keys)}, as a tuple or a dict.")  # fmt: skip
    parts = {name: _pair(ref, name, value) for name in ("train", "test", "val") if f"x_{name}" in value}
    statistics = (tuple(value["mean"]), tuple(value["std"])) if {"mean", "std"} <= value.keys() else None
    val_images, val_labels = parts.get("val", (None, None))
    return Source(
        *parts["train"],
        *parts["test"],
        val=0.1,
        statistics=statistics,
        classes=value.get("num_classes"),
        val_images=val_images,
        val_labels=val_labels,
    )


def _pair(ref: str, name: str, value: dict[str, Any]) -> tuple[Tensor, Tensor]:
    images, labels = torch.as_tensor(value[f"x_{name}"]), torch.as_tensor(value[f"y_{name}"]).flatten().long()
    images = images[:, None] if images.ndim == 3 else images
    if images.ndim != 4 or len(images) != len(labels) or len(images) == 0:
        raise DataError(
            f"{ref} returned x_{name} of shape {tuple(images.shape)} with {len(labels)} labels. "
            "Expected images N,C,H,W or N,H,W,C and one label for each."
        )
    channels = (1, 3, 4)
    if images.shape[1] in channels or images.shape[3] not in channels:
        images = images.permute(0, 2, 3, 1)
    return (images if images.dtype == torch.uint8 else images.float()).contiguous(), labels


def _not_found(name: str, places: list[Path], url: str, error: Exception) -> DataError:
    looked = ", ".join(str(p) for p in places)
    return DataError(
        f"The data set {name!r} is not in {looked}, "
        f"and downloading it failed ({type(error).__name__}: {error}). "
        f"Unpack {url} into the data root, or name the folder that holds it with --data-root or SENTEI_DATA."
    )
