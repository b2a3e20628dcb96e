"""Weights that make up for a cut: MobileNetV2 with ImageNet weights on Imagenette, cut uniformly.

    python benchmarks/reconstruct.py --data FOLDER --weights mobilenet_v2.pth

FOLDER is Imagenette as an image folder, seen at 160 pixels; the network keeps its ten outputs of these classes. Two
tables of validation accuracy: without any training, and at half the MACs after a little of it, with the original as
teacher; from inherited weights and from reconstructed ones, with fresh BatchNorm statistics in all cases.
"""

from __future__ import annotations

import argparse
import copy
import os
import time

import torch
from torch import nn

import sentei
from sentei.data import load_data
from sentei.models import build_model
from sentei.plan import CRITERIA, Budget, Constraints, uniform
from sentei.surgery import cut
from sentei.threads import set_threads
from sentei.train import Recipe, evaluate, fit, recalibrate
from sentei.train.reconstruct import Reconstruction

CLASSES = [0, 217, 482, 491, 497, 566, 569, 571, 574, 701]
"""Of Imagenette among those of ImageNet."""
SIZE, IMAGES = 160, 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--macs", type=float, nargs="+", default=[0.8, 0.65, 0.5, 0.35])
    parser.add_argument("--images", type=int, nargs="+", default=[2048])
    parser.add_argument("--lr", type=float, nargs="+", default=[0.002, 0.005, 0.02])
    given = parser.parse_args()
    data = load_data(f"imagefolder:{given.data}", image_size=SIZE, workers=0)
    dense = of_ten(build_model("torchvision:mobilenet_v2", weights=given.weights)).eval()
    graph = sentei.trace(dense, torch.zeros(1, 3, SIZE, SIZE))
    train = list(data.train.batches(64, train=True, limit=IMAGES))
    print(f"dense: {evaluate(dense, data.val).value:.2%} of {len(data.val)} validation images", flush=True)
    started = time.perf_counter()
    reconstruction = Reconstruction(dense, graph, train)
    print(f"{time.perf_counter() - started:.1f} s for {IMAGES} images; then for each cut", flush=True)

    def both(macs: float) -> tuple[nn.Module, nn.Module]:
        how = Constraints(round_to=4, max_ratio=0.9)
        plan = uniform(graph, Budget(macs=macs), scores=CRITERIA["l1"](dense, graph), constraints=how)
        plain = cut(dense, graph, plan)
        better = copy.deepcopy(plain)
        started = time.perf_counter()
        reconstruction.apply(better, plan)
        print(f"{time.perf_counter() - started:.2f} s", flush=True)
        for network in (plain, better):
            recalibrate(network, train)
        return plain, better

    for macs in given.macs:
        shown = [f"{evaluate(network, data.val).value:.1%}" for network in both(macs)]
        print(f"| {macs:.0%} | {' | '.join(shown)} |", flush=True)
    pair = both(0.5)
    for images in given.images:
        for lr in given.lr:
            recipe = Recipe(epochs=1, lr=lr, batch_size=64, limit=images, hint_weight=0.0)
            tuned = [fit(copy.deepcopy(n), data, recipe, teacher=dense, progress=False).model for n in pair]
            shown = [f"{evaluate(network, data.val).value:.1%}" for network in tuned]
            print(f"| {images:,} | {lr} | {' | '.join(shown)} |", flush=True)


def of_ten(model: nn.Module) -> nn.Module:
    """The network with the outputs of these ten classes alone."""
    whole = model.get_submodule("classifier.1")
    last = nn.Linear(whole.in_features, len(CLASSES))  # type: ignore[arg-type]
    with torch.no_grad():
        last.weight.copy_(whole.weight[CLASSES])  # type: ignore[index]
        last.bias.copy_(whole.bias[CLASSES])  # type: ignore[index]
    model.classifier[1] = last  # type: ignore[operator]
    return model


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    set_threads()
    main()
