"""From what a command names to a network: built, with its weights, and with an honest word on where they come from."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path

import torch
from torch import nn

from sentei.cli.options import Dense, is_code, resolved_ref
from sentei.cli.saved import Saved, permit, resume_hint, saved_command
from sentei.console import say
from sentei.data import Data
from sentei.distributed import processes
from sentei.errors import CheckpointError, ConfigError
from sentei.models import build_model, load_weights
from sentei.models.reference import TRAINED
from sentei.runfiles import is_started
from sentei.surgery import load
from sentei.surgery.files import refuse_damaged
from sentei.tasks import Task
from sentei.tensorfile import read_tensors

FEW = 500
"""Validation images, below which a choice by accuracy is shaky."""


def packaged_weights(ref: str, data: str | None) -> str:
    """`sentei:MODEL-DATA` where the package has that network trained, otherwise the reference itself."""
    return f"sentei:{ref}-{data}" if f"{ref}-{data}" in TRAINED else ref


def dense_model(
    ref: str, weights: str | None, data: Data, task: Task, seed: int, trust: bool = False, code: str | None = None
) -> tuple[nn.Module, Dense]:
    """Build a model for the data, with weights from a file, a run or the package; random ones follow from the seed.

    `code` is the function of a run, where it lies now.
    """
    torch.manual_seed(seed)
    if is_started(ref):
        return _from_run(ref, weights, task.classes(data), trust, code)
    if code is not None:
        raise ConfigError(f"{ref} is not the folder of a run; leave out --model {code}, or give it alone")
    channels = None if data.input_shape is None else data.input_shape[0]
    in_channels = None if ref.startswith("torchvision:") and channels == 3 else channels
    classes = task.classes(data)
    dense = Dense(ref, weights, classes, in_channels)
    model = dense.build()
    fresh = load_weights(model, weights, new_head=classes) if weights is not None else []
    return model, replace(dense, fresh=tuple(fresh))


def _from_run(
    ref: str, weights: str | None, classes: int | None, trust: bool, code: str | None
) -> tuple[nn.Module, Dense]:
    folder, saved = Path(ref), saved_command(ref)
    if weights is not None:
        raise ConfigError(f"{ref} is a run and has its own weights; leave out --weights")
    if saved.verb != "train":
        raise ConfigError(
            f"{ref} is a pruned network already. Prune the network it came from ({saved.model}) with a smaller "
            "budget; --steps cuts in several steps"
        )
    file = folder / "model.safetensors"
    if not file.is_file():
        raise CheckpointError(f"the run in {ref} is not finished. Go on with:  {resume_hint(ref)}")
    dense = _dense(ref, saved, trust, code)
    if dense.num_classes != classes:
        raise ConfigError(f"{ref} was trained for {dense.num_classes} classes, the data has {classes}")
    model = dense.build()
    load_weights(model, file, checked=True)
    return model, replace(dense, weights=str(file.resolve()), fresh=())


def _dense(folder: str, saved: Saved, trust: bool, code: str | None) -> Dense:
    """The dense model of a run, by the function that is named again or, where it may be called, by its own."""
    if code is None:
        permit(folder, [saved.dense.ref], trust)
        return saved.dense
    if not is_code(code) or not is_code(saved.dense.ref):
        raise ConfigError(f"--model {code}: the model of {folder} is {saved.dense.ref}; only FILE.py:FUNCTION can move")
    return replace(saved.dense, ref=resolved_ref(code))


def load_run(folder: str, trust: bool, code: str | None = None) -> nn.Module:
    """The network of a finished run, dense or pruned, from its files alone; `code` is where its function lies now."""
    saved = saved_command(folder)
    model = _dense(folder, saved, trust, code).build()
    if saved.verb == "prune":
        return load(model, folder, forward=saved.data.purpose().part)
    load_weights(model, Path(folder) / "model.safetensors", checked=True)
    return model


def refuse_damaged_run(folder: Path, verb: str) -> None:
    """CheckpointError if the network that a finished run left is not there as it was written."""
    if verb == "prune":
        refuse_damaged(folder)
    elif verb == "train":
        read_tensors(folder / "model.safetensors", checked=True)


def refuse_missing_run(ref: str) -> None:
    """ConfigError for what looks like the folder of a run and is none, with the runs that lie near."""
    path = Path(ref).expanduser()
    if is_started(ref) or ":" in ref or ref.endswith(".py") or not (path.is_dir() or len(path.parts) > 1):
        return
    what = f"{ref} is a folder, but not that of a run" if path.is_dir() else f"there is no run directory {ref}"
    raise ConfigError(f"{what}{runs_near(path)}")


def runs_near(path: Path) -> str:
    """The runs in a folder, or those whose names are like that of a folder which is not there; empty if none are."""
    found = [str(p) for p in _runs_around(path)]
    near = [] if path.is_dir() else get_close_matches(str(path), found, 3, 0.6)
    if near:
        return f". Did you mean {', '.join(near)}?"
    return f". Runs here: {', '.join(found[:6])}" if found else ""


def _runs_around(path: Path) -> Iterator[Path]:
    for folder in dict.fromkeys([path, path.parent, Path("runs"), Path()]):
        if folder.is_dir():
            yield from (p for p in sorted(folder.iterdir()) if is_started(p))


def random_parameter(dense: Dense) -> str | None:
    """A parameter whose weights are random; None if the model brings trained ones.

    A user's function may load weights itself. What it leaves random differs between two calls.
    """
    if dense.weights is not None or dense.ref.startswith("sentei:"):
        return None
    if not is_code(dense.ref):
        return "every one"
    states = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        states.append(dict(dense.build().named_parameters()))
    first, second = states
    return next((n for n in first if n not in second or not torch.equal(first[n], second[n])), None)


def announce(model: str, dense: Dense, data: Data, task: Task, bare: str | None) -> None:
    """One line each for the data and for where the weights come from; `bare` is a parameter that is random."""
    classes = f", {data.num_classes} class{'es' * (data.num_classes > 1)}" if data.num_classes else ""
    shape = f", {'x'.join(map(str, data.input_shape))}" if data.input_shape else ""
    say(
        f"Data {data.name}: {len(data.train):,} training, {len(data.val):,} validation, {len(data.test):,} test "
        f"images{classes}{shape}, on {data.device}" + (f", shared by {n} processes" if (n := processes()) > 1 else "")
    )
    if 0 < len(data.val) < FEW and task.metric == "accuracy":
        error = 50 / math.sqrt(len(data.val))
        say(f"  Only {len(data.val)} validation images: an accuracy on them is off by up to {error:.1f} points "
            "(one standard error)")  # fmt: skip
    own = "random weights" if bare else "its own weights"
    origin = f"weights of {_shown(dense.weights)}" if dense.weights else own
    say(f"Model {model}: {origin}" + (f"; new last layer {', '.join(dense.fresh)}" if dense.fresh else ""))


def _shown(path: str) -> str:
    """A path as a user of this folder would write it."""
    full = Path(path)
    return str(full.relative_to(Path.cwd()) if full.is_relative_to(Path.cwd()) else full)


def build_named(ref: str, num_classes: int | None, in_channels: int | None) -> nn.Module:
    """A model by reference, for commands that need no data."""
    refuse_missing_run(ref)
    return build_model(ref, num_classes=num_classes, in_channels=in_channels)
