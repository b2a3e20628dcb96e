"""`sentei launch` as a user runs it: processes with a folder of their own; slow tests start the interpreter."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sentei.cli.launch import split
from sentei.runfiles import has_progress, is_finished, read_summary, write_config
from tests.forked import Parent, children
from tests.search.test_executors import _alive, _wait_for

TRAIN = ("train", "digitsnet", "--data", "digits", "--device", "cpu", "--batch-size", "60")
TWO = ("launch", "--nproc-per-node", "2")
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2] / "src")}


def started(folder: Path, *words: str, popen=Parent) -> subprocess.Popen[str]:
    command, pipe = [sys.executable, "-m", "sentei.cli", *words], subprocess.PIPE
    return popen(command, cwd=folder, env=ENV, stdout=pipe, stderr=pipe, text=True, start_new_session=True)


def ended(process: subprocess.Popen[str], seconds: int = 180) -> tuple[int, str, str]:
    try:
        out, err = process.communicate(timeout=seconds)
    finally:
        process.kill()  # and the ranks with it
    return process.returncode, out, err


def ranks(agent: int) -> list[int]:
    """The processes that an agent has started, in the order of their ranks."""
    return children(agent)


@pytest.mark.parametrize("popen", [Parent, pytest.param(subprocess.Popen, marks=pytest.mark.slow)])
def test_two_processes_train_and_speak_once(popen, tmp_path):
    words = (*TWO, *TRAIN, "--epochs", "2", "--run", "runs/a")
    code, out, err = ended(started(tmp_path, *words, popen=popen))
    assert (code, err) == (0, "")
    assert out.count("train 2/2") == 1
    assert out.count("Run directory: runs/a") == 1
    summary = read_summary(tmp_path / "runs/a")
    assert summary["images_trained"]["train"] == 2 * 1200
    assert summary["accuracy"] > 0.5


@pytest.mark.slow
def test_torchrun_itself_starts_a_run_too(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--"]
    given = ["-m", "sentei.cli", *TRAIN, "--epochs", "1", "--limit", "120", "--run", "runs/b", "--quiet"]
    done = subprocess.run([*command, *given], cwd=tmp_path, env=ENV, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    assert is_finished(tmp_path / "runs/b")


def test_what_is_wrong_is_said_once_and_before_anything_starts(tmp_path, sentei):
    assert "takes a command behind its options: train, prune, resume; none is given" in sentei(*TWO).err
    assert "got compare" in sentei(*TWO, "compare", "x").err
    assert "nproc_per_node is 0; expected 1 or more" in sentei("launch", "--nproc-per-node", 0, *TRAIN).err
    assert "nnodes is '2:1'" in sentei("launch", "--nnodes", "2:1", *TRAIN).err
    assert "--rdzv-endpoint HOST:PORT" in sentei("launch", "--nnodes", 2, *TRAIN).err
    assert sentei(*TWO, "train", "--nonsense").code == 2
    assert "there is no run directory runs/none" in sentei(*TWO, "prune", "runs/none", "--method", "l1").err
    assert "runs/none is not a run directory" in sentei(*TWO, "resume", "runs/none").err
    write_config(Path("runs/done"), {"command": None, "resolved": {}})
    Path("runs/done/summary.json").touch()
    assert "runs/done holds a finished run" in sentei(*TWO, *TRAIN, "--run", "runs/done").err
    assert "--nproc-per-node" in sentei("launch", "--help").out


def test_an_error_of_all_is_told_once(tmp_path):
    code, out, err = ended(started(tmp_path, *TWO, "train", "digitsnet", "--data", "imagefolder:nowhere"))
    assert code == 2
    assert err.count("Error:") == 1
    assert "There is no folder nowhere/train" in err


@pytest.mark.parametrize(
    ("words", "own", "behind"),
    [
        (["launch", "--nproc-per-node", "2", "train", "m"], 3, 2),
        (["launch", "--nproc-per-node=2", "train", "m"], 2, 2),
        (["launch", "train", "--x"], 1, 2),
        (["launch", "--help"], 2, 0),
        (["train", "m"], 2, 0),
    ],
)
def test_the_command_stands_behind_the_options(words, own, behind):
    assert split(words) == (words[:own], words[own : own + behind])


LONG = (*TRAIN, "--epochs", "25", "--run", "runs/a")


def killed(folder: Path, words, which: int, after: float) -> tuple[int, str, str]:
    """Run a command and kill the process of a rank some time after it has begun."""
    process = started(folder, *words)
    while not has_progress(folder / "runs/a") and process.poll() is None:
        time.sleep(0.05)
    time.sleep(after)
    if process.poll() is None and which < len(found := ranks(process.pid)):
        os.kill(found[which], signal.SIGKILL)
    return ended(process)


def test_a_killed_process_ends_the_run_and_the_run_goes_on(tmp_path):
    words = (*TRAIN, "--epochs", "12", "--run", "runs/a")
    code, out, err = killed(tmp_path, (*TWO, *words), which=1, after=0)
    assert code == 128 + signal.SIGKILL
    assert "Process 1 was ended by SIGKILL. What was stored is kept. Go on with:" in err
    assert "mended" not in err
    assert "sentei launch --nproc-per-node 2 resume runs/a" in err
    assert not is_finished(tmp_path / "runs/a")
    code, out, err = ended(started(tmp_path, "resume", "runs/a"))  # in one
    assert (code, err) == (0, "")
    assert "Going on with" in out or "train 12/12" in out
    assert read_summary(tmp_path / "runs/a")["images_trained"]["train"] == 12 * 1200


@pytest.mark.slow
def test_twenty_kills_at_random_moments_lose_nothing(tmp_path):
    draw = random.Random(0)
    ended(started(tmp_path, *TWO, *TRAIN, "--epochs", "3", "--run", "runs/base"))
    words = ("prune", "runs/base", "--method", "taylor", "--steps", "3", "--epochs", "60", "--run", "runs/a")
    for _ in range(20):
        again = ("resume", "runs/a") if has_progress(tmp_path / "runs/a") else words
        code, _, err = killed(tmp_path, (*TWO, *again), draw.choice((0, 1)), draw.uniform(0, 6))
        if code == 0:
            break
        assert code == 128 + signal.SIGKILL, err
    code, _, err = ended(started(tmp_path, *TWO, "resume", "runs/a"), 600)
    assert code == 0, err
    assert read_summary(tmp_path / "runs/a")["check"]["max_error"] < 1e-4


@pytest.mark.slow
def test_the_processes_end_with_their_agent(tmp_path):
    process = started(tmp_path, *TWO, *LONG)
    while not has_progress(tmp_path / "runs/a"):
        time.sleep(0.05)
    first, second = ranks(process.pid)
    process.kill()
    process.communicate(timeout=60)  # they hold its streams
    assert _wait_for(lambda: not any(map(_alive, (first, second))), seconds=30)


@pytest.mark.slow
def test_processes_are_started_anew_as_often_as_they_die(tmp_path):
    process = started(tmp_path, "launch", "--nproc-per-node", "2", "--max-restarts", "3", *LONG)
    _wait_for(lambda: has_progress(tmp_path / "runs/a"), seconds=60)
    for which in (1, 0, 1):
        time.sleep(1)
        os.kill((before := ranks(process.pid))[which], signal.SIGKILL)
        _wait_for(lambda dead=before: len(now := ranks(process.pid)) == 2 and not {*now} & {*dead}, seconds=60)
    code, out, err = ended(process)
    assert code == 0, err
    assert "of all processes, as one has died. Going on with the half-finished run" in out
    assert 1 <= out.count("Going on with the half-finished run") <= 3  # a process may die before it can say so
    assert is_finished(tmp_path / "runs/a")


@pytest.mark.slow
def test_a_process_that_hangs_ends_the_run(tmp_path):
    process = started(tmp_path, "launch", "--nproc-per-node", "2", "--timeout", "0.2", *LONG)
    while not has_progress(tmp_path / "runs/a"):
        time.sleep(0.05)
    time.sleep(1)
    os.kill(ranks(process.pid)[1], signal.SIGSTOP)
    code, _, err = ended(process, 120)
    assert code != 0
    assert "has lost the others" in err
    assert has_progress(tmp_path / "runs/a")
