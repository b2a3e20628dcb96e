"""A task that resembles none of the built-in ones goes through every method, and through kill -9."""

import os
import signal
import sys
from pathlib import Path

import pytest
import torch

import sentei
from sentei.errors import ConfigError
from tests import forked
from tests.tasks.masked_regression import METHODS, Depth, data, pruned, trained

ROOT = Path(__file__).parents[2]
DEATHS = {"l1": 3, "taylor": 3, "abc": 3, "evolution": 3, "stagewise": 4, "ista": 4}
"""Writes to the disk before the process dies: in the middle of each method."""


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return trained()


@pytest.mark.parametrize("method", METHODS)
def test_every_method_prunes_for_a_task_of_ones_own_and_survives_a_kill(model, method, tmp_path):
    run = tmp_path / method
    command = [sys.executable, "-m", "tests.tasks.masked_regression", method, str(run), str(DEATHS[method])]
    died = forked.run(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert died.returncode == -signal.SIGKILL
    assert list(run.glob("*.ckpt"))
    resumed, whole = pruned(model, method, run), pruned(model, method)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name
    assert resumed.summary["metric"] == {"name": "rmse", "lower_is_better": True, "percent": False}
    assert resumed.summary["pruned"]["macs"] <= 0.6 * resumed.summary["base"]["macs"]
    # Answering the mean depth has an error of 0.82.
    assert resumed.summary["base"]["rmse"] < resumed.summary["pruned"]["rmse"] < 0.7


def test_a_task_without_imitation_refuses_to_distil(model, tmp_path):
    with pytest.raises(ConfigError, match="does not say how to imitate"):
        sentei.prune(model, data(), task=Depth(), method="l1", distill=True, run_dir=tmp_path / "x")
    assert not (tmp_path / "x").exists()
