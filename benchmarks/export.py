"""Export networks of torchvision, cut to half of their MACs by `sentei.uniform`, in every format.

    python benchmarks/export.py                          # about an hour on one slow core
    python benchmarks/export.py --models resnet18 --formats onnx pt2

Random weights (seed 0), inputs 1x3x224x224, fixed sizes. Networks that would answer all images alike get the BatchNorm
statistics of some smooth images. Every export proves itself: a row tells the largest difference between the outputs of
the file, run in a process without sentei, and of the network; seconds of the whole export, proofs included; and the
size of the file. Results go to a file, one line of JSON each; what is there is not done again.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision import models

import sentei
from sentei.deploy.formats import FORMATS
from sentei.graph.outputs import output_tensors

HEADS: dict[str, dict[str, Any]] = {
    "googlenet": {"aux_logits": True, "init_weights": False},
    "deeplabv3_mobilenet_v3_large": {"weights_backbone": None, "aux_loss": True},
}
"""Networks with auxiliary heads, which no file must hold."""
MODELS = (
    "resnet18", "resnet50", "mobilenet_v2", "mobilenet_v3_large", "efficientnet_b0", "densenet121",
    "shufflenet_v2_x1_0", "regnet_y_400mf", "googlenet", "convnext_tiny", "deeplabv3_mobilenet_v3_large",
)  # fmt: skip
ALIKE, CALM = 1e-3, 1.5
"""Difference below which outputs are alike; what variances are raised by, lest deep networks magnify rounding."""
PACKAGES = ("torch", "torchvision", "onnx", "onnxruntime", "openvino", "executorch")


def half(name: str, size: int = 224) -> tuple[nn.Module, torch.Tensor]:
    """A network at half of its MACs, and an example."""
    torch.manual_seed(0)
    model = models.get_model(name, weights=None, **HEADS.get(name, {}))
    example = torch.zeros(1, 3, size, size)
    graph = sentei.trace(model, example)
    small = sentei.cut(model, graph, sentei.uniform(graph, sentei.Budget(macs=0.5)))
    if variation(small, size) < ALIKE:
        enliven(small, size)
    return small, example


def variation(model: nn.Module, size: int) -> float:
    """How much the outputs on two random images differ, relative to the largest."""
    with torch.no_grad():
        first, second = output_tensors(model.eval()(torch.randn(2, 3, size, size)))[0]
    return float((first - second).abs().max() / first.abs().max())


def enliven(model: nn.Module, size: int) -> None:
    """Give BatchNorm the statistics of some smooth images, with larger variances."""
    images = nn.functional.interpolate(torch.randn(4, 3, size // 8, size // 8), (size, size), mode="bilinear")
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(images)
    for module in model.eval().modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var *= CALM


def measured(small: nn.Module, example: torch.Tensor, format: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        try:
            made = sentei.export(small, example, folder, format=format)
        except sentei.SenteiError as error:
            return {"error": str(error)}
    return {"max_error": made.max_error, "seconds": made.seconds, "bytes": made.size, "macs": made.record["macs"],
            "parameters": made.record["parameters"], "variation": made.record["variation"]}  # fmt: skip


def table(found: dict[tuple[str, str], dict[str, Any]], names: list[str], formats: list[str]) -> str:
    lines = [("network", *(f"{f}: error, s, MB" for f in formats)), ("---", *["---:"] * len(formats))]
    lines += [(name, *(_cell(found[name, f]) for f in formats)) for name in names]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(row: dict[str, Any]) -> str:
    if "error" in row:
        return f"refused: {row['error']}".replace("|", "/")
    return f"{row['max_error']:.1e}, {row['seconds']:.0f}, {row['bytes'] / 1e6:.1f}"


def provenance() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    packages = ", ".join(f"{p} {version(p)}" for p in PACKAGES)
    return (
        f"{cpu}, {os.cpu_count()} cores, {torch.get_num_threads()} thread(s), {packages}, Python "
        f"{platform.python_version()}, seed 0, {datetime.date.today()}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("export.jsonl"), help="results, one line of JSON each")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS, metavar="NAME")
    parser.add_argument("--formats", nargs="+", choices=list(FORMATS), default=list(FORMATS), metavar="FORMAT")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    lines = given.out.read_text().splitlines() if given.out.exists() else []
    found = {(r["model"], r["format"]): r for r in map(json.loads, lines)}
    for name in given.models:
        missing = [f for f in given.formats if "error" in found.get((name, f), {"error": ""})]
        small, example = half(name) if missing else (None, None)
        for format in missing:
            assert small is not None
            assert example is not None
            row = {"model": name, "format": format, **measured(small, example, format)}
            found[name, format] = row
            with given.out.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(f"{name}, {format}: {_cell(row)}", flush=True)
    print(f"\n{table(found, list(given.models), list(given.formats))}\n\n{provenance()}")


if __name__ == "__main__":
    main()
