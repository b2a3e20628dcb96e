"""The cuts of other tools, with the settings of their own examples."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sentei.atomic import write_atomic
from sentei.data import Data
from sentei.errors import SenteiError
from sentei.train import Recipe, evaluate, fit

STEPS, REFRESH = 400, 20
"""Cuts on the way to nothing, about half of them to half the MACs; gradients are computed anew at every REFRESHth."""
SCORED = 2048
"""Training images for Taylor scores, as many as sentei takes."""


Spent = dict[str, int]
"""Images that were trained on, and those that structures were judged by."""


class Refused(Exception):
    """The tool does not do it; the text says why."""


def cut_by_peer(
    folder: Path, method: str, options: dict[str, Any], model: nn.Module, data: Data, macs: float, recipe: Recipe
) -> None:
    """Prune with another tool, in place, and leave `peer.pt` in the folder, or the reason why there is none in
    `peer.json`."""
    started = time.perf_counter()
    torch.manual_seed(recipe.seed)
    try:
        tool = {"torch-pruning": torch_pruning, "modelopt": modelopt}[method]
        small, spent = tool(model, data, macs, folder, recipe, **options)
        small.eval()(torch.zeros(2, *data.input_shape, device=data.device))
    except (ImportError, OSError, SenteiError):  # not refused: not installed, a full disk, our own training
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        write_atomic(folder / "peer.json", json.dumps({"refused": reason}).encode())
        return
    found = {"refused": None, **spent, "seconds": round(time.perf_counter() - started, 1)}
    torch.save(small.cpu(), folder / "peer.tmp")
    (folder / "peer.tmp").replace(folder / "peer.pt")
    write_atomic(folder / "peer.json", json.dumps(found).encode())


# -- Torch-Pruning


def torch_pruning(
    model: nn.Module, data: Data, macs: float, folder: Path, recipe: Recipe, *, importance: str,
    everywhere: bool = False, isomorphic: bool = False, sparse_epochs: int = 0,
) -> tuple[nn.Module, Spent]:  # fmt: skip
    """Its pruners as in its examples; `everywhere` ranks over the whole network, sparse learning comes before."""
    import torch_pruning as tp

    example = torch.zeros(1, *data.input_shape, device=data.device)
    kinds: dict[str, tuple[Any, Any]] = {
        "l2": (tp.pruner.BasePruner, lambda: tp.importance.MagnitudeImportance(p=2)),
        "bn": (tp.pruner.BNScalePruner, tp.importance.BNScaleImportance),
        "taylor": (tp.pruner.BasePruner, tp.importance.TaylorImportance),
        "group-norm": (tp.pruner.GroupNormPruner, lambda: tp.importance.GroupMagnitudeImportance(p=2)),
    }
    kind, score = kinds[importance]
    last = [m for m in model.modules() if isinstance(m, nn.Linear)][-1:]
    pruner = kind(
        model, example, importance=score(), global_pruning=everywhere, isomorphic=isomorphic, pruning_ratio=1.0,
        max_pruning_ratio=0.9, iterative_steps=STEPS, ignored_layers=last,
    )  # fmt: skip
    images = sparse_learning(model, data, pruner, sparse_epochs, folder, recipe) if sparse_epochs else 0
    full, _ = tp.utils.count_ops_and_params(model, example)
    model.eval()
    for step in range(STEPS):
        if importance == "taylor" and step % REFRESH == 0:
            add_gradients(model, data, recipe.batch_size)
        pruner.step()
        now, _ = tp.utils.count_ops_and_params(model, example)
        if now <= macs * full:
            model.zero_grad(set_to_none=True)
            return model, {"images": images, "judged": 0}
    raise Refused(f"{now / full:.1%} of the MACs after all steps")


def add_gradients(model: nn.Module, data: Data, size: int) -> None:
    model.zero_grad()
    for images, labels in data.train.batches(size, limit=SCORED):
        F.cross_entropy(model(images), labels).backward()


class Regularized:
    """The loss of a step with the pruner's own addition to the gradients, for `sentei.train.fit`."""

    def __init__(self, pruner: Any) -> None:
        self.pruner = pruner

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        images, labels = batch
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        self.pruner.regularize(model)
        return loss

    @contextmanager
    def narrowest(self, model: nn.Module) -> Iterator[nn.Module]:
        yield model

    def status(self) -> str:
        return ""

    def measured(self) -> dict[str, Any]:
        return {}


def sparse_learning(model: nn.Module, data: Data, pruner: Any, epochs: int, folder: Path, recipe: Recipe) -> int:
    """Trains in place, with the group lasso of the tool; the images that it took."""
    if hasattr(pruner, "update_regularizer"):
        pruner.update_regularizer()
    how = Recipe(epochs=epochs, lr=0.01, schedule="constant", seed=recipe.seed, batch_size=recipe.batch_size,
                 limit=recipe.limit)  # fmt: skip
    return fit(model, data, how, run_dir=folder, name="sparse", objective=Regularized(pruner), progress=False).images


# -- NVIDIA ModelOpt


def modelopt(
    model: nn.Module, data: Data, macs: float, folder: Path, recipe: Recipe, *, divisor: int
) -> tuple[nn.Module, Spent]:
    """FastNAS. Its widths are multiples of 32 unless told otherwise, which leaves nothing to search in a network of 16,
    32 and 64 channels."""
    import modelopt.torch.prune as mtp
    from modelopt.torch.prune.fastnas import FastNASConfig

    config = FastNASConfig().model_dump()
    for kinds in config.values():
        kinds["*"].update((name, divisor) for name in ("channel_divisor", "feature_divisor") if name in kinds["*"])
    loader = [images for images, _ in data.train.batches(recipe.batch_size, train=True, limit=SCORED)]
    spent = {"images": 0, "judged": 0}

    def score(small: nn.Module) -> float:
        spent["judged"] += len(data.val)
        return float(evaluate(small, data.val).value or 0)

    small, _ = mtp.prune(
        model, mode=[("fastnas", config)], constraints={"flops": f"{macs:.0%}"},
        dummy_input=torch.zeros(1, *data.input_shape, device=data.device),
        config={"data_loader": loader, "collect_func": lambda images: images, "score_func": score,
                "checkpoint": str(folder / "fastnas.pth")},
    )  # fmt: skip
    return small, spent
