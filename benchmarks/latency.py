"""Half the milliseconds: networks of torchvision pruned by `sentei.prune` to `Budget(latency=0.5)`, and what came out.

    python benchmarks/latency.py --runtime onnxruntime --out latency.jsonl       # two or three minutes a network

Random weights (seed 0), one image of 3x224x224, one thread, method uniform with default settings, no training. A row
tells the error of the table on the networks that it was calibrated on, predicted and measured milliseconds after the
first cut and after the last, and how many cuts that took; or why it was refused. Beside them plans at half the MACs,
drawn at random: how well their measured times are foretold by the table, and by their MACs (rank correlation). Results
go to a file, one line of JSON each; what is there is not done again. Measure on an idle machine.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from scipy.stats import spearmanr

import sentei
from sentei.errors import BudgetError
from sentei.machine import machine
from sentei.plan.allocate import plan_from_widths
from sentei.search.space import budgeted
from sentei.speed.latency import whole_pass
from sentei.speed.timing import Timer, clock_for
from sentei.threads import set_threads
from sentei.train import Recipe

NETWORKS = (
    "resnet18", "mobilenet_v2", "mobilenet_v3_large", "efficientnet_b0", "shufflenet_v2_x1_0", "googlenet",
    "regnet_y_400mf", "resnet50", "densenet121", "convnext_tiny",
)  # fmt: skip
ROUNDS = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runtime", default="onnxruntime")
    parser.add_argument("--only", nargs="*", default=NETWORKS)
    parser.add_argument("--plans", type=int, default=0, help="random plans at half the MACs")
    parser.add_argument("--out", type=Path, default=Path("latency.jsonl"))
    given = parser.parse_args()
    set_threads(1)
    done = [json.loads(line) for line in given.out.read_text().splitlines()] if given.out.is_file() else []
    for name in given.only:
        if any((row["network"], row["runtime"]) == (name, given.runtime) for row in done):
            continue
        row = {"network": name, "runtime": given.runtime, **measured(name, given.runtime, given.plans), **machine()}
        with given.out.open("a") as file:
            file.write(json.dumps(row) + "\n")
        done.append(row)
        print(shown(row), flush=True)
    here = [row for row in done if row["runtime"] == given.runtime]
    near = sum(abs(row["used"] - 1) <= 0.03 for row in here if "used" in row)
    print(f"within 3 % of half the time: {near} of {len(here)}")


def measured(name: str, runtime: str, plans: int) -> dict[str, Any]:
    torch.manual_seed(0)
    options = {"init_weights": True} if name == "googlenet" else {}
    model = getattr(torchvision.models, name)(weights=None, **options).eval()
    batch = torch.randn(2, 3, 224, 224), torch.tensor([1, 2])
    try:
        result = sentei.prune(
            model, sentei.Data.of(train=[batch], val=[], test=[]), method="uniform", budget=sentei.Budget(latency=0.5),
            recipe=Recipe(epochs=0), images=2, timing=sentei.Timing(runtime), say=print,
        )  # fmt: skip
    except BudgetError as error:
        return {"refused": str(error)}
    found = result.summary["latency"]
    row = {
        "error": found["error"], "step": found["step"], "dense_ms": found["dense_ms"],
        "first": found["tries"][0]["used"], "used": found["share"] / 0.5, "cuts": len(found["tries"]),
        "macs": result.summary["pruned"]["macs"],
        "macs_share": result.summary["pruned"]["macs"] / result.summary["base"]["macs"],
        "predicted_ms": found["predicted_ms"], "measured_ms": found["small_ms"],
    }  # fmt: skip
    return row | (ranked(model, result.graph, runtime, plans) if plans else {})


def ranked(model: torch.nn.Module, graph: sentei.ChannelGraph, runtime: str, plans: int) -> dict[str, Any]:
    """Plans at half the MACs: rank correlation of what is measured with what is predicted, and with MACs."""
    names = [g.name for g in graph.groups if not g.frozen]
    space, rng = budgeted(graph, names, sentei.Budget(macs=0.5), sentei.Constraints()), np.random.default_rng(0)
    widths = [space.widths(space.random(rng)) for _ in range(plans)]
    passes = {
        i: whole_pass(sentei.cut(model, graph, plan_from_widths(graph, w)), graph, runtime, 1)
        for i, w in enumerate(widths)
    }
    timer = Timer(passes, clock_for(passes[0], 1))
    for _ in range(ROUNDS):
        timer.round()
    costs, times = graph.costs(np.stack(widths)), np.array([timer.fast(i) * 1e3 for i in passes])
    errors = np.abs(costs.latency_ms / times - 1)
    return {
        "plans": plans, "rank": float(spearmanr(costs.latency_ms, times)[0]),
        "rank_macs": float(spearmanr(costs.macs, times)[0]), "plan_error": float(errors.mean()),
    }  # fmt: skip


def shown(row: dict[str, Any]) -> str:
    if "refused" in row:
        return f"| {row['network']} | {row['refused']} |"
    rank = f" | {row['rank']:+.2f} | {row['rank_macs']:+.2f} | {row['plan_error']:.1%}" if "rank" in row else ""
    return (
        f"| {row['network']} | {row['dense_ms']:.1f} | {row['measured_ms']:.1f} | {row['first'] / 2:.1%} | "
        f"{row['used'] / 2:.1%} | {row['cuts']} | {row['macs_share']:.1%} | {row['error']:.1%}{rank} |"
    )


if __name__ == "__main__":
    main()
