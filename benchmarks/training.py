"""Training speed of sentei's loop beside the loop most people write: ResNet-20 on CIFAR-10, one machine, one run.

    python benchmarks/training.py --data-root DATA

plain    float32, N,C,H,W, torchvision CIFAR10 with RandomCrop, flip, ToTensor, Normalize in a DataLoader, 2 workers
sentei   what `sentei train` does: bfloat16 where the hardware has it, channels last, images in memory
Each measures whole epochs of the same number of images, loading and augmentation included, validation not.
The two take turns, so that a machine that slows down slows both; the table gives the median of the rounds.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
import torchvision
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader, Subset
from torchvision import datasets, transforms

from sentei.data import load_data
from sentei.models import build_model
from sentei.threads import set_threads
from sentei.train import Recipe
from sentei.train.loop import fit
from sentei.train.recipe import bf16_supported

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def plain_epoch(root: Path, images: int, batch_size: int, device: torch.device) -> float:
    """Images a second of the plain loop, from the start of the epoch, workers' start included."""
    steps = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()]
    steps += [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    data = Subset(datasets.CIFAR10(root, train=True, transform=transforms.Compose(steps)), range(images))
    loader = DataLoader(data, batch_size, shuffle=True, num_workers=2, drop_last=True)
    torch.manual_seed(0)
    model = build_model("resnet20").to(device).train()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    started, count = time.perf_counter(), 0
    for x, y in loader:
        x, y = x.to(device), y.to(device)
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        count += len(y)
    float(loss.detach())  # a GPU is done only when its result is read
    return count / (time.perf_counter() - started)


def sentei_epoch(root: Path, images: int, recipe: Recipe, device: torch.device) -> float:
    """Images a second of sentei's loop after its own warm-up epoch (torch.compile compiles in the first)."""
    data = load_data("cifar10", root=root, device=device, val=0)
    torch.manual_seed(0)
    epochs = 2 if recipe.compile else 1
    recipe = dataclasses.replace(recipe, epochs=epochs, limit=images)
    return float(fit(build_model("resnet20"), data, recipe, progress=False).history[-1]["images_per_second"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--images", type=int, default=12_800, help="images an epoch")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--compile", action="store_true", help="also measure with torch.compile")
    given = parser.parse_args()

    threads = set_threads()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    recipe = Recipe(batch_size=given.batch_size)
    loops: dict[str, Callable[[], float]] = {
        "plain": partial(plain_epoch, given.data_root, given.images, given.batch_size, device)
    }
    variants = {"sentei": recipe, "sentei, float32": dataclasses.replace(recipe, bf16=False)}
    if given.compile:
        variants["sentei, compiled"] = dataclasses.replace(recipe, compile=True)
    for name, variant in variants.items():
        loops[name] = partial(sentei_epoch, given.data_root, given.images, variant, device)

    speeds: dict[str, list[float]] = {name: [] for name in loops}
    for _ in range(given.rounds):
        for name, loop in loops.items():
            speeds[name].append(loop())
            print(f"{name}: {speeds[name][-1]:,.0f} images/s", flush=True)

    median = {name: statistics.median(values) for name, values in speeds.items()}
    table = Table("loop", "images/s", "lowest", "highest", "speed-up", title="ResNet-20, CIFAR-10")
    for name, values in speeds.items():
        ratio = median[name] / median["plain"]
        table.add_row(name, *(f"{v:,.0f}" for v in (median[name], min(values), max(values))), f"{ratio:.2f}x")
    console = Console(width=100)
    console.print(table)
    where = torch.cuda.get_device_name() if device.type == "cuda" else cpu_name()
    console.print(
        f"{where}, {os.cpu_count()} CPUs, {threads} threads, bfloat16 {'in' if bf16_supported(device) else 'not in'} "
        f"hardware; Python {platform.python_version()}, torch {torch.__version__}, torchvision "
        f"{torchvision.__version__}; batch {given.batch_size}, {given.images:,} images, {given.rounds} rounds, seed 0"
    )


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
