"""Milliseconds won for multiply-accumulates won: ten torchvision classifiers at half of their MACs, default settings.

    python benchmarks/speed.py --out speed.json                       # resumable
    python benchmarks/speed.py --out speed.json --only resnet18 mobilenet_v2
    python benchmarks/speed.py --out speed.json --print               # the tables of what is there

Each network (random weights, seed 0, unless --weights has a file NAME*.pth; one image of 224 x 224) is cut twice with
the default constraints of `sentei.prune`: by `uniform`, and by `allocate` on l1 scores over the whole network. The
dense one and both cut ones are exported to ONNX once and timed together in ONNX Runtime and in OpenVINO, one thread,
batch 1: all in every round, in shuffled order, CPU time of the thread where it computes alone; medians of the fast
half, until the 95 % intervals of both speed-ups are under 2 % or --seconds are up. Efficiency is speed-up x MACs kept:
1 if time falls as the MACs do. `layers` of a row are those that lose the most.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision import models

import sentei
from sentei.atomic import write_atomic
from sentei.machine import machine
from sentei.methods.common.pruning import DEFAULT_CONSTRAINTS
from sentei.models import load_weights
from sentei.plan.criteria import criterion
from sentei.speed.layers import fastest, layer_times, profiled, slow_layers
from sentei.speed.runtimes import RUNTIMES, OnnxRuntime, OpenVino, to_onnx
from sentei.speed.survey import survey
from sentei.speed.timing import Timer, clock_for, measure

MODELS = [
    "resnet18", "resnet50", "mobilenet_v2", "mobilenet_v3_large", "efficientnet_b0", "densenet121",
    "shufflenet_v2_x1_0", "regnet_y_400mf", "googlenet", "convnext_tiny",
]  # fmt: skip
WHERE = ("onnxruntime", "openvino")
HOW = ("uniform", "l1")


def dense(name: str, weights: Path | None) -> nn.Module:
    torch.manual_seed(0)
    own = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    model = models.get_model(name, weights=None, **own).eval()
    for file in sorted(weights.glob(f"{name}*.pth")) if weights is not None else ():
        load_weights(model, file)
    return model


def cut_both(model: nn.Module, x: torch.Tensor, constraints: sentei.Constraints) -> dict[str, nn.Module]:
    graph, budget = sentei.trace(model, x), sentei.Budget(macs=0.5)
    plans = {
        "uniform": sentei.uniform(graph, budget, constraints=constraints),
        "l1": sentei.allocate(graph, budget, criterion("l1")(model, graph), constraints=constraints),
    }
    return {how: sentei.cut(model, graph, plan) for how, plan in plans.items()}


def rows_of(name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Both cuts in both runtimes."""
    x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    model = dense(name, options.weights)
    networks = {"dense": model, **cut_both(model, x, replace(DEFAULT_CONSTRAINTS, **options.constraints))}
    known = {how: survey(network, x) for how, network in networks.items()}
    files = {how: to_onnx(network, x) for how, network in networks.items()}
    return [row for where in options.runtimes for row in timed(name, where, files, known, x, options.seconds)]


def timed(
    name: str, where: str, files: dict[str, bytes], known: dict[str, Any], x: torch.Tensor, seconds: float
) -> list[dict[str, Any]]:
    runtime, inputs = RUNTIMES[where], [x.numpy()]
    assert isinstance(runtime, OnnxRuntime | OpenVino)
    passes = {how: runtime.of_bytes(file, inputs) for how, file in files.items()}
    clocks = {clock_for(once, 1) for once in passes.values()}
    timer = Timer(passes, clocks.pop() if len(clocks) == 1 else time.perf_counter)
    sure = measure(timer, lambda t: [t.speedup(how, "dense") for how in HOW], seconds)
    watched = {how: runtime.profile_of_bytes(file, inputs, known[how].layers) for how, file in files.items()}
    spent = profiled({how: profile for how, profile in watched.items() if profile is not None}, seconds / 5)
    rows = []
    for how in HOW:
        found, kept = timer.speedup(how, "dense"), known[how].macs / known["dense"].macs
        layers = layer_times((known["dense"].layers, spent["dense"]), (known[how].layers, spent[how]))
        rows.append({
            "network": name, "how": how, "runtime": where, "version": runtime.versions()[where],
            "dense_ms": 1e3 * timer.fast("dense"), "small_ms": 1e3 * timer.fast(how), "speedup": found.value,
            "low": found.low, "high": found.high, "macs_kept": kept, "efficiency": kept * found.value,
            "sure": sure, "rounds": timer.rounds,
            "layers": [
                {"name": n.name, "lost_ms": n.lost_ms, "dense_ms": n.dense_ms, "small_ms": n.small_ms,
                 "kept": n.share_macs, "widths": [n.dense.inputs, n.dense.outputs, n.small.inputs, n.small.outputs]}
                for n in slow_layers(layers, 8)
            ],
            "rest_ms": [fastest(spent[n], "") for n in ("dense", how)],
        })  # fmt: skip
    return rows


def tables(rows: list[dict[str, Any]]) -> str:
    lines = []
    for where in WHERE:
        for how in HOW:
            chosen = [r for r in rows if (r["runtime"], r["how"]) == (where, how)]
            if not chosen:
                continue
            lines += [f"\n{where} {chosen[0]['version']}, {how}\n",
                      "| network | ms dense | ms small | speed-up (95 %) | MACs kept | speed-up x MACs kept |",
                      "|---|---:|---:|---:|---:|---:|"]  # fmt: skip
            lines += [
                f"| {r['network']} | {r['dense_ms']:.2f} | {r['small_ms']:.2f} | {r['speedup']:.2f} "
                f"({r['low']:.2f}-{r['high']:.2f}) | {r['macs_kept']:.1%} | {r['efficiency']:.2f} |"
                for r in chosen
            ]
            mean = math.exp(sum(math.log(r["efficiency"]) for r in chosen) / len(chosen))
            lines.append(f"| geometric mean of {len(chosen)} | | | | | {mean:.3f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")
    parser.add_argument("--only", nargs="+", choices=MODELS, default=MODELS, metavar="NAME")
    parser.add_argument("--runtimes", nargs="+", choices=WHERE, default=WHERE)
    parser.add_argument("--seconds", type=float, default=30.0, help="for each network in each runtime")
    parser.add_argument("--weights", type=Path, metavar="FOLDER")
    parser.add_argument("--constraints", type=json.loads, default={}, metavar="JSON", help="in place of some defaults")
    parser.add_argument("--print", action="store_true", dest="show")
    options = parser.parse_args()
    torch.set_num_threads(1)
    known = json.loads(options.out.read_text()) if options.out.exists() else {}
    setting = {"constraints": options.constraints, "weights": str(options.weights or "random")}
    if known and known["setting"] != setting:
        parser.error(f"{options.out} holds rows of {known['setting']}; give another --out")
    rows = known.get("rows", [])
    for name in options.only if not options.show else ():
        missing = [w for w in options.runtimes if not any((r["network"], r["runtime"]) == (name, w) for r in rows)]
        if not missing:
            continue
        started = time.perf_counter()
        rows += rows_of(name, argparse.Namespace(**{**vars(options), "runtimes": missing}))
        record = {"setting": setting, "machine": machine(torch.device("cpu")), "rows": rows}
        write_atomic(options.out, json.dumps(record, indent=1).encode())
        print(f"{name}: {time.perf_counter() - started:.0f} s", flush=True)
    print(tables(rows))


if __name__ == "__main__":
    main()
