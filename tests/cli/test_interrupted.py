"""Runs that are killed or interrupted go on, and end as if nothing had happened."""

import os
import re
import shutil
import signal
import sys
import time
from pathlib import Path
from subprocess import DEVNULL

import pytest
import torch

from sentei.cli import main
from sentei.train.journal import Journal
from tests.cli.conftest import QUICK, Killed
from tests.forked import Parent, Popen

RESULTS = ("model.safetensors", "plan.json")
TINY = ("--epochs", 2, "--batch-size", 64, "--limit", 128, "--score-images", 64, "--method", "l1", "--steps", 2)


def results(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in RESULTS if (folder / name).exists()]


SEARCH = ("--method", "abc", "--round-to", 1, *TINY[:-4], "--evaluations")
COMMANDS = {
    "train": ("train", "digitsnet", "--data", "digits", *QUICK),
    "prune": ("prune", "TRAINED", *TINY),
    "search": ("prune", "TRAINED", *SEARCH, 4),
}


STRIDES = {"train": 5, "prune": 5, "search": 7}
"""Odd, so that deaths before and after a write take turns."""


@pytest.mark.parametrize("name", COMMANDS)
def test_death_at_a_write_changes_nothing(name, sentei, dying, trained, tmp_path):
    dies_at_writes(name, STRIDES[name], sentei, dying, trained, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_death_at_every_write_changes_nothing(name, sentei, dying, trained, tmp_path):
    dies_at_writes(name, 1, sentei, dying, trained, tmp_path)


def dies_at_writes(name, stride, sentei, dying, trained, tmp_path):
    verb, *model = (trained if word == "TRAINED" else word for word in COMMANDS[name])
    assert sentei(verb, *model, "--run", "whole").code == 0
    expected = results(tmp_path / "whole")
    for writes in range(0, 60, stride):
        folder = tmp_path / f"dies{writes}"
        dying(writes)
        try:
            sentei(verb, *model, "--run", folder)
        except Killed:
            dying(-1)
            if writes == 0:
                refused = sentei("resume", folder)
                assert refused.code == 2
                assert "Give the command that was to make it once more" in refused.err
            resume = writes // stride % 4 > 1 and ("resume", folder)
            resumed = sentei(*(resume or (verb, *model, "--run", folder)))
            assert resumed.code == 0, (writes, resumed.err)
            assert results(folder) == expected, writes
            assert not list(folder.glob("*.ckpt"))
        else:
            break
    assert writes > 5
    assert results(folder) == expected


def test_kill_9_of_a_real_process(trained, tmp_path, capsys):
    arguments = [str(a) for a in ("prune", trained, *TINY, "--epochs", 8)]
    assert main([*arguments, "--run", str(tmp_path / "whole")]) == 0
    folder = tmp_path / "killed"
    command = [sys.executable, "-m", "sentei.cli"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    first = Popen([*command, *arguments, "--run", folder], env=environment, stdout=DEVNULL)
    wait_for(folder / "journal.jsonl", '"name": "finetune"', first)
    first.send_signal(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    assert not (folder / "summary.json").exists()

    assert main([*arguments, "--lr", "0.5", "--run", str(folder)]) == 2
    assert "half-finished run with other settings: recipe.lr is 0.02 there, 0.5 now" in capsys.readouterr().err
    assert main([*arguments, "--run", str(folder)]) == 0
    assert f"Going on with the half-finished run in {folder}" in capsys.readouterr().out
    assert results(folder) == results(tmp_path / "whole")


def test_kill_9_in_the_middle_of_a_search(trained, tmp_path):
    """The journal of a search that was killed and resumed equals that of one that was not."""
    arguments = [str(a) for a in ("prune", trained, *SEARCH, 12)]
    assert main([*arguments, "--run", str(tmp_path / "whole")]) == 0
    folder, workers = tmp_path / "killed", ("--executor", "process", "--processes", "2")
    command = [sys.executable, "-m", "sentei.cli", *arguments, *workers, "--run", folder]
    first = Parent(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=DEVNULL)
    wait_for(folder / "journal.jsonl", '"number": 4', first)
    first.send_signal(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    assert main(["resume", str(folder)]) == 0
    assert results(folder) == results(tmp_path / "whole")
    assert evaluations(folder) == evaluations(tmp_path / "whole")


def evaluations(folder: Path) -> list[dict]:
    """What the journal says about the search, without the clock, in the order of asking: workers end in any order."""
    records = [r for r in Journal(folder / "journal.jsonl").records() if r["event"] == "evaluation"]
    return sorted(({k: v for k, v in r.items() if k != "seconds"} for r in records), key=lambda r: r["number"])


def test_ctrl_c_in_a_search_says_how_to_go_on(sentei, trained, monkeypatch):
    from sentei.search.evaluators import Recalibrate

    original, calls = Recalibrate.__call__, []

    def interrupted(self, *given):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return original(self, *given)

    search = (*SEARCH, 8)
    with monkeypatch.context() as patch:
        patch.setattr(Recalibrate, "__call__", interrupted)
        stopped = sentei("prune", trained, "--run", "x", *search)
        assert stopped.code == 130
        assert "Go on with:  sentei resume x" in stopped.err
        done = sentei("resume", "x")
    assert done.code == 0
    assert len(calls) == 5 + 4
    assert "search: cycle 0 sources: best" in done.out
    assert "4 known" in done.out


def test_two_processes_cannot_work_on_one_run(trained, tmp_path, capsys):
    folder = tmp_path / "busy"
    arguments = [str(a) for a in ("prune", trained, *TINY, "--epochs", 50, "--run", folder)]
    first = Popen(
        [sys.executable, "-m", "sentei.cli", *arguments], env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=DEVNULL
    )
    try:
        wait_for(folder / "journal.jsonl", '"name": "finetune"', first)
        assert main(["resume", str(folder)]) == 2
        assert f"another process is working in {folder}" in capsys.readouterr().err
    finally:
        first.kill()
        first.wait()
    assert main(["resume", str(folder)]) == 0
    assert not (folder / ".lock").exists()


def wait_for(file: Path, text: str, process: Popen) -> None:
    for _ in range(6000):
        if file.exists() and text in file.read_text():
            return
        assert process.poll() is None, "the process ended before it could be killed"
        time.sleep(0.01)
    raise AssertionError(f"{text} never came")


def test_ctrl_c_says_how_to_go_on(sentei, trained, tmp_path, monkeypatch):
    from sentei.train import training

    original = training.Training.save

    def interrupted(self, record):
        original(self, record)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training.Training, "save", interrupted)
        stopped = sentei("prune", trained, "--run", "x", *TINY)
    assert stopped.code == 130
    assert "Go on with:  sentei resume x" in stopped.err
    assert "not finished. Go on with:  sentei resume x" in sentei("evaluate", "x").err
    assert sentei("resume", "x").code == 0
    again = sentei("resume", "x")
    assert again.code == 0
    assert "x is finished already" in again.out
    assert "test accuracy" in again.out


def test_ctrl_c_before_anything_was_stored(sentei, monkeypatch):
    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("sentei.cli.train.fit", interrupted)
    stopped = sentei("train", "digitsnet", "--data", "digits", "--run", "x")
    assert stopped.code == 130
    assert "start again with the same command" in stopped.err
    monkeypatch.undo()


def test_resume_works_from_another_folder_and_with_the_run_moved(sentei, trained, tmp_path, dying, monkeypatch):
    dying(5)
    with pytest.raises(Killed):
        sentei("prune", trained, "--run", "x", *TINY)
    dying(-1)
    (tmp_path / "elsewhere").mkdir()
    shutil.move(tmp_path / "x", tmp_path / "elsewhere/y")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert sentei("resume", "y").code == 0
    assert sentei("prune", trained, "--run", "z", *TINY).code == 0
    assert results(tmp_path / "elsewhere/y") == results(tmp_path / "elsewhere/z")


def test_a_run_whose_data_changed_is_not_resumed(sentei, dying, tmp_path):
    """The same command on other data would end in a mixture of two runs."""
    source = (
        "import torch\n"
        "def images():\n"
        "    x, y = torch.rand(SIZE, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(SIZE) % 10\n"
        "    return x, y, x, y\n"
    )
    (tmp_path / "mine.py").write_text(source.replace("SIZE", "200"))
    dying(4)
    with pytest.raises(Killed):
        sentei("train", "digitsnet", "--data", "mine.py:images", "--run", "x", "--epochs", 3)
    dying(-1)
    (tmp_path / "mine.py").write_text(source.replace("SIZE", "300"))
    refused = sentei("resume", "x", "--trust")
    assert refused.code == 2
    assert "other settings: data.train is 180 there, 270 now" in refused.err


def test_a_changed_fitness_is_found_and_the_search_goes_on(trained, tmp_path, sentei, dying, caplog):
    command = ("prune", trained, *SEARCH, 8)
    assert sentei(*command, "--run", "whole").code == 0
    dying(7)
    with pytest.raises(Killed):
        sentei(*command, "--run", "x")
    dying(-1)
    journal = tmp_path / "x/journal.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    lines[2] = re.sub(r'"fitness": [\d.]+', '"fitness": 0.999', lines[2])
    journal.write_text("".join(lines))
    done = sentei("resume", "x")
    assert done.code == 0, done.err
    assert "line 3 was altered" in caplog.text
    assert results(tmp_path / "x") == results(tmp_path / "whole")
    assert "99.90%" not in done.out


@pytest.fixture
def two_threads(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    def use(number):
        torch.set_num_threads(number)
        monkeypatch.setattr("sentei.cli.set_threads", lambda: number)

    yield use
    torch.set_num_threads(1)


def test_a_run_goes_on_with_the_threads_it_began_with(trained, tmp_path, sentei, dying, two_threads, monkeypatch):
    assert sentei("prune", trained, "--run", "whole", *TINY).code == 0
    dying(5)
    with pytest.raises(Killed):
        sentei("prune", trained, "--run", "x", *TINY)
    dying(-1)
    two_threads(2)
    with monkeypatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "2")
        refused = sentei("resume", "x")
        assert refused.code == 2
        assert "other settings: threads is 1 there, 2 now" in refused.err
        assert "set OMP_NUM_THREADS=1" in refused.err
    done = sentei("resume", "x")
    assert done.code == 0, done.err
    assert "Threads: 1 instead of 2, as when the run began" in done.out
    assert results(tmp_path / "x") == results(tmp_path / "whole")
