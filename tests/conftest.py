"""What every test shares: one torch thread, fixed seeds, the same hypothesis examples on every run."""

import os
import random
import subprocess

import hypothesis
import numpy as np
import pytest
import torch

from sentei.data import Data, load_data
from tests import amount  # noqa: F401  registers the profiles
from tests.forked import SUBPROCESS

# Readline tells child processes, hence parallel test workers, the size of the terminal: tests have none.
for name in ("COLUMNS", "LINES"):
    os.environ.pop(name, None)

# Small tensors gain nothing from threads, and runs on shared machines get steadier times.
torch.set_num_threads(1)

hypothesis.settings.load_profile("sentei")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The zoo comes first: a file is the work of one process, and a long one at the end would leave the other idle."""
    items.sort(key=lambda item: "zoo" not in item.path.parts)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  the global state is what third-party code draws from
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _forked_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The workers of searches come from the nursery; see tests/forked.py."""
    monkeypatch.setattr("sentei.search.children.subprocess", SUBPROCESS)


@pytest.fixture
def really_started(monkeypatch: pytest.MonkeyPatch, _forked_workers: None) -> None:
    """For tests of workers that are processes with an interpreter of their own."""
    monkeypatch.setattr("sentei.search.children.subprocess", subprocess)


@pytest.fixture(scope="session")
def data() -> Data:
    """scikit-learn's digits."""
    return load_data("digits")
