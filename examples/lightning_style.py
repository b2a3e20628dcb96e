"""A LightningModule pruned through its own training_step. Written by hand here: it needs no package.

python examples/lightning_style.py
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import sentei
from sentei.train import Recipe


class Digits(nn.Module):  # or lightning.LightningModule
    """The network, its loss and its optimizer in one class."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
            nn.Conv2d(32, 64, 3, 2, 1), nn.BatchNorm2d(64), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )  # fmt: skip
        self.head = nn.Linear(64, 10)

    def forward(self, x):
        return self.head(self.body(x))

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self(x), y, label_smoothing=0.1)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=2e-3)


class OfModule(sentei.Task):
    """A task whose step is the module's own; `measure` is what validation_step and its log calls would do."""

    metric, percent = "accuracy", True

    def step(self, model, batch):
        found = model.training_step(batch, 0)
        return found["loss"] if isinstance(found, dict) else found

    def loss(self, output, batch):
        return F.cross_entropy(output, batch[1])

    def measure(self, model, batches):
        right = [(model(x).argmax(1) == y).float() for x, y in batches]
        return {"accuracy": torch.cat(right).mean().item()}


def loaders():
    digits = load_digits()
    x, y = torch.from_numpy(digits.images / 8 - 1).float()[:, None], torch.from_numpy(digits.target)
    parts = [slice(0, 1200), slice(1200, 1500), slice(1500, None)]
    return [DataLoader(TensorDataset(x[p], y[p]), batch_size=64, shuffle=p.start == 0) for p in parts]


def main() -> None:
    torch.manual_seed(0)
    train, val, test = loaders()
    module = Digits().train()
    optimizer = module.configure_optimizers()
    for _ in range(4):  # what lightning.Trainer.fit does
        for i, batch in enumerate(train):
            optimizer.zero_grad()
            module.training_step(batch, i).backward()
            optimizer.step()

    data = sentei.Data.of(train, val, test, example=torch.zeros(1, 1, 8, 8))
    recipe = Recipe(epochs=3, lr=0.02)
    result = sentei.prune(
        module, data, task=OfModule(), method="taylor", budget=sentei.Budget(macs=0.5), recipe=recipe,
        optimizer=lambda groups: torch.optim.AdamW(groups, lr=2e-3), progress=False,
    )  # fmt: skip
    before, after = (result.summary[k] for k in ("base", "pruned"))
    print(f"accuracy {before['accuracy']:.1%} -> {after['accuracy']:.1%}, MACs {before['macs']:,} -> {after['macs']:,}")
    print("still a module with its own step:", type(result.model).__name__, result.model.training_step(batch, 0).item())


if __name__ == "__main__":
    main()
