"""Runs of every kind that a report shows, and a browser to look at pages with."""

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sentei.cli import main
from tests.cli.conftest import sentei  # noqa: F401  the command line in this process

TINY = ("--batch-size", 64, "--limit", 128, "--score-images", 64)
SEARCH = ("--evaluations", 12, "--calibration-images", 64, "--validation-images", 60)
METHODS = {
    "l1-s0": ("--method", "l1", "--macs", 0.5, "--epochs", 3),
    "l1-s1": ("--method", "l1", "--macs", 0.5, "--epochs", 3, "--seed", 1),
    "l1-small": ("--method", "l1", "--macs", 0.3, "--epochs", 3),
    "taylor": ("--method", "taylor", "--macs", 0.4, "--steps", 2, "--step-epochs", 2, "--epochs", 2),
    "abc": ("--method", "abc", "--round-to", 1, *SEARCH, "--epochs", 1),
    "ista": ("--method", "ista", "--sparse-epochs", 3, "--epochs", 1),
    "stagewise": ("--method", "stagewise", "--supernet-epochs", 2, "--table-images", 60, "--candidates", 4, *SEARCH,
                  "--epochs", 2),
}  # fmt: skip


@pytest.fixture(scope="session")
def runs(tmp_path_factory) -> Path:
    """A folder with a trained network and a pruned one by each kind of method. Tests only read it."""
    home = tmp_path_factory.mktemp("runs")
    quick("train", "digitsnet", "--data", "digits", "--epochs", 3, "--run", home / "base", *TINY[:4])
    for name, options in METHODS.items():
        quick("prune", home / "base", "--run", home / name, *TINY, *options)
    return home


def quick(*arguments: object) -> None:
    assert main([str(a) for a in arguments]) == 0


@pytest.fixture
def copied(runs, tmp_path) -> Callable[[str], Path]:
    """A copy of one of the runs, to be changed."""

    def copy(name: str) -> Path:
        return Path(shutil.copytree(runs / name, tmp_path / "copies" / name))

    return copy


ARGUMENTS = ("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
             "--disable-component-update", "--disable-sync")  # fmt: skip


def runs_here(name: str) -> bool:
    """Whether a browser is there, and not only a script that tells how to install it."""
    path = shutil.which(name)
    return path is not None and subprocess.run([path, "--version"], capture_output=True).returncode == 0


@pytest.fixture(scope="session")
def browser() -> Iterator[object]:
    """Headless Chromium; tests that need it are skipped where there is none."""
    found = next(filter(runs_here, ("chromium", "chromium-browser", "google-chrome")), None)
    if found is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    api = pytest.importorskip("playwright.sync_api", reason="playwright is missing: pip install 'sentei[dev]'")
    with api.sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=shutil.which(found), args=list(ARGUMENTS))
        yield chromium
        chromium.close()
