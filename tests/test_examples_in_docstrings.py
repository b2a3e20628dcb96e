"""The examples in the docstrings are true."""

import doctest
import importlib

import pytest
import torch

MODULES = [
    *(f"sentei.data.{name}" for name in ("batches", "dataset", "load", "splits")),
    *(f"sentei.comparison.{name}" for name in ("planned", "results", "statistics", "tables")),
    "sentei.cli.export",
    "sentei.deploy.axes",
    "sentei.tasks.classification",
    "sentei.train.recipe",
    *(f"sentei.report.{name}" for name in ("figures", "layers", "ticks")),
    *(f"sentei.speed.{name}" for name in ("survey", "timing")),
    *(f"sentei.models.{name}" for name in ("reference", "resnet", "plain", "googlenet", "densenet", "mobilenet")),
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name), extraglobs={"torch": torch})
    assert result.attempted > 0
    assert result.failed == 0
