"""A timm model in a loop of timm's optimizer, scheduler and loss, cut between two epochs.

pip install timm
python examples/timm_training.py
"""

import timm
import torch
from sklearn.datasets import load_digits
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch.utils.data import DataLoader, TensorDataset

import sentei

EPOCHS, CUT_AFTER = 5, 2


def loaders():
    digits = load_digits()
    x = torch.from_numpy(digits.images / 8 - 1).float()[:, None]
    x = torch.nn.functional.interpolate(x, 32, mode="bilinear")
    data = TensorDataset(x, torch.from_numpy(digits.target))
    train, val = torch.utils.data.random_split(data, [600, len(x) - 600], torch.Generator().manual_seed(0))
    return DataLoader(train, batch_size=40, shuffle=True), DataLoader(val, batch_size=200)


def train(model, loader, optimizer, scheduler, criterion, epoch):
    model.train()
    for x, y in loader:
        optimizer.zero_grad()
        criterion(model(x), y).backward()
        optimizer.step()
    scheduler.step(epoch + 1)


@torch.no_grad()
def accuracy(model, loader):
    model.eval()
    return sum((model(x).argmax(1) == y).sum().item() for x, y in loader) / len(loader.dataset)


def main() -> None:
    torch.manual_seed(0)
    train_loader, val_loader = loaders()
    model = timm.create_model("resnet10t", in_chans=1, num_classes=10)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=2e-3, weight_decay=0.02)
    scheduler = CosineLRScheduler(optimizer, t_initial=EPOCHS, lr_min=1e-5)
    criterion = LabelSmoothingCrossEntropy(0.1)
    for epoch in range(EPOCHS):
        train(model, train_loader, optimizer, scheduler, criterion, epoch)
        rate = optimizer.param_groups[0]["lr"]
        print(f"epoch {epoch + 1}: accuracy {accuracy(model, val_loader):.1%}, learning rate {rate:.1e}")
        if epoch + 1 != CUT_AFTER:
            continue

        x = next(iter(val_loader))[0][:2]
        graph = sentei.trace(model, x)
        plan = sentei.uniform(graph, sentei.Budget(macs=0.5))
        small = sentei.cut(model, graph, plan)
        sentei.check(model, small, graph, plan, x)
        optimizer = sentei.carry_optimizer(optimizer, model, small, graph, plan)
        state, rates = optimizer.state_dict(), scheduler.state_dict()
        scheduler = CosineLRScheduler(optimizer, t_initial=EPOCHS, lr_min=1e-5)
        scheduler.load_state_dict(rates)
        optimizer.load_state_dict(state)  # building a scheduler sets its rates
        model = small
        print(f"cut: {graph.cost().macs:,} -> {graph.cost(plan).macs:,} MACs, {accuracy(model, val_loader):.1%}")


if __name__ == "__main__":
    main()
