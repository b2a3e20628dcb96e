"""A model and data of your own, for the command line.

sentei train examples/own_model.py:net --data examples/own_model.py:images --epochs 8 --run runs/own
sentei prune runs/own --trust --method taylor --macs 0.4 --epochs 4 --run runs/own-small
sentei inspect examples/own_model.py:net --groups
"""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn


class Net(nn.Module):
    """Two branches that are concatenated, a depthwise convolution, and a squeeze-and-excitation gate."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.left = nn.Conv2d(1, 16, 3, padding=1)
        self.right = nn.Conv2d(1, 16, 5, padding=2)
        self.depthwise = nn.Conv2d(32, 32, 3, padding=1, groups=32, bias=False)
        self.norm = nn.BatchNorm2d(32)
        self.gate = nn.Sequential(nn.Linear(32, 8), nn.ReLU(), nn.Linear(8, 32), nn.Sigmoid())
        self.mix = nn.Sequential(nn.Conv2d(32, 48, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(48))
        self.head = nn.Linear(48, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.left(x), self.right(x)], dim=1).relu()
        x = self.norm(self.depthwise(x)).relu()
        x = x * self.gate(x.mean(dim=(2, 3)))[:, :, None, None]
        return self.head(self.mix(x).relu().mean(dim=(2, 3)))


def net(num_classes: int = 10) -> Net:
    """Called with the number of classes of the data, because it takes an argument of that name."""
    return Net(num_classes)


net.input_shape = (1, 8, 8)  # what `sentei inspect` feeds it where there is no data


def images() -> dict[str, object]:
    """Images N,C,H,W or N,H,W,C (uint8, or float that is kept as it is) and class numbers."""
    digits = load_digits()
    x, y = torch.from_numpy(digits.images / 16).float(), torch.from_numpy(digits.target)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    train, test = order[:1400], order[1400:]
    return {"x_train": x[train], "y_train": y[train], "x_test": x[test], "y_test": y[test], "num_classes": 10}
