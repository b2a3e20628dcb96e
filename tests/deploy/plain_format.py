"""A format that needs nothing but NumPy, for networks of a mean or a flatten and one linear layer."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from sentei.deploy.formats import Format


class Pooled(nn.Module):
    """Takes images of any size, any number of them."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.linear = nn.Linear(4, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.mean((2, 3)))


class Flat(Pooled):
    """Takes images of 2x2, any number of them."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.flatten(1))


class OneByOne(Pooled):
    """Goes through the images in a Python loop, which torch.export unrolls."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.linear(x[i].mean((1, 2))) for i in range(x.shape[0])])


class Numbers(Format):
    """Weights and the record in an .npz file. `factor` makes the file wrong."""

    name, suffix = "numbers", ".npz"
    loader = '''\
import numpy as np


def load(path):
    file = np.load(path)
    wide = file["weight"].shape[1] == 4
    return lambda x: [(x.mean((2, 3)) if wide else x.reshape(len(x), -1)) @ file["weight"].T + file["bias"]]


def about(path):
    return str(np.load(path)["record"])
'''

    def __init__(self, factor: float = 1.0) -> None:
        self.factor = factor

    def build(self, sketch):
        state = {name.rpartition(".")[2]: t for name, t in sketch.program.state_dict.items()}
        return {name: t.detach().numpy() * np.float32(self.factor) for name, t in state.items()}

    def write(self, built, path: Path, record: str) -> list[Path]:
        np.savez(path, record=record, **built)
        return [path]
