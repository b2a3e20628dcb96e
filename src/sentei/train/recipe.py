"""How to train: one frozen record of every setting."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from sentei.data import Augment
from sentei.errors import ConfigError


@dataclass(frozen=True)
class Recipe:
    """SGD with momentum or AdamW, linear warm-up and cosine decay to zero; the defaults train small CIFAR networks.

    >>> Recipe(epochs=10, lr=0.05).lr_at(step=100, steps_per_epoch=100)
    0.05
    """

    epochs: int = 40
    """Passes over the training images."""
    batch_size: int = 128
    """Images a step."""
    lr: float = 0.1
    """Peak learning rate, reached after the warm-up."""
    optimizer: str = "sgd"
    """``sgd`` with momentum, or ``adamw``, whose learning rates are more like 0.001."""
    momentum: float = 0.9
    """Of sgd."""
    nesterov: bool = True
    """Of sgd."""
    weight_decay: float = 5e-4
    """Decay of weights: an L2 penalty with sgd, decoupled with adamw; norms and biases are never decayed."""
    warmup_epochs: float = 1.0
    """Epochs of linear rise to the peak; cut to a quarter of the run where that is shorter."""
    schedule: str = "cosine"
    """``cosine`` falls to zero, ``constant`` stays at the peak."""
    label_smoothing: float = 0.0
    clip_grad: float | None = None
    """Largest norm of the whole gradient."""
    ema_decay: float | None = None
    """Average the weights with this decay a step; the averaged network is what is measured and returned."""
    distill_weight: float = 0.5
    """Share of the teacher's term in the loss; without a teacher it has no effect."""
    temperature: float = 4.0
    """Softens both sides of the teacher's term."""
    hint_weight: float = 10.0
    """Weight of the distance to the teacher's features, where a cut network is distilled from the one that it was; 0
    compares outputs alone. Without a teacher, or with a distill_weight of 0, it has no effect."""
    bf16: bool | None = None
    """Autocast to bfloat16; None switches it on where the hardware computes in it."""
    channels_last: bool = True
    """Train in PyTorch's faster memory layout, except where it crashes (see `sentei.layout`)."""
    compile: bool = False
    """Pass the model through torch.compile."""
    accumulate: int = 1
    """Pieces that a batch is computed in, one after another, to take less memory; each has BatchNorm statistics of its
    own."""
    train_memory_mb: int | None = None
    """Let a step take about so much memory, in each process: batches are computed in as many pieces as that needs.
    Passes that measure, or take statistics, have batches that fit too; of 1,024 MB where nothing is said."""
    recompute: bool = False
    """Keep only what goes into each block, and compute the rest again for the gradients: less memory, more time."""
    sync_norm: bool = False
    """Where several processes train, take BatchNorm statistics over the whole batch, not over each one's part."""
    flip: bool | None = None
    """Random mirroring; None is the data set's own choice, here and below."""
    crop: int | None = None
    """Random shift in pixels (images in memory)."""
    cutout: int | None = None
    """Side of a square hidden at random (images in memory)."""
    scale: tuple[float, float] | None = None
    """Area range of the random resized crop (image files)."""
    limit: int | None = None
    """Train on only so many images an epoch."""
    seed: int = 0
    """Decides the order of the images, their augmentation, and dropout."""

    def __post_init__(self) -> None:
        rules = {
            "epochs": (self.epochs >= 0, "0 or more"),
            "batch_size": (self.batch_size >= 1, "1 or more"),
            "accumulate": (1 <= self.accumulate <= self.batch_size, f"1 to batch_size, {self.batch_size}"),
            "train_memory_mb": (self.train_memory_mb is None or self.train_memory_mb >= 1, "1 or more, or None"),
            "lr": (math.isfinite(self.lr) and self.lr >= 0, "0 or more"),
            "optimizer": (self.optimizer in ("sgd", "adamw"), "'sgd' or 'adamw'"),
            "momentum": (0 <= self.momentum < 1, "from 0 to below 1"),
            "nesterov": (not self.nesterov or self.momentum > 0, "False where momentum is 0"),
            "weight_decay": (self.weight_decay >= 0, "0 or more"),
            "warmup_epochs": (self.warmup_epochs >= 0, "0 or more"),
            "schedule": (self.schedule in ("cosine", "constant"), "'cosine' or 'constant'"),
            "label_smoothing": (0 <= self.label_smoothing < 1, "from 0 to below 1"),
            "clip_grad": (self.clip_grad is None or self.clip_grad > 0, "above 0, or None"),
            "ema_decay": (self.ema_decay is None or 0 < self.ema_decay < 1, "between 0 and 1, or None"),
            "distill_weight": (0 <= self.distill_weight <= 1, "from 0 to 1"),
            "temperature": (self.temperature > 0, "above 0"),
            "hint_weight": (self.hint_weight >= 0, "0 or more"),
            "crop": (self.crop is None or self.crop >= 0, "0 or more, or None"),
            "cutout": (self.cutout is None or self.cutout >= 0, "0 or more, or None"),
            "scale": (
                self.scale is None or 0 < self.scale[0] <= self.scale[1] <= 1,
                "0 < low <= high <= 1, or None",
            ),
            "limit": (self.limit is None or self.limit >= 1, "1 or more, or None"),
        }
        for name, (valid, expected) in rules.items():
            if not valid:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; expected {expected}.")

    def lr_at(self, step: int, steps_per_epoch: int, last_steps: int | None = None) -> float:
        """Learning rate of a step, counted from 0 over the run: a pure function, so resuming is exact.

        `last_steps` are those of the last epoch, where it is a shorter one.
        """
        total = self.epochs * steps_per_epoch
        if last_steps is not None and self.epochs:
            total += last_steps - steps_per_epoch
        warmup = int(min(self.warmup_epochs * steps_per_epoch, total / 4))
        if step < warmup:
            return self.lr * (step + 1) / (warmup + 1)
        if self.schedule == "constant":
            return self.lr
        return self.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(total - warmup, 1)))

    def augment(self, default: Augment) -> Augment:
        """The data set's augmentation with what this recipe sets itself."""
        given = {name: getattr(self, name) for name in ("flip", "crop", "cutout", "scale")}
        return replace(default, **{name: value for name, value in given.items() if value is not None})

    def autocast(self, device: torch.device) -> bool:
        """Whether to compute in bfloat16 on this device."""
        return bf16_supported(device) if self.bf16 is None else self.bf16

    def to_dict(self) -> dict[str, Any]:
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


def bf16_supported(device: torch.device) -> bool:
    """True where bfloat16 arithmetic is in hardware; elsewhere it is emulated and slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16"))
