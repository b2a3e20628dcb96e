"""The machine that a figure was measured on."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import torch

CPU = torch.device("cpu")


def machine(device: torch.device = CPU) -> dict[str, Any]:
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
