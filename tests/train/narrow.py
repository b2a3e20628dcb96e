"""Training paths on a network that crashes PyTorch in channels_last, as a process of its own."""

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

import sentei
from sentei.data import Augment, Data
from sentei.data.splits import TensorSplit
from sentei.plan import Constraints, criterion
from sentei.supernet.shares import shares
from sentei.supernet.stages import find_stages
from sentei.supernet.training import SortedNet, SupernetLoss
from sentei.train import Recipe, fit

SIZE, CLASSES = 56, 4


class Narrow(nn.Module):
    """A stem of few channels and a shortcut with a stride: the 1x1 convolution at fault."""

    def __init__(self, stem: int = 7) -> None:
        super().__init__()
        shortcut = nn.Sequential(nn.Conv2d(stem, 16, 1, 2, bias=False), nn.BatchNorm2d(16))
        self.stem = nn.Sequential(nn.Conv2d(3, stem, 3, padding=1, bias=False), nn.BatchNorm2d(stem), nn.ReLU())
        self.block = BasicBlock(stem, 16, 2, shortcut)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.stem(x)).mean((2, 3)))


def data(images: int = 128) -> Data:
    rng = np.random.default_rng(0)
    pixels = torch.from_numpy(rng.integers(0, 256, (images, SIZE, SIZE, 3), dtype=np.uint8))
    split = TensorSplit(pixels, torch.arange(images) % CLASSES, (0.5,) * 3, (0.25,) * 3, Augment())
    return Data("noise", split, split, split, CLASSES, (3, SIZE, SIZE), torch.device("cpu"))


def watch(model: nn.Module) -> list[tuple[int, bool]]:
    """What each strided 1x1 convolution meets: its inputs, and whether anything there is in channels_last."""
    met: list[tuple[int, bool]] = []

    def look(module: nn.Conv2d, args: tuple[Tensor, ...]) -> None:
        last = [t.stride(1) == 1 and t.stride(3) >= t.shape[1] for t in (args[0], module.weight)]
        met.append((args[0].shape[1], torch.is_grad_enabled() and any(last)))

    for m in model.modules():
        if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1):
            m.register_forward_pre_hook(look)
    return met


def train(model: nn.Module, **recipe: object) -> list[tuple[int, bool]]:
    met = watch(model)
    fit(model, data(), Recipe(epochs=2, batch_size=64, lr=0.01, bf16=False, **recipe), progress=False)  # type: ignore[arg-type]
    return met


def trained() -> list[tuple[int, bool]]:
    return train(Narrow().to(memory_format=torch.channels_last))


def trained_without_channels_last() -> list[tuple[int, bool]]:
    return train(Narrow().to(memory_format=torch.channels_last), channels_last=False)


def cut_and_trained() -> list[tuple[int, bool]]:
    model = Narrow(16).to(memory_format=torch.channels_last)
    graph = sentei.trace(model, torch.zeros(1, 3, SIZE, SIZE))
    return train(sentei.cut(model, graph, sentei.Plan({"stem.0": range(7)}, graph.structure)))


def scored() -> list[tuple[int, bool]]:
    model = Narrow().to(memory_format=torch.channels_last)
    graph = sentei.trace(model, torch.zeros(1, 3, SIZE, SIZE))
    met = watch(model)
    criterion("taylor")(model, graph, batches=data().train.batches(64))
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in model.parameters() if p.ndim == 4)
    return met


def supernet() -> list[tuple[int, bool]]:
    model = Narrow(16)
    graph = sentei.trace(model, torch.zeros(1, 3, SIZE, SIZE))
    names = [g.name for g in graph.groups if not g.frozen]
    space = shares(graph, names, Constraints(round_to=1, max_ratio=0.6))
    scores = criterion("l1")(model, graph)
    net = SortedNet.of(model, graph, find_stages(model, graph, ("stem", "block")), space, scores)
    met = watch(net.model)
    recipe = Recipe(epochs=1, batch_size=64, lr=0.01, bf16=False)
    fit(net.model, data(), recipe, objective=SupernetLoss(net), progress=False)
    return met


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for path in (trained, trained_without_channels_last, cut_and_trained, scored, supernet):
        met = path()
        assert any(width < 16 for width, _ in met), (path.__name__, met)
        print(path.__name__, [width for width, last in met if last and width < 16], flush=True)
