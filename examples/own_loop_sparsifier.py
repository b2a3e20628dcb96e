"""BatchNorm scales shrink to exact zeros inside a plain PyTorch loop until half of the MACs are gone.

python examples/own_loop_sparsifier.py
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import sentei
from sentei.train import recalibrate

LR = 0.01


def network() -> nn.Module:
    block = [nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()]
    block += [nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)]
    block += [nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU()]
    return nn.Sequential(*block, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


def epoch(model: nn.Module, loader: DataLoader, optimizer: torch.optim.Optimizer, sparsifier=None) -> None:
    model.train()
    for images, labels in loader:
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
        if sparsifier is not None:
            sparsifier.step()  # after each step of the optimizer


@torch.no_grad()
def accuracy(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    return (model.eval()(images).argmax(1) == labels).float().mean().item()


def main() -> None:
    torch.manual_seed(0)
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1
    labels = torch.tensor(digits.target)
    loader = DataLoader(TensorDataset(images[:1400], labels[:1400]), batch_size=50, shuffle=True)
    held_out = images[1400:], labels[1400:]

    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(6):
        epoch(model, loader, optimizer)
    before = accuracy(model, *held_out)
    print(f"trained: accuracy {before:.1%}")

    graph = sentei.trace(model, images[:1])
    sparsifier = sentei.Sparsifier(
        model, graph, images[:8], budget=sentei.Budget(macs=0.5), lr=LR, steps=len(loader), growth=2.0, before=before
    )
    optimizer = torch.optim.SGD(sparsifier.parameter_groups(weight_decay=5e-4), lr=LR, momentum=0.9)
    for _ in range(20):
        epoch(model, loader, optimizer, sparsifier)
        recalibrate(model, loader)  # BatchNorm statistics lag behind scales that move fast
        met = sparsifier.next_round(accuracy(model, *held_out))
        print(sparsifier)
        if met:
            break
    small, plan = sparsifier.finish()
    print(f"{graph.cost().macs:,} -> {graph.cost(plan).macs:,} MACs, max error {sparsifier.report.max_error:.1e}")
    recalibrate(small, loader)
    print(f"cut: accuracy {accuracy(small, *held_out):.1%}")

    optimizer = torch.optim.SGD(small.parameters(), lr=LR, momentum=0.9)
    for _ in range(3):
        epoch(small, loader, optimizer)
    print(f"fine-tuned: accuracy {accuracy(small, *held_out):.1%}")


if __name__ == "__main__":
    main()
