"""What makes a structure good, measured on validation data; test data never come here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from sentei.data import Data
from sentei.data.held import held
from sentei.errors import ConfigError, DataError
from sentei.graph import ChannelGraph
from sentei.plan import Plan
from sentei.search.inherit import Inherit, Inheritance
from sentei.surgery.cut import cut
from sentei.tasks import Task
from sentei.train import FitResult, Recipe, fit, recalibrate
from sentei.train.evaluate import CLASSIFICATION, measured
from sentei.train.optimizers import Factory, factory_name
from sentei.train.passes import STATISTICS, at_once
from sentei.train.recipe import bf16_supported
from sentei.train.reconstruct import Reconstruction

CALIBRATION = 32
"""Training images, below which BatchNorm statistics say nothing."""


class Evaluator(Protocol):
    """Widths in, fitness out. It is pickled once for each worker, with all the data that it needs.

    To plug in another one (a supernet, say), write these two members.
    """

    @property
    def settings(self) -> Mapping[str, Any]:
        """Everything the fitness depends on apart from model and data, as plain values: a part of the cache key."""
        ...

    def __call__(self, widths: np.ndarray, share: float = 1.0) -> dict[str, float]:
        """Measure the structure with these widths, int64 [n_groups] in the order of `graph.groups`.

        The result has "fitness" (higher is better), "images" where samples went through training steps, and whatever
        else is worth a note. `share` is the share of the full
        effort, below 1 in the early rounds of successive halving; ignore it where effort cannot be shared. The result
        must depend on the arguments alone. A SenteiError marks the structure as failed.
        """
        ...


class Recalibrate:
    """Inherit weights, recompute the BatchNorm statistics, measure: seconds a structure.

    Li et al. 2020 (EagleEye, arXiv 2007.02491) found this closer to the final accuracy than the accuracy right after
    the cut. The images for both steps are the same for every structure, and kept in memory if they fit. `bf16` computes
    in bfloat16; None does where the hardware has it. Passes have as many images as `memory_mb` (1,024) holds.
    """

    def __init__(
        self,
        model: nn.Module,
        graph: ChannelGraph,
        data: Data,
        *,
        task: Task = CLASSIFICATION,
        inherit: Inherit = "l1",
        calibration_images: int = 1000,
        validation_images: int = 2000,
        bf16: bool | None = None,
        memory_mb: int | None = None,
        seed: int = 0,
    ) -> None:
        check_validation(data, task, validation_images)
        if calibration_images < CALIBRATION:
            raise ConfigError(f"calibration_images is {calibration_images}; BatchNorm needs {CALIBRATION} or more")
        self.bf16 = bf16_supported(data.device) if bf16 is None else bf16
        self.settings = {
            "fitness": "recalibrate",
            "inherit": inherit,
            "calibration_images": calibration_images,
            "validation_images": validation_images,
            "bf16": self.bf16,
            "seed": seed,
        }
        self.model, self.graph, self.task = model, graph, task
        self.inheritance = Inheritance(model, graph, inherit, seed)
        batch = at_once(model, data.train, 250, task, memory_mb, STATISTICS)
        self.calibration = held(data.train, batch, train=True, seed=seed, limit=calibration_images)
        self.validation = held(data.val, at_once(model, data.val, 500, task, memory_mb), limit=validation_images)
        self.device = data.device

    def network(self, widths: np.ndarray) -> nn.Module:
        """The structure with inherited weights and fresh statistics."""
        small = self.cut(self.inheritance.plan(widths)).to(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            recalibrate(small, self.calibration, self.task)
        return small

    def cut(self, plan: Plan) -> nn.Module:
        return cut(self.model, self.graph, plan)

    def __call__(self, widths: np.ndarray, share: float = 1.0) -> dict[str, float]:
        found = measured(self.network(widths), self.validation, self.task, self.bf16)
        return {"fitness": self.task.fitness(found.value)}


class Reconstruct(Recalibrate):
    """The same with weights that make up for the inputs that were cut (`Reconstruction`), from the calibration images.

    It is for judging alone: what is cut in the end has inherited weights, unless it is to be reconstructed too.
    """

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.settings = {**self.settings, "fitness": "reconstruct"}
        self.reconstruction = Reconstruction(self.model, self.graph, self.calibration, self.task)

    def cut(self, plan: Plan) -> nn.Module:
        small = super().cut(plan)
        self.reconstruction.apply(small, plan)
        return small


MEASURES: dict[str, type[Recalibrate]] = {"recalibrate": Recalibrate, "reconstruct": Reconstruct}
"""Those without training, by the name of the fitness."""


class Train:
    """Inherit weights, train for some epochs, measure: the fitness of the ABCPruner paper.

    A structure is always trained in the same way, so that `network` can make the best one's weights again.
    """

    def __init__(
        self,
        model: nn.Module,
        graph: ChannelGraph,
        data: Data,
        recipe: Recipe,
        *,
        task: Task = CLASSIFICATION,
        inherit: Inherit = "random",
        seed: int = 0,
        optimizer: Factory | None = None,
    ) -> None:
        check_validation(data, task)
        factory = {} if optimizer is None else {"optimizer": factory_name(optimizer)}
        self.settings = {"fitness": "train", "inherit": inherit, "seed": seed, "recipe": recipe.to_dict(), **factory}
        self.model, self.graph, self.recipe, self.task, self.optimizer = model, graph, recipe, task, optimizer
        self.data = replace(data, test=data.val)
        self.inheritance = Inheritance(model, graph, inherit, seed)

    def network(self, widths: np.ndarray, share: float = 1.0) -> nn.Module:
        """The structure after its training."""
        return self.trained(widths, share).model

    def __call__(self, widths: np.ndarray, share: float = 1.0) -> dict[str, float]:
        found = self.trained(widths, share)
        assert found.value is not None
        return {"fitness": self.task.fitness(found.value), "images": found.images}

    def trained(self, widths: np.ndarray, share: float = 1.0) -> FitResult:
        """The training itself: the network, its metric and the samples that it took."""
        small = cut(self.model, self.graph, self.inheritance.plan(widths))
        recipe = replace(self.recipe, epochs=max(1, round(self.recipe.epochs * share)))
        return fit(small, self.data, recipe, task=self.task, optimizer=self.optimizer, progress=False)


def check_validation(data: Data, task: Task, images: int | None = None) -> None:
    """DataError if the validation split, or the part of it that is used, is too small to choose by."""
    needed = task.needed(data)
    classes = f" for {data.num_classes} classes" if data.num_classes else ""
    why = f"a search needs {needed} or more{classes}, because it chooses by their {task.metric}"
    if len(data.val) < needed:
        raise DataError(f"The validation split has {len(data.val)} images; {why}. Load the data with a larger val.")
    if images is not None and images < needed:
        raise DataError(f"{images} validation images are asked for; {why}.")
