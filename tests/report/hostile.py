"""What a run's files may hold at worst, and files of `sentei bench` and `sentei export` as they lie beside a run."""

import json
from pathlib import Path
from typing import Any

import yaml

from sentei.runfiles import write_config
from sentei.sealed import sealed_json
from sentei.speed.benchfile import as_file

HOSTILE = "<script>alert('x')</script>&amp;\"><img src=x onerror=alert(1)>"
LONG = "a_name_that_goes_on_and_on_without_a_single_place_to_break_it_" * 3


def changed(folder: Path, **given: Any) -> None:
    """Write a run's summary anew, with other values."""
    file = folder / "summary.json"
    summary = {k: v for k, v in json.loads(file.read_text()).items() if k != "sha256"}
    file.write_bytes(sealed_json({**summary, **given}))


def reconfigured(folder: Path, **resolved: Any) -> None:
    """Write a run's config anew, with other resolved settings."""
    config = yaml.safe_load((folder / "config.yaml").read_text())
    rest = {k: v for k, v in config.items() if k not in ("sentei", "sha256")}
    write_config(folder, {**rest, "resolved": {**rest["resolved"], **resolved}})


def benched(folder: Path, small: float = 1.5, dense: float = 2.5, **given: Any) -> None:
    """A bench.json as `sentei bench` writes it."""
    costs = {"macs": 1000, "params": 100, "memory_bytes": 4000}
    networks = [
        {"name": "dense", "role": "dense", "ms": dense, "ms_low": dense - 0.1, "ms_high": dense + 0.1, **costs},
        {"name": "small", "role": "small", "ms": small, "ms_low": small - 0.1, "ms_high": small + 0.1, **costs},
    ]
    layers = [
        {"name": f"conv{i}", "dense_ms": 0.5, "small_ms": 0.25 * i, "dense_width": 32, "small_width": 15, "note": "odd",
         "share_macs": 0.5}
        for i in range(1, 5)
    ]
    entry = {
        "when": "2026-01-01", "runtime": "onnxruntime", "threads": 1, "batch": 1, "device": "cpu", "clock": "thread",
        "inputs": [], "machine": {"cpu": "a processor"}, "versions": {"onnxruntime": "1.22"}, "networks": networks,
        "speedup": dense / small, "speedup_low": 1.6, "speedup_high": 1.7, "macs_kept": 0.5, "efficiency": 0.83,
        "rounds": 20, "sure": True, "layers": layers, **given,
    }  # fmt: skip
    (folder / "bench.json").write_bytes(sealed_json(as_file([entry])))
