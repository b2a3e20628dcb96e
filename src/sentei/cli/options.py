"""Options that several commands share, and what they are resolved to: a model and data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from torch import nn

from sentei.cli.console import say
from sentei.errors import CheckpointError, ConfigError
from sentei.models import build_model, load_weights
from sentei.models.reference import TRAINED
from sentei.runs import is_started, read_config
from sentei.train import Data, Recipe, load_data

Ref = tyro.conf.Positional[str]
MODEL = "zoo name, sentei:NAME, torchvision:NAME, timm:NAME, FILE.py:FUNCTION, or the folder of a finished run"
DATA = "digits, cifar10, cifar100, fashion-mnist, imagefolder:PATH or FILE.py:FUNCTION"


@dataclass(frozen=True)
class DataOptions:
    """Where the images come from and how they are prepared."""

    data: Annotated[str | None, tyro.conf.arg(metavar="DATA")] = None
    """digits, cifar10, cifar100, fashion-mnist, imagefolder:PATH or FILE.py:FUNCTION. Where MODEL is a run, its
    data, with the same split, is the default."""
    data_root: Annotated[str | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Folder that holds the data; else SENTEI_DATA, else ./data."""
    image_size: Annotated[int | None, tyro.conf.arg(metavar="PIXELS")] = None
    """Height and width; small images stay as they are and folders get 224 unless given."""
    normalize: Literal["imagenet", "none"] | None = None
    """Statistics to normalise with; the data set's own unless given. Use what the weights were trained with."""
    val: Annotated[float | None, tyro.conf.arg(metavar="N")] = None
    """Validation images: a number, or a fraction of the training images."""
    split_seed: int = 0
    """Decides which training images are the validation split."""
    workers: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Processes that decode image folders; one for each CPU unless given."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ...; auto takes a GPU if there is one."""

    def load(self, model: str | None = None) -> Data:
        """The data; `model` is the reference that could have named it, had it been a run."""
        if self.data is None:
            no_run = f" ({model} is not the folder of a run, whose data would be the default)" if model else ""
            raise ConfigError(f"--data is missing: give {DATA}{no_run}")
        val = None if self.val is None else int(self.val) if self.val >= 1 else self.val
        return load_data(
            self.data,
            root=self.data_root,
            val=val,
            seed=self.split_seed,
            image_size=self.image_size,
            device=device_of(self.device),
            normalize=self.normalize,
            workers=self.workers,
        )

    def filled(self, run: Mapping[str, Any]) -> DataOptions:
        """These options, with those of a run for what was not given; another data set shares nothing but the root."""
        if self.data is not None and self.data != run["data"]:
            return self
        default = DataOptions()
        given = {f.name: v for f in fields(self) if (v := getattr(self, f.name)) != getattr(default, f.name)}
        return replace(DataOptions(**{**dict(run), "device": self.device}), **given)

    def resolved(self) -> DataOptions:
        """With paths that hold from any working directory."""
        root = None if self.data_root is None else str(Path(self.data_root).resolve())
        return replace(self, data_root=root, data=resolved_ref(self.data))


@dataclass(frozen=True)
class Dense:
    """A dense model as a command names it: how to build it again, and where its weights are."""

    ref: str
    weights: str | None
    num_classes: int | None
    in_channels: int | None
    fresh: tuple[str, ...] = ()
    """Parameters of a new last layer, not yet trained."""

    def build(self) -> nn.Module:
        """The architecture, with random weights."""
        return build_model(self.ref, num_classes=self.num_classes, in_channels=self.in_channels)


def device_of(name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ConfigError(f"--device {name} cannot be used: {str(error).splitlines()[0]}") from error
    return name


def resolved_ref(ref: str | None) -> str | None:
    """A model or data reference whose path, if it has one, is absolute."""
    if ref is None:
        return None
    if ".py:" in ref:
        file, _, function = ref.rpartition(":")
        return f"{Path(file).expanduser().resolve()}:{function}"
    if ref.startswith("imagefolder:") and Path(ref.partition(":")[2]).is_dir():
        return f"imagefolder:{Path(ref.partition(':')[2]).resolve()}"
    return str(Path(ref).resolve()) if is_started(ref) else ref


def run_command(folder: str | Path) -> dict[str, Any]:
    """The command that a run was made with; ConfigError if it was made from Python."""
    command = read_config(folder).get("command")
    if not command:
        raise ConfigError(
            f"{folder} was made from Python, so the command line cannot rebuild its model and data. "
            "Call the same function again with the same arguments to go on, or sentei.load to use the result"
        )
    return dict(command)


def packaged_weights(ref: str, data: str | None) -> str:
    """`sentei:MODEL-DATA` where the package has that network trained, otherwise the reference itself."""
    return f"sentei:{ref}-{data}" if f"{ref}-{data}" in TRAINED else ref


def dense_model(ref: str, weights: str | None, data: Data, seed: int) -> tuple[nn.Module, Dense]:
    """Build a model for the data, with weights from a file, a run or the package; random ones follow from the seed."""
    torch.manual_seed(seed)
    if is_started(ref):
        return _from_run(ref, weights, data)
    channels = data.input_shape[0]
    in_channels = None if ref.startswith("torchvision:") and channels == 3 else channels
    dense = Dense(ref, weights, data.num_classes, in_channels)
    model = dense.build()
    fresh = load_weights(model, weights, new_head=data.num_classes) if weights is not None else []
    return model, replace(dense, fresh=tuple(fresh))


def _from_run(ref: str, weights: str | None, data: Data) -> tuple[nn.Module, Dense]:
    folder, command = Path(ref), run_command(ref)
    if weights is not None:
        raise ConfigError(f"{ref} is a run and has its own weights; leave out --weights")
    if command["verb"] != "train":
        raise ConfigError(
            f"{ref} is a pruned network already. Prune the network it came from ({command['model']}) with a smaller "
            "budget; --steps cuts in several steps"
        )
    file = folder / "model.safetensors"
    if not file.is_file():
        raise CheckpointError(f"the run in {ref} is not finished. Go on with:  sentei resume {ref}")
    dense = Dense(**command["dense"])
    if dense.num_classes != data.num_classes:
        raise ConfigError(f"{ref} was trained for {dense.num_classes} classes, the data has {data.num_classes}")
    model = dense.build()
    load_weights(model, file)
    return model, replace(dense, weights=str(file.resolve()), fresh=())


def recipe_from(saved: Mapping[str, Any]) -> Recipe:
    scale = saved.get("scale")
    return Recipe(**{**saved, "scale": None if scale is None else tuple(scale)})


def _shown(path: str) -> str:
    """A path as a user of this folder would write it."""
    full = Path(path)
    return str(full.relative_to(Path.cwd()) if full.is_relative_to(Path.cwd()) else full)


def is_bare(dense: Dense) -> bool:
    """Whether the weights are random; a user's function may bring its own."""
    return dense.weights is None and ".py:" not in dense.ref and not dense.ref.startswith("sentei:")


def announce(model: str, dense: Dense, data: Data) -> None:
    """One line each for the data and for where the weights come from."""
    say(
        f"Data {data.name}: {len(data.train):,} training, {len(data.val):,} validation, {len(data.test):,} test "
        f"images, {data.num_classes} classes, {'x'.join(map(str, data.input_shape))}, on {data.device}"
    )
    own = "random weights" if is_bare(dense) else "its own weights"
    origin = f"weights of {_shown(dense.weights)}" if dense.weights else own
    say(f"Model {model}: {origin}" + (f"; new last layer {', '.join(dense.fresh)}" if dense.fresh else ""))


def plain(options: Any) -> dict[str, Any]:
    """Options as what YAML can hold."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(options).items()}
