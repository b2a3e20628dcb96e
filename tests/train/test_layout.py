"""The layout of training: no path of ours leads into the convolutions that crash PyTorch in channels_last."""

import os
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from sentei.layout import arranged, crashing, training_layout
from tests import forked

CPU = torch.device("cpu")


@pytest.mark.parametrize("vectors", ["AVX2", "DEFAULT"])
def test_training_survives_the_convolution_that_crashes(vectors: str) -> None:
    """In a process of its own, also with the kernels of processors that have AVX2 only.

    What each path prints are narrow convolutions that met channels_last while gradients were taken.
    """
    root = Path(__file__).parents[2]
    env = {
        **os.environ,
        "PYTHONPATH": f"{root / 'src'}{os.pathsep}{root}",
        "ONEDNN_MAX_CPU_ISA": vectors,
        "OMP_NUM_THREADS": "1",
    }
    program = Path(__file__).with_name("narrow.py")
    done = forked.run([sys.executable, str(program)], env=env)
    assert done.returncode == 0, (done.returncode, done.stdout, done.stderr)
    paths = ("trained", "trained_without_channels_last", "cut_and_trained", "scored", "supernet")
    assert done.stdout.splitlines() == [f"{path} []" for path in paths]


@pytest.mark.parametrize(
    ("conv", "crashes"),
    [
        (nn.Conv2d(7, 16, 1, 2), True),
        (nn.Conv2d(15, 20, 1, 2), True),
        (nn.Conv2d(3, 1, 1, (1, 3)), True),
        (nn.Conv2d(16, 7, 1, 2), False),
        (nn.Conv2d(7, 16, 1), False),
        (nn.Conv2d(7, 16, 3, 2, 1), False),
        (nn.Conv2d(8, 16, 1, 2, groups=2), False),
        (nn.ConvTranspose2d(7, 16, 1, 2), False),
        (nn.Conv3d(7, 16, 1, 2), False),
    ],
)
def test_layout_falls_back_for_the_kind_that_crashes_only(conv: nn.Module, crashes: bool) -> None:
    model = nn.Sequential(nn.ReLU(), conv)
    assert crashing(model) == (["1"] if crashes else [])
    safe = torch.contiguous_format if crashes else torch.channels_last
    assert training_layout(model, CPU) == safe
    assert training_layout(model, CPU, channels_last=False) == torch.contiguous_format
    assert training_layout(model, torch.device("cuda")) == torch.channels_last


def test_only_images_are_arranged() -> None:
    rows, images = torch.zeros(4, 6), torch.zeros(4, 3, 2, 2)
    assert arranged(rows, torch.channels_last) is rows
    assert arranged(images, torch.channels_last).stride() == (12, 1, 6, 3)
