"""What a summary says about where it came from."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sentei.data import Split
from sentei.tasks import Task
from sentei.train import evaluate


def machine(device: torch.device) -> dict[str, Any]:
    """Threads, versions and processor: what a reader needs to judge times."""
    found = {
        "cpu": _cpu(),
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "device": str(device),
    }
    return found | ({"gpu": torch.cuda.get_device_name(device)} if device.type == "cuda" else {})


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def measured_task(task: Task) -> dict[str, Any]:
    """The task and the metric that decides, as a summary names them."""
    metric = {"name": task.metric, "lower_is_better": task.lower_is_better, "percent": task.percent}
    return {"task": task.name, "metric": metric}


def figures_of(model: nn.Module, split: Split, task: Task) -> dict[str, float]:
    """What a network measures on a split; nothing on an empty one."""
    return evaluate(model, split, task=task).figures if len(split) else {}


def tested(figures: Mapping[str, float], task: Task) -> dict[str, Any]:
    """The metric on test data under its name, and all other figures beside it."""
    others = {name: value for name, value in figures.items() if name != task.metric}
    return {task.metric: figures.get(task.metric), **({"test": others} if others else {})}
