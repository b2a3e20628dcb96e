"""A training run as a process of its own, for the test that kills it: `python resumable.py RUN_DIR OUT`."""

import sys
from pathlib import Path

import torch
from torch import nn

from sentei.data import load_data
from sentei.models import build_model
from sentei.train import Recipe, fit
from sentei.train.checkpoint import save_weights

RECIPE = Recipe(epochs=6, batch_size=64, lr=0.1, ema_decay=0.9, label_smoothing=0.1, cutout=2, seed=5)


def main(run_dir: str, out: str) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    # Dropout draws from the global generator, so its state has to be restored too.
    model = nn.Sequential(nn.Dropout(0.1), build_model("digitsnet"))
    result = fit(model, load_data("digits"), RECIPE, run_dir=Path(run_dir))
    save_weights(out, result.model)


if __name__ == "__main__":
    main(*sys.argv[1:])
