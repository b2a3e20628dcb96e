"""Published training recipes by name: settings that take the place of a command's own, before explicit options do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from sentei.errors import ConfigError
from sentei.train.recipe import Recipe


@dataclass(frozen=True)
class Preset:
    """Settings of a `Recipe`, and where they were published."""

    settings: Mapping[str, Any]
    source: str

    def over(self, recipe: Recipe) -> Recipe:
        """The recipe with these settings; what a preset does not name stays."""
        return replace(recipe, **self.settings)


_RESNET50: Mapping[str, Any] = {
    "epochs": 90,
    "batch_size": 1024,
    "lr": 1.024,
    "optimizer": "sgd",
    "momentum": 0.875,
    "nesterov": False,
    "weight_decay": 2**-15,
    "warmup_epochs": 8.0,
    "schedule": "cosine",
    "label_smoothing": 0.1,
    "flip": True,
    "scale": (0.08, 1.0),
}

PRESETS: Mapping[str, Preset] = {
    "imagenet-finetune": Preset(
        _RESNET50,
        "HALP (Shen et al., NeurIPS 2022, arXiv 2210.06659), after pruning ResNet-50 on 8 GPUs: "
        "NVlabs/HALP, configs/exp_configs/rn50_imagenet_prune.yaml",
    ),
    "imagenet-train": Preset(
        _RESNET50,
        "the same authors' ResNet-50 from random weights, after NVIDIA's ResNet-50 v1.5: "
        "NVlabs/HALP, configs/exp_configs/rn50_imagenet_baseline.yaml",
    ),
}


def preset(name: str, recipe: Recipe | None = None) -> Recipe:
    """A recipe with the settings of a preset.

    >>> found = preset("imagenet-finetune")
    >>> found.lr, found.batch_size, found.epochs
    (1.024, 1024, 90)

    The learning rate belongs to the batch size: give both, or scale the one with the other. ConfigError for a name that
    is none.
    """
    if name not in PRESETS:
        raise ConfigError(f"there is no preset {name!r}; there are {', '.join(PRESETS)}")
    return PRESETS[name].over(recipe or Recipe())
