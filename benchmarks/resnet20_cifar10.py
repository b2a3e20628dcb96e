"""How the packaged network sentei:resnet20-cifar10 was made.

    python benchmarks/resnet20_cifar10.py train --data-root DATA --run RUN   # two hours on a core; resumable
    python benchmarks/resnet20_cifar10.py export --run RUN                   # writes the package's weights

Split 45,000 / 5,000 / 10,000 (seed 0); the test images are read once, after the last epoch.
"""

import argparse
import json
import platform
from pathlib import Path

import torch

import sentei
from sentei.atomic import write_atomic
from sentei.data import load_data
from sentei.models.resnet import resnet20
from sentei.threads import set_threads
from sentei.train.checkpoint import save_weights
from sentei.train.evaluate import evaluate
from sentei.train.loop import fit
from sentei.train.recipe import Recipe

FIRST = Recipe(epochs=40, batch_size=128, lr=0.2, weight_decay=5e-4, warmup_epochs=2, seed=0)
RESTART = Recipe(epochs=36, batch_size=128, lr=0.2, weight_decay=5e-4, warmup_epochs=1, seed=1)
WEIGHTS = Path(sentei.__path__[0]) / "models" / "weights" / "resnet20-cifar10.safetensors"


def train(run: Path, data_root: Path | None) -> None:
    set_threads()
    data = load_data("cifar10", root=data_root)
    torch.manual_seed(FIRST.seed)
    first = fit(resnet20(), data, FIRST, run_dir=run)
    result = fit(first.model, data, RESTART, run_dir=run, name="restart")
    test = evaluate(result.model, data.test)
    summary = {
        "model": "resnet20",
        "data": data.description,
        "recipes": [FIRST.to_dict(), RESTART.to_dict()],
        "val_accuracy": result.value,
        "test_accuracy": test.value,
        "test_loss": test.loss,
        "seconds": result.seconds,
        "images_per_second": result.images_per_second,
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
    }
    save_weights(run / "model.safetensors", result.model, {"summary": json.dumps(summary)})
    write_atomic(run / "summary.json", json.dumps(summary, indent=2).encode())
    print(f"test accuracy {test.value:.2%}, validation {result.value or 0:.2%}, {result.seconds:,.0f} s")


def export(run: Path) -> None:
    write_atomic(WEIGHTS, (run / "model.safetensors").read_bytes())
    accuracy = json.loads((run / "summary.json").read_text())["test_accuracy"]
    print(f"wrote {WEIGHTS.name} ({WEIGHTS.stat().st_size / 1e6:.2f} MB), test accuracy {accuracy:.2%}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("train", "export"))
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--data-root", type=Path)
    given = parser.parse_args()
    if given.action == "train":
        train(given.run, given.data_root)
    else:
        export(given.run)
