"""Options that several commands share."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, make_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from torch import nn
from tyro.constructors import PrimitiveConstructorSpec

from sentei.data import Data, load_data
from sentei.data.load import in_folder, located
from sentei.data.shardlist import KIND, runs_commands, without_pattern
from sentei.errors import ConfigError
from sentei.methods.common.pruning import DEFAULT_CONSTRAINTS
from sentei.models import build_model
from sentei.plan import Constraints
from sentei.runfiles import is_started
from sentei.speed.latency import Timing
from sentei.tasks import Task, task_of
from sentei.train import Recipe
from sentei.train.presets import PRESETS

Ref = tyro.conf.Positional[str]
MODEL = "zoo name, sentei:NAME, torchvision:NAME, timm:NAME, FILE.py:FUNCTION, or the folder of a finished run"
DATA = (
    "digits, cifar10, cifar100, fashion-mnist, imagefolder:PATH, webdataset:PATTERN, segmentation:PATH, coco:PATH or "
    "FILE.py:FUNCTION"
)
SIZES = {"k": 1e3, "M": 1e6, "G": 1e9}


def amount(text: str) -> float:
    """A number, a percentage, or a number with a unit.

    >>> amount("0.5"), amount("50%"), amount("41.2M"), amount("20000000")
    (0.5, 0.5, 41200000.0, 20000000.0)
    """
    given = text.strip()
    try:
        if given.endswith("%"):
            return _share(text, float(given[:-1]) / 100)
        return float(given[:-1]) * SIZES[given[-1]] if given[-1:] in SIZES else float(given)
    except ValueError:
        raise ConfigError(
            f"{text!r} is no amount; expected a share such as 0.5 or 50%, or a number such as 20M"
        ) from None


def _share(text: str, value: float) -> float:
    if value > 1:
        raise ConfigError(f"{text!r} is more than the whole; a share is at most 100%")
    return value


_AMOUNT: Any = PrimitiveConstructorSpec(
    nargs=1,
    metavar="X",
    instance_from_str=lambda words: amount(words[0]),
    is_instance=lambda value: value is None or isinstance(value, (int, float)),
    str_from_instance=lambda value: [str(value)],
)
Amount = Annotated[float, _AMOUNT]
OptionalAmount = Annotated[float | None, _AMOUNT]

Trust = Annotated[bool, tyro.conf.arg(name="trust")]
Code = Annotated[
    str | None,
    tyro.conf.arg(
        name="model",
        metavar="FILE.py:FUNCTION",
        help="Where MODEL is a run made with such a function: the same function, where it lies now.",
    ),
]


Preset = Annotated[
    Literal["imagenet-finetune", "imagenet-train"] | None,
    tyro.conf.arg(
        metavar="|".join(PRESETS),
        help="Begin with the settings of a published recipe; options that are given as well come before them. "
        + "; ".join(f"{name}: {found.source}" for name, found in PRESETS.items())
        + ".",
    ),
]


def word_behind(argv: Sequence[str], option: str) -> str | None:
    """What a command line gives for an option, `--option X` or `--option=X`; None if it does not give it.

    >>> word_behind(["train", "resnet56", "--preset", "imagenet-train"], "--preset")
    'imagenet-train'
    """
    for i, word in enumerate(argv):
        if word.startswith(f"{option}="):
            return word.partition("=")[2]
        if word == option and i + 1 < len(argv):
            return argv[i + 1]
    return None


def with_preset(kind: type, argv: Sequence[str]) -> type:
    """A command whose recipe, unless told otherwise, is that of the preset that a command line asks for, if any."""
    found = PRESETS.get(word_behind(argv, "--preset") or "")
    if found is None:  # of names that are none the parser tells
        return kind
    (own,) = (f for f in fields(kind) if f.name == "recipe")
    before = Recipe() if own.default is MISSING else own.default
    changed = [("recipe", Recipe, field(default=found.over(before)))]
    return make_dataclass(kind.__name__, changed, bases=(kind,), frozen=True, namespace={"__doc__": kind.__doc__})


@dataclass(frozen=True)
class Output:
    """What is shown of the result."""

    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False
    """Print the result as JSON, and nothing else, on stdout."""
    quiet: bool = False
    """Print nothing but errors and, with --json, the result."""


@dataclass(frozen=True)
class RunOutput(Output):
    """What is shown of the run."""

    tensorboard: bool = False
    """Write what the journal says as scalars for TensorBoard too, into the folder tensorboard of the run."""


@dataclass(frozen=True)
class TrainingOutput(RunOutput):
    """What is shown and stored of the run."""

    checkpoint_minutes: Annotated[float | None, tyro.conf.arg(metavar="MINUTES")] = None
    """Store the state of training within an epoch too, so often: where an epoch is too long to be lost."""


@dataclass(frozen=True)
class DataOptions:
    """Where the images come from and how they are prepared."""

    data: Annotated[str | None, tyro.conf.arg(metavar="DATA")] = None
    """digits, cifar10, cifar100, fashion-mnist, imagefolder:PATH, webdataset:PATTERN (tar shards), segmentation:PATH,
    coco:PATH or FILE.py:FUNCTION. Where MODEL is a run, its data, with the same split, is the default."""
    task: Annotated[str | None, tyro.conf.arg(metavar="TASK")] = None
    """What the network is for: classification, segmentation, detection or FILE.py:CLASS. What the data are for unless
    given."""
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
    classes: Annotated[tuple[str, ...], tyro.conf.arg(metavar="N|NAME NAME ...")] = ()
    """Some classes only: so many, drawn at random by --split-seed, or two and more by name; numbered anew from 0."""
    per_class: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Training images of each class at most, drawn by --split-seed, those for validation included."""
    workers: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Processes that decode image files; one for each CPU unless given."""
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
            classes=self._classes(),
            per_class=self.per_class,
        )

    def _classes(self) -> int | tuple[str, ...] | None:
        if len(self.classes) == 1 and self.classes[0].isdecimal():
            return int(self.classes[0])
        return self.classes or None

    def purpose(self) -> Task:
        """What the network is for."""
        return task_of(self.task, self.data)

    def filled(self, run: DataOptions) -> DataOptions:
        """These options, with those of a run for what was not given; another data set shares nothing but the root."""
        own = self.resolved() if self.data is not None else self
        if own.data is not None and own.data != run.data:
            return replace(self, task=self.task or run.task)
        default = DataOptions()
        given = {f.name: v for f in fields(self) if (v := getattr(own, f.name)) != getattr(default, f.name)}
        return replace(run, device=self.device, **{k: v for k, v in given.items() if k != "device"})

    def resolved(self) -> DataOptions:
        """With paths that hold from any working directory."""
        if self.data is None:
            return self
        data, root = located(self.data, self.data_root)
        task = resolved_ref(self.task) if is_code(self.task) and self.task else self.task
        return replace(self, data=data, data_root=root, task=task)


@dataclass(frozen=True)
class Limits:
    """How far each group of channels may shrink."""

    round_to: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Widths become multiples of this in groups of at least four times as many channels, of smaller steps in narrower.
    Unless given 16, and 16 at least, in networks with a group of 128 channels or more, 8 in others."""
    min_width: Annotated[int, tyro.conf.arg(metavar="N")] = 1
    """Units that every group keeps at least."""
    max_ratio: Amount = float(DEFAULT_CONSTRAINTS.ratios["*"])
    """Largest share of its units that a group may lose."""
    keep: Annotated[tuple[str, ...], tyro.conf.arg(metavar="PATTERN")] = ()
    """Layers that stay whole, by name or pattern, with every group that they produce or read."""

    def constraints(self) -> Constraints:
        return Constraints(**vars(self))


@dataclass(frozen=True)
class TimingOptions:
    """Where milliseconds are measured, if the budget limits them."""

    runtime: Literal["onnxruntime", "openvino", "eager", "compile"] = "onnxruntime"
    """Where the pruned network will run."""
    runtime_threads: Annotated[int, tyro.conf.arg(metavar="N")] = 1
    """Threads of that runtime."""
    latency_table: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """A latency table measured before, by sentei.LatencyTable."""

    def timing(self) -> Timing:
        return Timing(self.runtime, self.runtime_threads, absolute_or_none(self.latency_table))


@dataclass(frozen=True)
class Teacher:
    """Whether the original network teaches the pruned one."""

    distill: Annotated[bool, tyro.conf.arg(help_behavior_hint="(the default where the task says how to)")] = False
    """Fine-tune with the original network as the teacher; a task that does not say how to imitate one is refused. Those
    built in for classes and masks do."""
    no_distill: bool = False
    """Fine-tune without a teacher."""

    def __post_init__(self) -> None:
        if self.distill and self.no_distill:
            raise ConfigError("--distill and --no-distill exclude each other: leave one of them out")

    @property
    def wanted(self) -> bool | None:
        """None where it is left to the task."""
        return True if self.distill else False if self.no_distill else None


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


def is_code(ref: str | None) -> bool:
    """Whether a reference names a function in a user's file, or shards that a command brings."""
    return ref is not None and (".py:" in ref or runs_commands(ref))


def resolved_ref(ref: str) -> str:
    """A model reference whose path, if it has one, is absolute."""
    if ".py:" in ref:
        file, _, function = ref.rpartition(":")
        return f"{absolute(file)}:{function}"
    return absolute(ref) if is_started(ref) else ref


def path_of(ref: str) -> Path | None:
    """The file or folder of a resolved reference; None for one that names none.

    >>> path_of("resnet56"), path_of("imagefolder:/photos"), path_of("/nets/mine.py:make")
    (None, PosixPath('/photos'), PosixPath('/nets/mine.py'))
    """
    if ref.startswith(KIND):
        return without_pattern(ref.removeprefix(KIND))
    path = Path(ref.rpartition(":")[0] if is_code(ref) else in_folder(ref) or ref)
    return path if path.is_absolute() else None


def absolute(path: str | Path) -> str:
    return str(Path(path).expanduser().resolve())


def absolute_or_none(path: str | Path | None) -> str | None:
    return None if path is None else absolute(path)


def plain(options: Any) -> dict[str, Any]:
    """Options as what YAML can hold."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(options).items()}


def short(ref: str) -> str:
    """A reference as a part of a folder's name.

    >>> short("torchvision:mobilenet_v2"), short("nets/mine.py:make"), short("imagefolder:photos/cats")
    ('mobilenet_v2', 'make', 'cats')
    >>> short("webdataset:/data/imagenet-train-{000..146}.tar")
    'imagenet-train'
    """
    name = Path(ref.rpartition(":")[2]).name or "model"
    return re.split(r"[-_.]*[{*?\[]", name)[0] or "shards" if ref.startswith(KIND) else name


def default_folder(model: str, data: str | None, *more: str) -> Path:
    """runs/MODEL-DATA..., or runs/RUN... where the model is a run and brings its data."""
    given = [] if is_started(model) and data is None else [short(data or "data")]
    return Path("runs") / "-".join([short(model), *given, *more])


def command_of(verb: str, model: str, dense: Dense, data: DataOptions, **more: Mapping[str, Any]) -> dict[str, Any]:
    """What `sentei resume` needs to make the same options again from anywhere."""
    return {"verb": verb, "model": model, "dense": plain(dense), "data": plain(data.resolved()), **more}
