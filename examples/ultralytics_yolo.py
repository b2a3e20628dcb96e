"""YOLO11n, cut to half of its multiply-accumulates, goes on in Ultralytics' own trainer.

pip install ultralytics        (AGPL-3.0; sentei neither needs nor ships it)
python examples/ultralytics_yolo.py
"""

import os
import tempfile
from pathlib import Path

os.environ.setdefault("YOLO_OFFLINE", "true")  # nothing here needs a download

import numpy as np
import torch
from PIL import Image
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.nn.tasks import DetectionModel

import sentei

SIZE = 64


def raw(model, images):
    """Boxes and scores before post-processing. The features beside them are no output: they may shrink."""
    out = model(images)
    found = out[1] if isinstance(out, tuple) else out  # decoded boxes come first in evaluation mode
    return found["boxes"], found["scores"]


def squares(folder, count):
    """Images with one bright square each, as Ultralytics reads them."""
    rng = np.random.default_rng(0)
    for part in ("images", "labels"):
        (folder / part).mkdir()
    for i in range(count):
        x, y, side = *rng.integers(0, SIZE // 2, 2), int(rng.integers(12, SIZE // 2))
        image = rng.integers(0, 80, (SIZE, SIZE, 3), dtype=np.uint8)
        image[y : y + side, x : x + side] = 255
        Image.fromarray(image).save(folder / f"images/{i}.png")
        box = np.array([x + side / 2, y + side / 2, side, side]) / SIZE
        (folder / f"labels/{i}.txt").write_text("0 " + " ".join(f"{v:.4f}" for v in box))
    (folder / "data.yaml").write_text(f"path: {folder}\ntrain: images\nval: images\nnames: [square]\n")
    return folder / "data.yaml"


def trainer_of(model, data, folder):
    """Ultralytics' trainer on a network that is already there."""

    class Trainer(DetectionTrainer):
        def get_model(self, cfg=None, weights=None, verbose=True):
            return model

    quiet = {"plots": False, "val": False, "verbose": False, "workers": 0}
    own = {"data": str(data), "project": str(folder), "imgsz": SIZE, "batch": 8, "epochs": 2, "device": "cpu"}
    return Trainer(overrides={"model": "yolo11n.yaml", **own, **quiet})


def main() -> None:
    torch.manual_seed(0)
    model = DetectionModel("yolo11n.yaml", nc=1, verbose=False)  # yours comes from YOLO("best.pt").model
    x = torch.rand(1, 3, SIZE, SIZE)

    graph = sentei.trace(model, x, forward=raw)
    plan = sentei.uniform(graph, sentei.Budget(macs=0.5))
    small = sentei.cut(model, graph, plan)
    report = sentei.check(model, small, graph, plan, x)
    print(f"{graph}\n{graph.cost().macs:,} -> {graph.cost(plan).macs:,} MACs, max error {report.max_error:.1e}")

    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(small, squares(Path(folder), 32), folder)
        trainer.train()
        print("losses in its trainer:", trainer.label_loss_items(trainer.tloss))
    print(f"still the network that was cut: {sum(p.numel() for p in small.parameters()):,} parameters")


if __name__ == "__main__":
    main()
