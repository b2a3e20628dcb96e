"""Time and memory to find out what belongs together and cut it: sentei beside torch-pruning, 24 torchvision models.

    python benchmarks/surgery.py --out surgery.jsonl                     # about ten minutes; resumable
    python benchmarks/surgery.py --out surgery.jsonl --models resnet18 vgg16

sentei         `trace` (with its trial cut) and `cut`: random halves of all unfrozen groups
torch-pruning  `BasePruner` (which traces) and `step`: pruning_ratio 0.5, RandomImportance, local; its user must name
               the layers that give the 1000 classes (ignored_layers), and for ViT keep widths multiples of the heads
Each (tool, model) has a process of its own and 120 s for each repeat: best of seven where the first takes less than a
second, best of three below ten seconds. Importing and building the network (anew for each repeat; random weights, eval
mode, aux_logits=False, one image of 224 pixels) are not timed. Memory is the peak resident size during the first repeat
less the resident size before it. After the time is taken the result is tried: the cut network must run and give 1000
classes; for sentei `check` must pass too, with the same input.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

MODELS = [
    "alexnet", "vgg16", "resnet18", "resnet50", "resnet152", "resnext50_32x4d", "wide_resnet50_2", "densenet121",
    "densenet201", "googlenet", "inception_v3", "mobilenet_v2", "mobilenet_v3_large", "mnasnet1_0",
    "shufflenet_v2_x1_0", "squeezenet1_0", "efficientnet_b0", "efficientnet_v2_s", "regnet_y_400mf", "regnet_x_3_2gf",
    "convnext_tiny", "swin_t", "maxvit_t", "vit_b_16",
]  # fmt: skip
TOOLS = ("sentei", "torch-pruning")
REPEATS = ((1.0, 7), (10.0, 3))
"""If the first repeat takes less than so many seconds, there are so many; otherwise there is one."""
CLASSES = 1000

Operation = Callable[[Any, Any], Any]
"""(model, input) -> what is needed to try the result."""


# -- in the process of one tool and one model; torch is imported only here


def measure(tool: str, name: str, threads: int, limit: int) -> dict[str, Any]:
    """Measure one tool on one model. The first line printed is the memory before: it survives a kill."""
    import torch
    from torchvision import models

    warnings.simplefilter("ignore")
    torch.set_num_threads(threads)
    own = {"aux_logits": False, "init_weights": False} if name in ("googlenet", "inception_v3") else {}
    operation, attempt = {"sentei": _sentei, "torch-pruning": _torch_pruning}[tool]()
    x = torch.zeros(1, 3, 224, 224)
    seconds: list[float] = []
    while not seconds or len(seconds) < next((n for most, n in REPEATS if seconds[0] < most), 1):
        torch.manual_seed(0)
        model = models.get_model(name, weights=None, **own).eval()
        before = resident("VmRSS")
        if not seconds:
            print(json.dumps({"before_mb": before}), flush=True)
            Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
        signal.alarm(limit)
        started = time.perf_counter()
        result = operation(model, x)
        seconds.append(time.perf_counter() - started)
        signal.alarm(0)
        if len(seconds) == 1:
            peak = resident("VmHWM")
    x = torch.randn(1, 3, 224, 224)
    return {"seconds": seconds, "peak_mb": peak, **attempt(result, model, x)}


def _sentei() -> tuple[Operation, Callable[..., dict[str, Any]]]:
    import numpy as np

    import sentei

    def operation(model: Any, x: Any) -> Any:
        graph = sentei.trace(model, x)
        rng = np.random.default_rng(0)
        keep = {g.name: rng.permutation(g.width)[: max(1, g.width // 2)] for g in graph.groups if not g.frozen}
        plan = sentei.Plan(keep, graph.structure)
        return graph, plan, sentei.cut(model, graph, plan)

    def attempt(result: Any, model: Any, x: Any) -> dict[str, Any]:
        graph, plan, small = result
        return tried(small, x, lambda: sentei.check(model, small, graph, plan, x))

    return operation, attempt


def _torch_pruning() -> tuple[Operation, Callable[..., dict[str, Any]]]:
    import torch_pruning
    from torch import nn
    from torchvision.models import VisionTransformer

    def operation(model: Any, x: Any) -> Any:
        heads = [
            m
            for m in model.modules()
            if (isinstance(m, nn.Linear) and m.out_features == CLASSES)
            or (isinstance(m, nn.Conv2d) and m.out_channels == CLASSES)
        ]
        vit = isinstance(model, VisionTransformer)
        pruner = torch_pruning.pruner.BasePruner(
            model,
            x,
            importance=torch_pruning.importance.RandomImportance(),
            pruning_ratio=0.5,
            ignored_layers=heads,
            round_to=model.encoder.layers[0].num_heads if vit else None,
        )
        pruner.step()
        if vit:
            model.hidden_dim = model.conv_proj.out_channels
        return model

    return operation, lambda small, model, x: tried(small, x, lambda: None)


def tried(small: Any, x: Any, proof: Callable[[], Any]) -> dict[str, Any]:
    """Whether the cut network runs, gives 1000 classes, and passes the proof; `wrong` says what does not hold."""
    import torch

    wrong = ""
    try:
        with torch.no_grad():
            shape = tuple(small.eval()(x).shape)
        if shape != (1, CLASSES):
            wrong = f"its outputs are {shape}"
        proof()
    except Exception as error:
        wrong = f"{type(error).__name__}: {error}".splitlines()[0][:160]
    return {"right": not wrong, "wrong": wrong, "params": sum(p.numel() for p in small.parameters())}


def resident(field: str) -> float:
    """VmRSS (now) or VmHWM (peak) of this process in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


# -- in the parent


def in_process(tool: str, name: str, threads: int, limit: int) -> dict[str, Any]:
    """Run `measure` in a new process and collect what it said, and its peak, however it ended."""
    command = [sys.executable, __file__, "--child", tool, name, "--threads", str(threads), "--limit", str(limit)]
    variables = {"OMP_NUM_THREADS", "MKL_NUM_THREADS"}
    env = {**os.environ, **dict.fromkeys(variables, str(threads))}
    with (
        tempfile.TemporaryFile("w+") as err,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=err, text=True, env=env) as process,
    ):
        out = process.stdout.read() if process.stdout else ""
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = code = os.waitstatus_to_exitcode(status)
        err.seek(0)
        last = (err.read().strip().splitlines() or [""])[-1]
    found: dict[str, Any] = {"tool": tool, "model": name, "threads": threads, "limit": limit}
    for line in out.splitlines():
        if line.startswith("{"):
            found.update(json.loads(line))
    if code == 0:
        return {**found, "status": "ok"}
    found.setdefault("peak_mb", usage.ru_maxrss / 1024)
    if code == -signal.SIGALRM:
        return {**found, "status": "time-out"}
    return {**found, "status": "failed", "wrong": f"code {code}: {last[:200]}"}


def read(file: Path) -> dict[tuple[str, str], dict[str, Any]]:
    lines = file.read_text().splitlines() if file.exists() else []
    return {(r["tool"], r["model"]): r for r in map(json.loads, lines)}


def best(r: dict[str, Any], limit_counts: bool = False) -> float:
    """Best time; a time-out counts as its limit if `limit_counts`, anything else unfinished as NaN."""
    if r["status"] == "ok":
        return float(min(r["seconds"]))
    return float(r["limit"]) if limit_counts and r["status"] == "time-out" else math.nan


def memory(r: dict[str, Any]) -> float:
    return r.get("peak_mb", math.nan) - r.get("before_mb", math.nan)


def table(found: dict[tuple[str, str], dict[str, Any]], names: list[str]) -> str:
    head = ("model", "sentei s", "torch-pruning s", "ratio", "sentei MB", "torch-pruning MB", "sentei peak MB",
            "torch-pruning peak MB", "sentei right", "torch-pruning right")  # fmt: skip
    lines = [head, ("---", *["---:"] * 7, "---", "---")]
    for name in names:
        ours, theirs = (found[tool, name] for tool in TOOLS)
        ratio = best(theirs, limit_counts=True) / best(ours)
        more = "> " if theirs["status"] == "time-out" else ""
        lines.append(
            (
                name,
                *(_seconds(r) for r in (ours, theirs)),
                "-" if math.isnan(ratio) else f"{more}{ratio:.2f}",
                *(_megabytes(memory(r), r) for r in (ours, theirs)),
                *(_megabytes(r.get("peak_mb", math.nan), r) for r in (ours, theirs)),
                *(_right(r) for r in (ours, theirs)),
            )
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _seconds(r: dict[str, Any]) -> str:
    return {"ok": f"{best(r):.2f}", "time-out": f"> {r['limit']}"}.get(r["status"], "failed")


def _megabytes(value: float, r: dict[str, Any]) -> str:
    return "-" if math.isnan(value) else f"{'> ' if r['status'] == 'time-out' else ''}{value:,.0f}"


def _right(r: dict[str, Any]) -> str:
    if r["status"] == "time-out":
        return "-"
    return "yes" if r.get("right") else f"no: {r.get('wrong', '')}".replace("|", "/")


def summary(found: dict[tuple[str, str], dict[str, Any]], names: list[str]) -> str:
    def ratios(limit_counts: bool) -> dict[str, float]:
        pairs = {n: best(found[TOOLS[1], n], limit_counts) / best(found[TOOLS[0], n]) for n in names}
        return {n: r for n, r in pairs.items() if not math.isnan(r)}

    both, all_counted = ratios(False), ratios(True)
    worst = min(both, key=lambda n: both[n]) if both else ""
    lines = [
        f"- geometric mean of (torch-pruning / sentei) over the {len(both)} models where both finish: {mean(both):.2f}",
        f"- the same with time-outs counted as the limit ({len(all_counted)} models): {mean(all_counted):.2f}",
        f"- smallest ratio: {both.get(worst, math.nan):.2f} ({worst}); below 1 sentei is slower",
    ]
    if "densenet201" in names:
        lines.append(f"- densenet201: {all_counted.get('densenet201', math.nan):.1f} times faster")
    if "maxvit_t" in names:
        use = ", ".join(f"{t} {_megabytes(memory(found[t, 'maxvit_t']), found[t, 'maxvit_t'])} MB" for t in TOOLS)
        lines.append(f"- memory on maxvit_t: {use}")
    wrong = {
        t: [n for n in names if found[t, n]["status"] != "time-out" and not found[t, n].get("right")] for t in TOOLS
    }
    lines += [f"- {t}: result not right on {len(w)} models{': ' + ', '.join(w) if w else ''}" for t, w in wrong.items()]
    return "\n".join(lines)


def mean(ratios: dict[str, float]) -> float:
    return math.exp(sum(map(math.log, ratios.values())) / len(ratios)) if ratios else math.nan


def provenance(threads: int) -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    packages = ", ".join(f"{p} {version(p)}" for p in ("torch", "torchvision", "torch-pruning"))
    return (
        f"{cpu}, {os.cpu_count()} cores, {threads} thread{'s' * (threads > 1)}, {packages}, Python "
        f"{platform.python_version()}, seed 0, {datetime.date.today()}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("surgery.jsonl"), help="results, one line of JSON each")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS, metavar="NAME")
    parser.add_argument("--threads", type=int, default=1, help="the same for both tools")
    parser.add_argument("--limit", type=int, default=120, help="seconds for one repeat")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(measure(*given.child, given.threads, given.limit)))
        return

    found = read(given.out)
    for name in given.models:
        for tool in TOOLS:
            old = found.get((tool, name))
            if old and old["status"] != "failed" and (old["threads"], old["limit"]) == (given.threads, given.limit):
                continue
            found[tool, name] = r = in_process(tool, name, given.threads, given.limit)
            with given.out.open("a") as file:
                file.write(json.dumps(r) + "\n")
            print(f"{tool}, {name}: {_seconds(r)} s, {_megabytes(memory(r), r)} MB {r.get('wrong', '')}", flush=True)
    print("\n".join(("", table(found, given.models), "", summary(found, given.models), "", provenance(given.threads))))


if __name__ == "__main__":
    main()
