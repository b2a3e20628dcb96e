"""Models by reference: our zoo, torchvision, timm, or a function in a user's file."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from sentei.errors import ModelError
from sentei.models import densenet, googlenet, mobilenet, plain, resnet
from sentei.models.user_file import load_function
from sentei.models.weights import load_weights

Shape = tuple[int, int, int]

ZOO: dict[str, Callable[..., nn.Module]] = {
    "resnet20": resnet.resnet20,
    "resnet32": resnet.resnet32,
    "resnet44": resnet.resnet44,
    "resnet56": resnet.resnet56,
    "resnet110": resnet.resnet110,
    "vgg16": plain.VGG,
    "googlenet": googlenet.GoogLeNet,
    "densenet40": densenet.DenseNet,
    "mobilenetv2": mobilenet.MobileNetV2,
    "convnet": plain.ConvNet,
    "digitsnet": plain.DigitsNet,
}
TRAINED = {"resnet20-cifar10": ("resnet20", 10)}
"""Networks packaged with their weights: zoo name and number of classes."""
WEIGHTS = Path(__file__).parent / "weights"
FORMS = "a zoo name, sentei:NAME, torchvision:NAME, timm:NAME or path/to/file.py:function"


def build_model(
    ref: str,
    *,
    num_classes: int | None = None,
    in_channels: int | None = None,
    input_shape: Shape | None = None,
    weights: str | Path | None = None,
) -> nn.Module:
    """Build a model; nothing is downloaded, and weights files cannot execute code.

    >>> build_model("resnet56", num_classes=100).linear
    Linear(in_features=64, out_features=100, bias=True)

    Args:
        ref: a zoo name (``resnet20``, ``vgg16``, ...), ``sentei:resnet20-cifar10`` (with packaged weights),
            ``torchvision:NAME`` (classification, segmentation or detection), ``timm:NAME``, or
            ``path/to/file.py:function``, called with those of ``num_classes`` and ``in_channels`` it takes.
        num_classes: None is the model's own number. Weights of another number load all but the last layer,
            and the log names what stayed fresh.
        in_channels: image channels; None takes them from ``input_shape``, or the model's own.
        weights: safetensors, or a state_dict in a torch file.

    Raises:
        ModelError: unknown name (suggests the nearest) or weights that do not fit.
        CheckpointError: a weights file that is missing or damaged.
    """
    if in_channels is None and input_shape is not None:
        in_channels = input_shape[0]
    options = {"num_classes": num_classes, "in_channels": in_channels}
    given = {name: value for name, value in options.items() if value is not None}
    for name, value in given.items():
        if value < 1:
            raise ModelError(f"{name} is {value}; expected 1 or more.")
    if ref.startswith("sentei:"):
        name, classes = _packaged(ref.removeprefix("sentei:"))
        path = WEIGHTS / f"{ref.removeprefix('sentei:')}.safetensors"
        model = ZOO[name](**{"num_classes": classes, **given})
        _load(model, weights or path, num_classes)
        return model
    model = _maker(ref)(given)
    if not isinstance(model, nn.Module):
        raise ModelError(f"{ref} returned {type(model).__name__}, expected a torch.nn.Module.")
    if weights is not None:
        _load(model, weights, num_classes)
    return model


def input_shape_of(ref: str) -> Shape:
    """Channels, height and width that a model expects where nothing else is known.

    >>> input_shape_of("resnet20"), input_shape_of("torchvision:inception_v3")
    ((3, 32, 32), (3, 299, 299))

    A user's function may carry an attribute ``input_shape``; otherwise 3x224x224 is assumed for it.
    """
    if ref in ZOO or ref.startswith("sentei:"):
        return (1, 8, 8) if ref == "digitsnet" else (3, 32, 32)
    if ref.startswith("timm:"):
        timm = _timm()
        config = timm.get_pretrained_cfg(ref.removeprefix("timm:"), allow_unregistered=True)
        return tuple(config.input_size) if config is not None else (3, 224, 224)
    if ".py:" in ref:
        return tuple(getattr(load_function(ref), "input_shape", (3, 224, 224)))
    return (3, 299, 299) if ref == "torchvision:inception_v3" else (3, 224, 224)


def _load(model: nn.Module, path: str | Path, num_classes: int | None) -> None:
    fresh = load_weights(model, path, new_head=num_classes)
    if fresh:
        logging.getLogger("sentei").warning("New last layer for %s classes: %s", num_classes, ", ".join(fresh))


def _packaged(name: str) -> tuple[str, int]:
    if name not in TRAINED:
        raise _unknown("trained network", f"sentei:{name}", [f"sentei:{n}" for n in TRAINED])
    return TRAINED[name]


def _maker(ref: str) -> Callable[[dict[str, Any]], nn.Module]:
    if ref in ZOO:
        return lambda given: ZOO[ref](**given)
    if ref.startswith("torchvision:"):
        return partial(_torchvision, ref.removeprefix("torchvision:"))
    if ref.startswith("timm:"):
        return partial(_timm_model, ref.removeprefix("timm:"))
    if ".py:" in ref:
        return partial(_call, ref, load_function(ref))
    if ref.endswith(".py"):
        raise ModelError(f"{ref!r} is a file; name the function in it that builds the model as well: {ref}:FUNCTION.")
    raise _unknown("model", ref, [*ZOO, *_elsewhere(ref)])


def _elsewhere(name: str) -> list[str]:
    """The name as torchvision or timm have it."""
    from torchvision import models

    found = [f"torchvision:{name}"] if name in models.list_models(module=models) else []
    try:
        return found + [f"timm:{name}"] * _timm().is_model(name)
    except ModelError:
        return found


def _torchvision(name: str, given: dict[str, Any]) -> nn.Module:
    from torchvision import models

    families = {"classification": models.list_models(module=models)}
    families["segmentation"] = models.list_models(module=models.segmentation)
    families["detection"] = models.list_models(module=models.detection)
    family = next((f for f, names in families.items() if name in names), None)
    if family is None:
        raise _unknown("torchvision model", name, sum(families.values(), []), "torchvision:")
    if given.pop("in_channels", 3) != 3:
        raise ModelError(f"torchvision:{name} takes 3 channels. Build it in a file.py:function, or use a timm model.")
    if family != "classification":
        given["weights_backbone"] = None
    if name in ("googlenet", "inception_v3"):
        given["init_weights"] = True
    return models.get_model(name, weights=None, **given)


def _timm() -> Any:
    try:
        import timm
    except ImportError as error:
        raise ModelError("timm models need the timm package: pip install timm.") from error
    return timm


def _timm_model(name: str, given: dict[str, Any]) -> nn.Module:
    timm = _timm()
    if not timm.is_model(name):
        raise _unknown("timm model", name, timm.list_models(), "timm:")
    if "in_channels" in given:
        given["in_chans"] = given.pop("in_channels")
    return timm.create_model(name, pretrained=False, **given)


def _call(ref: str, function: Callable[..., Any], given: dict[str, Any]) -> nn.Module:
    taken = inspect.signature(function).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in taken.values()):
        given = {name: value for name, value in given.items() if name in taken}
    try:
        return function(**given)
    except Exception as error:
        raise ModelError(f"{ref} failed: {type(error).__name__}: {error}") from error


def _unknown(kind: str, name: str, names: Iterable[str], prefix: str = "") -> ModelError:
    names = list(names)
    near = [n for n in names if n.endswith(f":{name}")] or get_close_matches(name, names, 3, 0.5)
    hint = f"Did you mean {', '.join(prefix + n for n in near)}?" if near else f"Known: {', '.join(names[:20])}."
    return ModelError(f"Unknown {kind} {prefix + name!r}. {hint} A model is {FORMS}.")
