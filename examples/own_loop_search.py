"""A bee colony searches layer widths by what a plain PyTorch loop measures: the loss after a short training.

python examples/own_loop_search.py
"""

import tempfile

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

import sentei

digits = load_digits()
IMAGES = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1
LABELS = torch.tensor(digits.target)
TRAIN, VAL = slice(0, 1200), slice(1200, 1500)


def network() -> nn.Module:
    block = [nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    block += [nn.Conv2d(32, 32, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*block, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


def train(model: nn.Module, steps: int, lr: float = 0.05) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    for _ in range(steps):
        batch = torch.randint(TRAIN.stop, (50,))
        optimizer.zero_grad()
        F.cross_entropy(model(IMAGES[batch]), LABELS[batch]).backward()
        optimizer.step()


@torch.no_grad()
def loss(model: nn.Module) -> float:
    return F.cross_entropy(model(IMAGES[VAL]), LABELS[VAL]).item()


def after_training(small: nn.Module) -> float:
    """What a structure is worth: its validation loss after a few steps. The network is this function's own."""
    train(small, steps=10, lr=0.02)
    return loss(small)


def main() -> None:
    torch.manual_seed(0)
    model = network()
    train(model, steps=300)
    print(f"trained: validation loss {loss(model):.3f}")

    graph = sentei.trace(model, IMAGES[:1])
    with tempfile.TemporaryDirectory() as folder:  # keep the folder, and a search that was killed goes on
        plan = sentei.search_widths(
            model, graph, sentei.Budget(macs=0.5), after_training, evaluations=30, lower_is_better=True,
            constraints=sentei.Constraints(round_to=1, max_ratio=0.9), run_dir=folder, say=print,
        )  # fmt: skip
    small = sentei.cut(model, graph, plan)
    report = sentei.check(model, small, graph, plan, IMAGES[:8])
    print(f"{graph.cost().macs:,} -> {graph.cost(plan).macs:,} MACs, max error {report.max_error:.1e}")
    print("widths:", {g.name: int(w) for g, w in zip(graph.groups, graph.widths(plan), strict=True)})

    train(small, steps=200, lr=0.02)
    print(f"fine-tuned: validation loss {loss(small):.3f}")


if __name__ == "__main__":
    main()
