"""SIGTERM, as schedulers send it, ends a command like Ctrl-C: no worker is left, one line says how to go on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.test_interrupted import SEARCH, TINY, results, wait_for
from tests.forked import Parent, children
from tests.search.test_executors import _alive

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def start(*arguments, **options) -> subprocess.Popen:
    command = [sys.executable, "-m", "sentei.cli", *map(str, arguments)]
    return Parent(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, **options)


PHASES = {
    "train": (signal.SIGINT, ("train", "digitsnet", "--data", "digits", "--epochs", 60, "--batch-size", 32)),
    "finetune": (signal.SIGTERM, ("prune", "BASE", *TINY, "--epochs", 80)),
    "evaluation": (signal.SIGTERM, ("prune", "BASE", *SEARCH, 200, "--executor", "process", "--processes", 2)),
}


@pytest.mark.parametrize("phase", PHASES)
def test_a_signal_ends_everything_and_says_how_to_go_on(phase, trained, tmp_path):
    number, command = PHASES[phase]
    process = start(*(trained if word == "BASE" else word for word in command), "--run", tmp_path / "x y")
    wait_for(tmp_path / "x y/journal.jsonl", f'"{phase}"', process)
    workers = children(process.pid)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    word, code = ("Terminated", 143) if number == signal.SIGTERM else ("Interrupted", 130)
    assert process.returncode == code, said
    assert said == f"\n{word}. Go on with:  sentei resume '{tmp_path}/x y'\n"
    assert bool(workers) == (phase == "evaluation")
    for _ in range(100):
        if not any(map(_alive, workers)):
            break
        time.sleep(0.05)
    assert not any(map(_alive, workers))
    assert {p.name for p in (tmp_path / "x y").iterdir()} >= {"config.yaml", "journal.jsonl"}
    assert not list((tmp_path / "x y").glob(".*"))


def test_a_signal_to_the_whole_group_leaves_a_run_that_ends_in_the_same_bits(trained, tmp_path, sentei):
    """A scheduler stops every process of a job, workers too."""
    search = ("prune", trained, *SEARCH, 12, "--executor", "process", "--processes", 2)
    assert sentei(*search, "--run", tmp_path / "whole").code == 0
    process = start(*search, "--run", tmp_path / "x", start_new_session=True)
    wait_for(tmp_path / "x/journal.jsonl", '"number": 3', process)
    os.killpg(process.pid, signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143
    assert "its worker died" not in (tmp_path / "x/journal.jsonl").read_text()
    assert sentei(*search, "--run", tmp_path / "x").code == 0
    assert results(tmp_path / "x") == results(tmp_path / "whole")


def test_a_signal_before_anything_was_stored_leaves_nothing(tmp_path):
    """The data come from a function that takes its time."""
    (tmp_path / "slow.py").write_text(
        "import pathlib, time\ndef images():\n    pathlib.Path('reading').touch()\n    time.sleep(60)\n"
    )
    process = start("train", "digitsnet", "--data", "slow.py:images", "--run", "x", cwd=tmp_path)
    wait_for_file(tmp_path / "reading", process)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143
    assert said == "\nTerminated. Nothing was stored in x yet; start again with the same command.\n"
    assert not (tmp_path / "x").exists()


def wait_for_file(file: Path, process: subprocess.Popen) -> None:
    for _ in range(6000):
        if file.exists():
            return
        assert process.poll() is None
        time.sleep(0.01)
    raise AssertionError(f"{file} never came")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_the_interpreter_ends_changes_nothing(number, tmp_path):
    """All is stored and told by then; the end is made to last."""
    script = (
        "import atexit, sys, sentei_main\n"
        "atexit.register(lambda: (print('ending', flush=True), __import__('time').sleep(1)))\n"
        "sys.exit(sentei_main.main())"
    )
    process = subprocess.Popen([sys.executable, "-c", script, "--version"], stderr=subprocess.PIPE, text=True,
                               stdout=subprocess.PIPE, env=ENVIRONMENT, cwd=tmp_path)  # fmt: skip
    assert process.stdout.readline().startswith("sentei ")
    assert process.stdout.readline() == "ending\n"
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (0, "")


def test_ctrl_c_while_everything_is_imported_shows_no_traceback(tmp_path):
    script = "import sys, time; time.sleep(0.5); import sentei_main; sys.exit(sentei_main.main())"
    for wait in (0.8, 1.2, 1.8):
        process = subprocess.Popen([sys.executable, "-c", script, "--help"], stderr=subprocess.PIPE, text=True,
                                   stdout=subprocess.DEVNULL, env=ENVIRONMENT, cwd=tmp_path)  # fmt: skip
        time.sleep(wait)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
        assert "Traceback" not in said
        assert process.returncode in (0, 130)
