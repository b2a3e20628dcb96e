"""`sentei demo`: the main job on data that is already on the machine."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from torch import nn

from sentei.cli.options import Output
from sentei.cli.running import print_json
from sentei.console import say, screen
from sentei.data import Data, load_data
from sentei.methods import METHODS, prune
from sentei.models import build_model
from sentei.plan import Budget, Constraints
from sentei.report.tables import count, percent, table
from sentei.surgery import load
from sentei.train import Recipe, evaluate, fit

TRAIN = Recipe(epochs=12, batch_size=64, lr=0.1)
LIMITS = Constraints(round_to=1, max_ratio=0.9)
"""In a network this small, widths in multiples of 8 would leave the methods little to choose from."""
OWN: dict[str, dict[str, Any]] = {
    "abc": {"evaluations": 60},
    "stagewise": {"supernet_epochs": 4, "supernet_lr": 0.05, "evaluations": 60, "table_images": 180, "candidates": 8},
}
"""Settings of the methods that take long by default."""
TUNE = Recipe(epochs=6, batch_size=64, lr=0.05)


@dataclass(frozen=True)
class Demo:
    """Train a small network on scikit-learn's digits, prune it to half its MACs, prove, save and load it.

    Takes less than a minute on two cores; no network, no GPU, no data to fetch.
    """

    methods: Annotated[tuple[str, ...], tyro.conf.arg(metavar="METHOD")] = (
        "uniform", "taylor", "abc", "ista", "stagewise",
    )  # fmt: skip
    """What to compare."""
    run: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Keep the pruned networks here; by default they go to a temporary folder."""
    seed: int = 0
    output: Output = field(default_factory=Output)

    @property
    def folder(self) -> Path | None:
        return self.run

    def execute(self) -> None:
        started = time.perf_counter()
        data = load_data("digits")
        sizes = f"{len(data.train):,} images of 8x8 to train on, {len(data.test)} for the test"
        say(f"1. Data: scikit-learn's digits, {sizes}.")
        torch.manual_seed(self.seed)
        model = build_model("digitsnet")
        fit(model, data, TRAIN, progress=screen().is_terminal)
        dense = evaluate(model, data.test).value
        say(f"2. Train: a small residual network, {TRAIN.epochs} epochs, {percent(dense)} of the test images right.")
        say("3. Prune: half of the multiply-accumulates, by removing whole channels, then fine-tune.")
        with self.kept() as home:
            rows = [self.one(model, data, method, home / method) for method in self.methods]
            self.show(rows)
            if self.output.as_json:
                print_json({"methods": rows})
            say(f"Done in {time.perf_counter() - started:.0f} s." + (f" Run directories: {home}/*" if self.run else ""))
        say("Next:  sentei inspect torchvision:resnet50     or     sentei train --help")

    def one(self, model: nn.Module, data: Data, method: str, folder: Path) -> dict[str, Any]:
        """Prune with one method, load the result from its files and measure that."""
        summary = prune(
            model, data, method=method, budget=Budget(macs=0.5), constraints=LIMITS, run_dir=folder, recipe=TUNE,
            seed=self.seed, source="digitsnet", overwrite=True, **OWN.get(method, {}),
        ).summary  # fmt: skip
        loaded = evaluate(load(build_model("digitsnet"), folder), data.test).value
        about = METHODS[method].about if method in METHODS else ""
        say(f"   {method}: {about}")
        return {**summary, "loaded": loaded}

    def show(self, rows: list[dict[str, Any]]) -> None:
        if not rows:
            return
        say("4. Prove: each cut network was compared with the original in which the removed channels are silenced.")
        say("5. Save and load: each was written as safetensors and JSON, read back, and measured on the test set.")
        columns = ("val, cut", "val, tuned", "test", "MACs", "params", "max error")
        out = table("Digits: before and after", "method", *columns)
        base = rows[0]["base"]
        out.add_row("none", "-", percent(base["val_accuracy"]), percent(base["accuracy"]), count(base["macs"]),
                    count(base["params"]), "-")  # fmt: skip
        for row in rows:
            pruned = row["pruned"]
            out.add_row(
                row["method"], percent(row["after_cut"]["val_accuracy"]), percent(pruned["val_accuracy"]),
                percent(row["loaded"]), count(pruned["macs"]), count(pruned["params"]),
                f"{row['check']['max_error']:.0e}",
            )  # fmt: skip
        screen().print(out)

    @contextmanager
    def kept(self) -> Iterator[Path]:
        if self.run is not None:
            yield self.run
            return
        with tempfile.TemporaryDirectory(prefix="sentei-demo-") as folder:
            yield Path(folder)
