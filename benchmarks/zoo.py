"""Cuts of two hundred networks, each proved: torchvision, families of timm, and kinds written in zoo_models/.

    python benchmarks/zoo.py --out zoo.jsonl --markdown docs/zoo.md     # two hours on one thread; resumable
    python benchmarks/zoo.py --out zoo.jsonl --models torchvision:resnet18 timm:dla34
    python benchmarks/zoo.py --out zoo.jsonl --markdown docs/zoo.md --collect     # the page of what is there

For each network, in eval mode:
- trace it as it was built, without ever having run; its tensors and attributes must be what they were;
- give it random norms, layer scales and heads (see `randomise`);
- for each of the ratios 0.3, 0.5, 0.75 cut that share of the units of every unfrozen group, picked at
  random; `check` (retrace of the wiring, outputs against the reference); the cut must also change the outputs, or the
  comparison would show nothing;
- at ratio 0.5 `slim` equals the cut bit for bit, and what `save` wrote `load` returns bit for bit.
Each network runs in a process of its own. One that fails is in the table as FAIL, and is tried again by the next call.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import gc
import json
import multiprocessing
import os
import platform
import re
import resource
import tempfile
import time
import traceback
import warnings
from collections import defaultdict
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision import models

import sentei
from sentei import ChannelGraph, Plan
from sentei.graph.outputs import output_tensors
from sentei.machine import machine
from sentei.models import build_model
from sentei.models.reference import input_shape_of
from sentei.surgery.check import relative_error

RATIOS = (0.3, 0.5, 0.75)
TIMM = [
    "nf_resnet26", "resnest14d", "mixnet_s", "nfnet_l0", "ghostnet_100", "skresnet18", "res2net50_26w_4s",
    "edgenext_xx_small", "tresnet_m", "resnetv2_50x1_bit", "hrnet_w18_small", "dpn48b", "ecaresnet26t",
    "gcresnet33ts", "xception41", "inception_next_tiny", "mobileone_s0", "repvgg_a0", "ese_vovnet19b_dw",
    "convmixer_768_32", "cs3darknet_s", "poolformer_s12", "focalnet_tiny_srf", "lambda_resnet26t", "botnet26t_256",
    "cspresnet50", "darknet53", "rexnet_100", "lcnet_100", "hardcorenas_a", "mobilenetv4_conv_small", "fbnetc_100",
    "gernet_s", "hgnetv2_b0", "dla34", "selecsls42", "regnetz_b16", "convnextv2_atto", "inception_resnet_v2",
    "pnasnet5large",
]  # fmt: skip
MORE_TIMM = [
    "mixnet_l", "res2net50_14w_8s", "res2next50", "fasternet_t0", "skresnet50", "shvit_s1", "poolformerv2_s12",
    "convformer_s18", "caformer_s18", "pvt_v2_b0", "pvt_v2_b2_li", "twins_pcpvt_small", "twins_svt_small",
    "xcit_nano_12_p16_224", "fastvit_t8", "fastvit_sa12", "coat_lite_tiny", "nextvit_small", "swin_s3_tiny_224",
    "sequencer2d_s", "repghostnet_050", "mobilevit_xxs", "mobilevitv2_050", "efficientformer_l1",
    "efficientformerv2_s0", "levit_128s", "levit_conv_128s", "convit_tiny", "crossvit_tiny_240", "gcvit_xxtiny",
    "davit_tiny", "edgenext_small", "hiera_tiny_224", "mvitv2_tiny", "tiny_vit_5m_224", "repvit_m0_9", "starnet_s1",
    "efficientvit_b0", "efficientvit_m0", "hgnet_tiny", "vovnet39a", "rdnet_tiny", "inception_next_atto",
    "mambaout_femto", "vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "swin_tiny_patch4_window7_224",
    "maxvit_pico_rw_256", "coatnet_pico_rw_224", "ghostnetv2_100", "halonet26t", "bat_resnext26ts",
    "efficientnet_cc_b0_4e",
    "resnet50_clip", "resnetv2_50d_evos", "cspnext_tiny", "lcnetv2_small", "swiftformer_xs", "visformer_tiny",
]  # fmt: skip
OWN = {
    "dense_prediction": [
        "unet", "segformer", "bisenet", "yolo", "nonlocal_net", "raft", "fasterrcnn_pyramid", "retinanet_pyramid",
        "fcos_pyramid", "ssd_head",
    ],
    "images_and_sounds": [
        "dcgan", "srgan", "edsr", "esrgan", "crnn", "demucs", "wavenet", "keywords", "conv_lstm", "r3d_18", "mc3_18",
        "r2plus1d_18", "s3d",
    ],
}  # fmt: skip
BEFORE = {
    "timm:mixnet_s": 25, "torchvision:swin_v2_t": 56, "torchvision:swin_v2_b": 58, "torchvision:swin_v2_s": 58,
    "torchvision:swin_t": 62, "torchvision:swin_s": 63, "torchvision:swin_b": 64, "torchvision:vit_b_16": 64,
    "torchvision:vit_b_32": 64, "torchvision:vit_h_14": 64, "torchvision:vit_l_16": 64, "torchvision:vit_l_32": 65,
    "torchvision:maxvit_t": 76, "timm:edgenext_xx_small": 82, "timm:poolformer_s12": 87, "timm:res2net50_26w_4s": 89,
    "timm:focalnet_tiny_srf": 91, "timm:skresnet18": 92, "timm:inception_next_tiny": 95, "timm:lambda_resnet26t": 96,
    "timm:botnet26t_256": 96, "torchvision:shufflenet_v2_x1_0": 96, "torchvision:shufflenet_v2_x0_5": 97,
    "timm:dpn48b": 97, "torchvision:shufflenet_v2_x2_0": 98,
}  # fmt: skip
"""Percent of the MACs that were prunable in the last edition of the page, where that was less than all."""
HYBRIDS = re.compile(
    "swin|vit|maxvit|former|coat|levit|gcvit|hiera|pvt|twins|xcit|deit|sequencer|edgenext|botnet|halonet|lambda"
)
"""Networks with attention or other mixing over positions; the rest are CNNs."""
EXPLAINED = 0.9
"""Networks with a smaller share of prunable MACs have the reason in the table."""
LEAST_CHANGE = 1e-3
"""The cut must move the outputs by at least this much, relative, for the comparison to mean anything."""


def references() -> list[str]:
    """All networks, first those that are new or had frozen parts."""
    found = models.list_models(module=models) + models.list_models(module=models.segmentation)
    here = os.path.relpath(Path(__file__).parent / "zoo_models")
    own = [f"{here}/{file}.py:{name}" for file, names in OWN.items() for name in names]
    every = [*own, *(f"timm:{n}" for n in (*MORE_TIMM, *TIMM)), *(f"torchvision:{n}" for n in found)]
    first = {*own, *(f"timm:{n}" for n in MORE_TIMM), *BEFORE}
    return sorted(every, key=lambda ref: ref not in first)


def example(ref: str, seed: int) -> Tensor:
    """Two inputs of the size of the network, for images at most 224 where that is above 256, for segmentation 128."""
    shape: tuple[int, ...] = input_shape_of(ref)
    if ref.removeprefix("torchvision:") in models.list_models(module=models.segmentation):
        shape = (shape[0], 128, 128)
    elif ":" in ref and ".py:" not in ref and shape[1] > 256 and ref != "torchvision:inception_v3":
        shape = (shape[0], 224, 224)
    return torch.randn(2, *shape, generator=torch.Generator().manual_seed(seed))


def require_untouched(model: nn.Module, before: nn.Module) -> None:
    """All tensors, settings and caches of the model's modules are those of the copy made before."""
    for (name, module), old in zip(model.named_modules(), before.modules(), strict=True):
        if not same(vars(module), vars(old)):
            changed = [k for k in {**vars(module), **vars(old)} if not same(vars(module).get(k), vars(old).get(k))]
            raise AssertionError(f"trace changed {', '.join(changed)} of module {name!r}")


def same(a: Any, b: Any) -> bool:
    """Equality of plain values and tensors, also in containers; modules and other objects only by their type."""
    if type(a) is not type(b):
        return False
    if isinstance(a, Tensor):
        alike = a.device == b.device and a.dtype == b.dtype and a.shape == b.shape
        return alike and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(value, b[key]) for key, value in a.items())
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b) if isinstance(a, (int, float, str, set, torch.Size)) else True


@torch.no_grad()
def randomise(model: nn.Module, x: Tensor, seed: int) -> None:
    """No constant parameters, and activations of ordinary size, so that no channel is silent and no error is hidden.

    Zero or constant parameters (heads, norms, layer scales) get random values. BatchNorm gets the statistics of what it
    sees in one pass over the images, disturbed layer by layer, so that deep networks neither explode nor vanish.
    """
    g = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        low, high = float(p.min()), float(p.max())
        if low < high:
            continue
        noise = torch.rand(p.shape, generator=g)
        if low == 0 and p.ndim >= 2:
            p.copy_((noise - 0.5) * (12 / p.shape[1:].numel()) ** 0.5)
        elif low == 0:
            p.copy_(0.4 * (noise - 0.5))
        else:
            p.copy_(max(abs(low), 0.3) * (0.5 + noise))

    def calibrate(norm: _BatchNorm, args: tuple[Tensor, ...]) -> None:
        features = args[0].transpose(0, 1).flatten(1)
        mean, std = features.mean(1), features.std(1).clamp(min=0.1)
        noise = torch.rand(2, norm.num_features, generator=g)
        norm.running_mean.copy_(mean + (noise[0] - 0.5) * std)
        norm.running_var.copy_(std.square() * (0.5 + noise[1]))

    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_var is not None]
    hooks = [m.register_forward_pre_hook(calibrate) for m in norms]
    model(x)
    for hook in hooks:
        hook.remove()


def random_plan(graph: ChannelGraph, ratio: float, seed: int) -> Plan:
    """Remove this share of the units of every unfrozen group, picked at random; one unit always stays.

    Groups that must keep the same share keep the largest that one of them would keep.
    """
    rng = np.random.default_rng(seed)
    keep = {
        g.name: rng.permutation(g.width)[: max(1, round((1 - ratio) * g.width))] for g in graph.groups if not g.frozen
    }
    return Plan(graph.bind(keep), graph.structure)


def outputs(model: nn.Module, x: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return output_tensors(model(x))


def require_same(a: list[Tensor], b: list[Tensor], what: str) -> None:
    if len(a) != len(b) or not all(map(torch.equal, a, b)):
        raise AssertionError(f"{what} is not bit for bit the cut")


def prove(ref: str, seed: int) -> dict[str, Any]:
    """All checks of one network; raises at the first that does not hold."""
    torch.manual_seed(seed)
    model, x = build_model(ref).eval(), example(ref, seed)
    before = copy.deepcopy(model)
    started = time.process_time()
    sentei.trace(model, x[:1])
    traced = time.process_time() - started
    graph = sentei.trace(model, x)
    require_untouched(model, before)
    randomise(before, x, seed)
    model.load_state_dict(before.state_dict())
    full = outputs(before, x)
    del before
    rows: dict[str, dict[str, Any]] = {}
    for i, ratio in enumerate(RATIOS):
        plan = random_plan(graph, ratio, seed + i)
        started = time.process_time()
        small = sentei.cut(model, graph, plan)
        seconds = time.process_time() - started
        report = sentei.check(model, small, graph, plan, x)
        found = outputs(small, x)
        change = max(map(relative_error, found, full))
        if not change > LEAST_CHANGE:
            raise AssertionError(f"cutting {ratio:.0%} moves the outputs by only {change:.1e}: nothing was compared")
        cost = graph.cost(plan)
        rows[str(ratio)] = {
            "error": report.max_error,
            "change": change,
            "approximate": list(report.approximate),
            "cut_s": seconds,
            "macs": cost.macs // len(x),
            "params": cost.params,
        }
        if ratio == 0.5:
            with sentei.slim(model, graph, plan) as subnet:
                require_same(outputs(subnet, x), found, "slim")
            same_from_disk(ref, small, plan, found, x)
        del small
        gc.collect()
    shares = graph.prunable()
    return {
        "groups": len(graph.groups),
        "unfrozen": sum(not g.frozen for g in graph.groups),
        "params": graph.cost().params,
        "macs": graph.cost().macs // len(x),
        "prunable_macs": shares[0],
        "prunable_params": shares[1],
        "frozen": frozen_shares(graph),
        "input": list(x.shape[1:]),
        "trace_s": traced,
        "ratios": rows,
    }


def same_from_disk(ref: str, small: nn.Module, plan: Plan, found: list[Tensor], x: Tensor) -> None:
    with tempfile.TemporaryDirectory() as folder:
        sentei.save(small, plan, folder, source=ref)
        loaded = sentei.load(build_model(ref), folder).eval()
    state, expected = loaded.state_dict(), small.state_dict()
    if state.keys() != expected.keys():
        raise AssertionError("the loaded network has other tensors")
    require_same(list(state.values()), list(expected.values()), "the loaded state")
    require_same(outputs(loaded, x), found, "the loaded network")


def frozen_shares(graph: ChannelGraph) -> dict[str, float]:
    """For each reason why groups are frozen: the share of the MACs that only these groups touch."""
    reasons: dict[str, list[int]] = defaultdict(list)
    for i, group in enumerate(graph.groups):
        if group.frozen:
            reasons[short(group.why or "")].append(i)
    rigid = np.where([g.frozen for g in graph.groups], graph.widths(), 0)
    held = float(graph.costs(rigid).macs)
    out = {}
    for why, members in reasons.items():
        without = rigid.copy()
        without[members] = 0
        out[why] = (held - float(graph.costs(without).macs)) / max(graph.cost().macs, 1)
    return dict(sorted(out.items(), key=lambda item: -item[1]))


def short(why: str) -> str:
    """A reason without what differs from module to module."""
    why = re.sub(r" \(in [^)]*\)$", "", why)
    return re.sub(r"shape '\[[^]]*\]' is invalid for input of size \d+", "the model's own view fixes the shape", why)


# -- one process a network


def in_process(ref: str, seed: int) -> dict[str, Any]:
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    started = time.perf_counter()
    process = context.Process(target=child, args=(ref, seed, sender))
    process.start()
    sender.close()
    try:
        found = receiver.recv()
    except EOFError:
        found = {}
    process.join()
    if not found:
        found = {"fail": f"the process ended with code {process.exitcode} (-9: out of memory)"}
    return {"model": ref, "seed": seed, "seconds": round(time.perf_counter() - started, 1), **found}


def child(ref: str, seed: int, sender: Connection) -> None:
    warnings.simplefilter("ignore")  # of the networks' own deprecated calls
    try:
        found = prove(ref, seed)
    except Exception as error:
        found = {"fail": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
    found["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    sender.send(found)


# -- the page


def read(file: Path) -> dict[str, dict[str, Any]]:
    """The last result of each network."""
    lines = file.read_text().splitlines() if file.exists() else []
    return {r["model"]: r for r in map(json.loads, lines)}


def is_cnn(ref: str) -> bool:
    return not HYBRIDS.search(ref.rpartition(":")[2])


def table(found: list[dict[str, Any]]) -> str:
    head = ("model", "input", "groups", "unfrozen", "params", "prunable", "MACs", "prunable", "max error",
            "approximate", "trace s", "cut s", "frozen because")  # fmt: skip
    lines = [" | ".join(head), "|".join(["---", "---", *["---:"] * 10, "---"])]
    for r in found:
        name = r["model"].rpartition(":")[2]
        if "fail" in r:
            lines.append(f"{name} | **FAIL**: {r['fail'].splitlines()[0][:200]}" + " |" * 11)
            continue
        ratios = r["ratios"].values()
        places = max(len(v["approximate"]) for v in ratios)
        cells = [
            name,
            "x".join(map(str, r["input"])),
            str(r["groups"]),
            str(r["unfrozen"]),
            f"{r['params'] / 1e6:.1f} M",
            f"{r['prunable_params']:.0%}",
            f"{r['macs'] / 1e9:.2f} G",
            f"{r['prunable_macs']:.0%}",
            f"{max(v['error'] for v in ratios):.0e}",
            f"yes, {places}" if places else "no",
            f"{r['trace_s']:.2f}",
            f"{r['ratios']['0.5']['cut_s']:.2f}",
            frozen_text(r) if r["prunable_macs"] < EXPLAINED else "",
        ]
        lines.append(" | ".join(cells))
    return "\n".join(f"| {line} |" for line in lines)


def frozen_text(r: dict[str, Any]) -> str:
    return "; ".join(f"{why} ({share:.0%})" for why, share in r["frozen"].items() if share >= 0.05)


def summary(found: list[dict[str, Any]]) -> str:
    good = [r for r in found if "fail" not in r]
    cnns = [r for r in good if is_cnn(r["model"])]
    errors = [v["error"] for r in good for v in r["ratios"].values()]
    less = [
        f"{r['model'].rpartition(':')[2]} ({r['prunable_macs']:.0%})" for r in cnns if r["prunable_macs"] < EXPLAINED
    ]
    return (
        f"{len(good)} of {len(found)} networks pass, {len(errors)} cuts; largest error {max(errors, default=0):.1e} "
        f"(limit 1e-4). {len(cnns) - len(less)} of {len(cnns)} CNNs have at least {EXPLAINED:.0%} of their MACs in "
        f"unfrozen groups" + (f"; less: {', '.join(less)}." if less else ".")
    )


def formerly(found: list[dict[str, Any]]) -> str:
    """The share of the MACs that is prunable, where it was less than all in the version before, then and now."""
    lines = ["| model | before | now |", "| --- | ---: | ---: |"]
    for r in sorted(found, key=lambda r: BEFORE.get(r["model"], 100)):
        if r["model"] in BEFORE and "fail" not in r:
            name = r["model"].rpartition(":")[2]
            lines.append(f"| {name} | {BEFORE[r['model']]}% | {r['prunable_macs']:.0%} |")
    return "\n".join(lines)


def provenance(found: list[dict[str, Any]]) -> str:
    cpu = machine(torch.device("cpu"))
    spent = sum(r["seconds"] for r in found) / 60
    return (
        f"{cpu['cpu']}, {torch.get_num_threads()} thread, torch {torch.__version__}, torchvision "
        f"{torchvision.__version__}, timm {timm.__version__}, Python {platform.python_version()}, seed "
        f"{found[0]['seed'] if found else 0}, {spent:.0f} minutes, {datetime.date.today()}."
    )


PAGE = """# Networks that are cut exactly

Each network below was cut at random, not prefix, units: 30 %, 50 % and 75 % of every unfrozen group. Weights are random
(`weights=None`), and norms, layer scales and heads that start constant are randomised, so that every channel counts.
No network has run before it is traced, and tracing leaves its tensors and attributes as they were. For each cut:

- the wiring of the cut network is retraced: every channel meets the channels it met before;
- its outputs on two random images equal those of the full network in which nothing reads a removed unit (float32,
  error relative to the largest output), and differ from those of the uncut network by at least {change:g};
- at 50 %, `slim` equals the cut bit for bit, and so does what `load` reads back from disk.

*prunable* is the share that some unfrozen group touches. *approximate* counts the modules that take statistics over
channels (LayerNorm, softmax, ...) of which some were removed: there, cutting changes what is computed beyond dropping
the units, and the reference takes its statistics over the units kept. *trace* includes the trial cut, *cut* is the one
at 50 %: processor seconds of one thread, the first call in a fresh process, on a busy machine (for speed see
`benchmarks/surgery.py`). Where less than {explained:.0f} % of the MACs are prunable the last column says why, with the
share of the MACs that only groups frozen for this reason touch (from 5 %).

    python benchmarks/zoo.py --out zoo.jsonl --markdown docs/zoo.md

{summary}

{provenance}

## Frozen in part before

Prunable shares of the MACs in the last edition of this page and now.

{formerly}

## Written for this page

U-Net, SegFormer-like, BiSeNet-like, a YOLO-like detector that keeps its grids, the pyramids and heads of torchvision's
detectors, RAFT-like correlation, GANs, super-resolution, text and speech recognition, Demucs- and WaveNet-like
networks, video (`benchmarks/zoo_models/`).

{own}

## torchvision, classification

{classification}

## torchvision, segmentation

{segmentation}

## timm

{timm}
"""


def page(found: list[dict[str, Any]]) -> str:
    segmenters = {f"torchvision:{n}" for n in models.list_models(module=models.segmentation)}
    parts: dict[str, list[dict[str, Any]]] = {"own": [], "classification": [], "segmentation": [], "timm": []}
    for r in found:
        kind = "timm" if r["model"].startswith("timm:") else "own" if ".py:" in r["model"] else "classification"
        parts["segmentation" if r["model"] in segmenters else kind].append(r)
    tables = {name: table(rows) for name, rows in parts.items()}
    return PAGE.format(
        change=LEAST_CHANGE,
        explained=100 * EXPLAINED,
        summary=summary(found),
        provenance=provenance(found),
        formerly=formerly(found),
        **tables,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="results, one line of JSON a network")
    parser.add_argument("--markdown", type=Path, help="also write the page with all tables here")
    parser.add_argument("--models", nargs="+", default=references(), metavar="REF")
    parser.add_argument("--collect", action="store_true", help="run nothing; tables of the results that --out has")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)

    found = read(given.out)
    for ref in () if given.collect else given.models:
        if ref not in found or "fail" in found[ref]:
            found[ref] = in_process(ref, given.seed)
            with given.out.open("a") as file:
                file.write(json.dumps(found[ref]) + "\n")
            result = found[ref].get("fail") or f"{max(v['error'] for v in found[ref]['ratios'].values()):.1e}"
            print(f"{ref}: {result} ({found[ref]['seconds']} s, {found[ref]['peak_mb']} MB)", flush=True)
    chosen = [found[ref] for ref in given.models if ref in found]
    print("\n".join(("", table(chosen), "", summary(chosen), provenance(chosen))))
    if given.markdown is not None:
        given.markdown.write_text(page(chosen))


if __name__ == "__main__":
    main()
