"""A Hugging Face model: trained by their Trainer, cut, and trained on by another Trainer.

pip install transformers accelerate
python examples/hugging_face_trainer.py
"""

import tempfile

import numpy as np
import torch
from sklearn.datasets import load_digits
from transformers import ResNetConfig, ResNetForImageClassification, Trainer, TrainingArguments

import sentei
from sentei.train import Recipe


class Digits(torch.utils.data.Dataset):
    """Samples as Trainer wants them: dicts named as the model's arguments."""

    def __init__(self, first, last):
        digits = load_digits()
        self.x = torch.from_numpy(digits.images[first:last] / 8 - 1).float()[:, None]
        self.y = torch.from_numpy(digits.target[first:last])

    def __len__(self):
        return len(self.y)

    def __getitem__(self, i):
        return {"pixel_values": self.x[i], "labels": self.y[i]}


class Classes(sentei.Task):
    """What sentei has to know: models are called with the whole dict, and return their own loss beside the logits."""

    metric, percent = "accuracy", True

    def inputs(self, batch):
        return {"pixel_values": batch["pixel_values"]}

    def step(self, model, batch):
        return model(**batch).loss

    def loss(self, output, batch):
        return torch.nn.functional.cross_entropy(output.logits, batch["labels"])

    def measure(self, model, batches):
        right = [(model(**self.inputs(b)).logits.argmax(1) == b["labels"]).float() for b in batches]
        return {"accuracy": torch.cat(right).mean().item()}


def trainer(model, train, val, folder, epochs, lr=5e-3):
    arguments = TrainingArguments(
        folder, num_train_epochs=epochs, learning_rate=lr, per_device_train_batch_size=64, eval_strategy="epoch",
        save_strategy="no", report_to="none", disable_tqdm=True, use_cpu=True, dataloader_pin_memory=False,
    )  # fmt: skip
    right = {"compute_metrics": lambda p: {"accuracy": float(np.mean(p.predictions.argmax(1) == p.label_ids))}}
    return Trainer(model, arguments, train_dataset=train, eval_dataset=val, **right)


def main() -> None:
    torch.manual_seed(0)
    train, val = Digits(0, 1200), Digits(1200, 1600)
    config = ResNetConfig(
        num_channels=1, embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic", num_labels=10
    )
    model = ResNetForImageClassification(config)  # yours comes from from_pretrained
    with tempfile.TemporaryDirectory() as folder:
        first = trainer(model, train, val, folder, 3)
        first.train()

        # Either: choose, cut, prove, and train on by Trainer.
        graph = sentei.trace(model, example := {"pixel_values": train[0]["pixel_values"][None]})
        plan = sentei.uniform(graph, sentei.Budget(macs=0.5))
        small = sentei.cut(model, graph, plan)
        report = sentei.check(model, small, graph, plan, example)
        print(f"{graph.cost().macs:,} -> {graph.cost(plan).macs:,} MACs, max error {report.max_error:.1e}")
        trainer(small, train, val, folder, 2).train()

        # Or: sentei chooses by the data and trains on by itself, fed by Trainer's own loaders.
        test = first.get_test_dataloader(Digits(1600, None))
        data = sentei.Data.of(first.get_train_dataloader(), first.get_eval_dataloader(), test)
        recipe = Recipe(epochs=2, lr=0.02)
        result = sentei.prune(model, data, task=Classes(), method="taylor", recipe=recipe, progress=False)
        print(f"sentei.prune: accuracy {result.summary['pruned']['accuracy']:.1%}")


if __name__ == "__main__":
    main()
