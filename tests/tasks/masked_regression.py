"""A task like none of the built-in ones: two inputs, batches as dictionaries, a masked regression, lower is better.

As a process of its own, `python masked_regression.py METHOD RUN WRITES`, it dies by SIGKILL at that write to the disk.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sentei
from sentei.methods import PruneResult
from sentei.train import Recipe, fit

METHODS: dict[str, dict[str, Any]] = {
    "l1": {"steps": 2},
    "taylor": {},
    "abc": {"evaluations": 8, "sources": 3, "calibration_images": 64, "validation_images": 48},
    "evolution": {"evaluations": 8, "population": 4, "parents": 2, "calibration_images": 64, "validation_images": 48},
    "stagewise": {
        "supernet_epochs": 1, "evaluations": 8, "table_images": 48, "candidates": 3, "calibration_images": 64,
        "validation_images": 48, "stages": ("trunk.2",),
    },
    "ista": {"sparse_epochs": 3, "sparse_lr": 0.05, "genes": "all"},
}  # fmt: skip


class Stereo(nn.Module):
    """Depth from two views: a shared encoder, the difference of its features, a decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.view = nn.Sequential(*block(1, 12), *block(12, 12))
        self.trunk = nn.Sequential(*block(24, 16), *block(16, 16))
        self.depth = nn.Conv2d(16, 1, 1)

    def forward(self, left: Tensor, right: Tensor, *, scale: Tensor) -> dict[str, Tensor]:
        features = torch.cat([self.view(x * scale[:, None, None, None]) for x in (left, right)], 1)
        return {"depth": self.depth(self.trunk(features))[:, 0]}


def block(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]


class Depth(sentei.Task):
    """Root mean squared error where the depth is known."""

    metric, lower_is_better = "rmse", True

    def inputs(self, batch: Any) -> Any:
        return {name: batch["views"][name] for name in ("left", "right")} | {"scale": batch["scale"]}

    def loss(self, output: Any, batch: Any) -> Tensor:
        known = batch["known"]
        return F.smooth_l1_loss(output["depth"][known], batch["depth"][known])

    def measure(self, model: nn.Module, batches: Any) -> dict[str, float]:
        squares = torch.cat(
            [(model(**self.inputs(b))["depth"] - b["depth"])[b["known"]].square() for b in batches]
        )  # fmt: skip
        return {"rmse": squares.mean().sqrt().item(), "worst": squares.max().sqrt().item()}


def batches(count: int, seed: int, size: int = 16) -> list[dict[str, Any]]:
    """Textures shifted by their depth."""
    generator = torch.Generator().manual_seed(seed)
    out = []
    for _ in range(count):
        left = torch.randn(size, 1, 10, 10, generator=generator)
        shift = torch.randint(0, 3, (size,), generator=generator)
        right = torch.stack([image.roll(int(s), -1) for image, s in zip(left, shift, strict=True)])
        depth = shift[:, None, None].float().expand(-1, 10, 10).contiguous()
        known = torch.rand(size, 10, 10, generator=generator) < 0.8
        views = {"left": left, "right": right, "name": "synthetic"}
        out.append({"views": views, "scale": torch.ones(size), "depth": depth, "known": known})
    return out


def data() -> sentei.Data:
    return sentei.Data.of(train=batches(8, 0), val=batches(3, 1), test=batches(3, 2))


def trained() -> nn.Module:
    torch.manual_seed(0)
    model = Stereo()
    fit(model, data(), Recipe(epochs=6, lr=0.2, ema_decay=None), task=Depth(), progress=False)
    return model


def pruned(model: nn.Module, method: str, run: str | Path | None = None) -> PruneResult:
    recipe = Recipe(epochs=1, lr=0.05, seed=3)
    return sentei.prune(
        model, data(), task=Depth(), method=method, budget=sentei.Budget(macs=0.6), run_dir=run, recipe=recipe,
        constraints=sentei.Constraints(round_to=1, max_ratio=0.9), images=64, **METHODS[method],
    )  # fmt: skip


def main(method: str, run: str, writes: str) -> None:
    torch.set_num_threads(1)
    left, replace = int(writes), os.replace

    def counted(*args: Any, **options: Any) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(*args, **options)

    model = trained()
    os.replace = counted
    pruned(model, method, run)


if __name__ == "__main__":
    main(*sys.argv[1:])
