"""Weights files: safetensors, or a state_dict that torch reads without executing anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sentei.errors import CheckpointError, ModelError
from sentei.tensorfile import read_tensors

NESTED = ("state_dict", "model", "model_state_dict", "model_state", "net")
PREFIXES = ("module.", "_orig_mod.", "model.")


def read_state(path: str | Path, *, checked: bool = False) -> dict[str, Tensor]:
    """Tensors by name from a .safetensors or a torch file, also where they lie one level down.

    >>> read_state("resnet56.th").keys()  # doctest: +SKIP

    With `checked` it must be a safetensors file that sentei wrote, with its checksum.

    Raises:
        CheckpointError: the file is missing, damaged, or holds anything but tensors and plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"There is no weights file {path}.")
    if checked or path.suffix == ".safetensors":
        return read_tensors(path, checked=checked)[0]
    try:
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a file it cannot or will not read
        raise CheckpointError(
            f"{path} cannot be read as a state_dict (tensors and plain values; pickled code is refused): "
            f"{str(error).splitlines()[0]}"
        ) from error
    return _tensors(path, found)


def _tensors(path: Path, found: Any) -> dict[str, Tensor]:
    inner = next((found[k] for k in NESTED if isinstance(found.get(k), dict)), found) if isinstance(found, dict) else {}
    state = {k: v for k, v in inner.items() if isinstance(k, str) and isinstance(v, Tensor)}
    if not state:
        raise CheckpointError(
            f"{path} holds no state_dict: expected tensors by name, at the top or under {', '.join(NESTED)}."
        )
    return state


def load_weights(
    model: nn.Module, path: str | Path, *, new_head: int | None = None, checked: bool = False
) -> list[str]:
    """Load a weights file into a model and return the names that were left as they are.

    >>> load_weights(resnet56(), "resnet56.th")  # doctest: +SKIP
    []

    Every name and shape must fit, except that with ``new_head`` (the wanted number of classes) a last layer
    of another number of classes is left fresh; its names are what is returned. Missing
    ``num_batches_tracked`` counters and prefixes of wrappers (``module.``) are ignored.

    Raises:
        ModelError: names or shapes differ, or values would be lost in another type of number; the text lists them.
    """
    wanted = model.state_dict()
    state = strip_prefix(read_state(path, checked=checked), wanted)
    shapes = [n for n in wanted if n in state and state[n].shape != wanted[n].shape]
    head = {n for n in shapes if _is_head(wanted[n], state[n], new_head)}
    head = (
        head if len({n.rpartition(".")[0] for n in head}) <= 2 else set()
    )  # a network has one head, or one more aside
    missing = [n for n in wanted if n not in state and not n.endswith("num_batches_tracked")]
    unexpected = [n for n in state if n not in wanted]
    wrong = [f"{n}: file {_shape(state[n])}, model {_shape(wanted[n])}" for n in shapes if n not in head]
    if missing or unexpected or wrong:
        lists = {"missing in the file": missing, "not in the model": unexpected, "of another shape": wrong}
        text = "; ".join(f"{len(v)} {k} ({_short(v)})" for k, v in lists.items() if v)
        hint = " Pass num_classes to put a new last layer on it." if _only_head(shapes, missing, unexpected) else ""
        raise ModelError(f"{path} does not fit {type(model).__name__}: {text}.{hint}")
    kept = {n: t for n, t in state.items() if n not in head}
    lossy = [f"{n}: file {_dtype(t)}, model {_dtype(wanted[n])}" for n, t in kept.items() if _loses(t, wanted[n])]
    if lossy:
        raise ModelError(
            f"{path} holds values that {type(model).__name__} cannot hold: {_short(lossy)}. Weights must be floating "
            "point numbers within the model's range: dequantise integers, and convert complex ones, before saving them."
        )
    model.load_state_dict(kept, strict=False)
    return sorted(head)


def strip_prefix(state: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names without what DataParallel, torch.compile or a training wrapper put before all of them."""
    for _ in PREFIXES:
        for prefix in PREFIXES:
            if all(n.startswith(prefix) for n in state) and not any(n.startswith(prefix) for n in wanted):
                state = {n.removeprefix(prefix): t for n, t in state.items()}
    return state


def _loses(file: Tensor, model: Tensor) -> bool:
    """Whether the model's dtype cannot hold what the file says. Rounding a float is no loss; overflow is.

    Integers in the place of floats are quantised weights, whose scale is somewhere else.
    """
    kinds = _kind(file), _kind(model)
    if kinds[0] > kinds[1]:
        return kinds != (FLOATING, INTEGER) or not torch.equal(file, file.to(model.dtype).to(file.dtype))
    if kinds[0] < kinds[1]:
        return kinds[0] == INTEGER
    if kinds[0] == INTEGER:
        return not torch.equal(file, file.to(model.dtype).to(file.dtype))
    return bool((file.isfinite() & ~file.to(model.dtype).isfinite()).any())


INTEGER, FLOATING, COMPLEX = range(3)


def _kind(tensor: Tensor) -> int:
    return COMPLEX if tensor.is_complex() else FLOATING if tensor.is_floating_point() else INTEGER


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _is_head(model: Tensor, file: Tensor, classes: int | None) -> bool:
    same_inputs = model.ndim == file.ndim >= 1 and model.shape[1:] == file.shape[1:]
    return classes is not None and same_inputs and model.shape[0] == classes


def _only_head(shapes: list[str], missing: list[str], unexpected: list[str]) -> bool:
    return not missing and not unexpected and len({n.rpartition(".")[0] for n in shapes}) == 1


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def _short(names: list[str], most: int = 6) -> str:
    return ", ".join(names[:most]) + (f", and {len(names) - most} more" if len(names) > most else "")
