"""The run directory: nothing is touched without its lock, a kill leaves what can go on, the replaced can come back."""

import os
import signal
import sys
import textwrap
import time
from contextlib import suppress
from pathlib import Path
from subprocess import PIPE

import pytest

from sentei import runfiles
from sentei.errors import CheckpointError, ConfigError, SenteiError
from sentei.lock import LOCK, FolderLock
from sentei.runfiles import has_progress, is_finished, read_config, read_summary
from sentei.runs import JustFinished, Run
from tests.forked import Popen

CONFIG = {"task": "test", "recipe": {"lr": 0.1}}
METRIC = {"name": "accuracy", "lower_is_better": False, "percent": True}
SUMMARY = {"verb": "train", "task": "classification", "metric": METRIC, "model": "m", "data": "d", "accuracy": 0.5,
           "val_accuracy": None, "macs": 1, "params": 2,
           "data_description": {"val": 0, "test": 3, "content": "abc"}}  # fmt: skip


def begun(folder: Path, config=CONFIG) -> None:
    with Run.open(folder, config) as run:
        run.once("one", lambda: {"value": 1})


def finished(folder: Path) -> None:
    with Run.open(folder, CONFIG) as run:
        run.once("one", lambda: {"value": 1})
        run.finish(SUMMARY)


def names(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()} if folder.exists() else set()


def test_phases_are_done_once_and_a_finished_run_is_whole(tmp_path):
    calls = []
    for _ in range(2):
        with Run.open(tmp_path / "x", CONFIG) as run:
            assert run.once("one", lambda: calls.append(1) or {"value": 1})["value"] == 1
    assert calls == [1]
    with Run.open(tmp_path / "x", CONFIG) as run:
        run.finish(SUMMARY)
    assert names(tmp_path / "x") == {"config.yaml", "journal.jsonl", "summary.json"}
    assert read_summary(tmp_path / "x") == SUMMARY
    with pytest.raises(ConfigError, match="holds a finished run"):
        Run.open(tmp_path / "x", CONFIG)


def test_another_config_is_named_by_its_first_difference(tmp_path):
    begun(tmp_path / "x")
    with pytest.raises(ConfigError, match=r"other settings: recipe\.lr is 0\.1 there, 0\.2 now"):
        Run.open(tmp_path / "x", {"task": "test", "recipe": {"lr": 0.2}})
    begun(tmp_path / "y", {**CONFIG, "threads": 2})
    with pytest.raises(ConfigError, match=r"other settings: threads is 2 there, 1 now.*set OMP_NUM_THREADS=2"):
        Run.open(tmp_path / "y", {**CONFIG, "threads": 1})


HOLD = """
    import sys, time
    from sentei.lock import FolderLock
    from pathlib import Path
    lock = FolderLock(Path(sys.argv[1]))
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("overwrite", [False, True])
def test_nothing_of_a_run_is_touched_while_another_process_holds_it(tmp_path, overwrite):
    begun(tmp_path / "x")
    before = {p.name: p.read_bytes() for p in (tmp_path / "x").iterdir()}
    command = [sys.executable, "-c", textwrap.dedent(HOLD), str(tmp_path / "x")]
    holder = Popen(command, stdout=PIPE)
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(ConfigError, match="another process is working in"):
            Run.open(tmp_path / "x", CONFIG, overwrite=overwrite)
        now = {p.name: p.read_bytes() for p in (tmp_path / "x").iterdir() if p.name != LOCK}
        assert now == before
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    Run.open(tmp_path / "x", CONFIG, overwrite=overwrite).close()


def test_one_process_cannot_hold_a_run_twice(tmp_path):
    with Run.open(tmp_path / "x", CONFIG), pytest.raises(ConfigError, match="this process is already working"):
        Run.open(tmp_path / "x", CONFIG, overwrite=True)
    Run.open(tmp_path / "x", CONFIG).close()


def test_a_lock_file_that_was_removed_meanwhile_holds_nobody_off(tmp_path, monkeypatch):
    """Between opening the file and locking it, its holder may have removed it: then the lock is on nothing."""
    import sentei.lock as module

    original, removed = module._lock, []

    def slow(file):
        if not removed:
            removed.append((tmp_path / LOCK).unlink())
        original(file)

    monkeypatch.setattr(module, "_lock", slow)
    lock = FolderLock(tmp_path)
    assert (tmp_path / LOCK).stat().st_ino == os.fstat(lock.file).st_ino
    lock.release()


@pytest.mark.parametrize("left", [(".config.yaml.77.tmp",), (".lock",), (".lock", ".config.yaml.77.tmp"), ()])
def test_a_kill_before_the_first_file_was_whole_is_recovered_from(tmp_path, left):
    (tmp_path / "x").mkdir()
    for name in left:
        (tmp_path / "x" / name).write_text("sentei: 0")
    with pytest.raises(CheckpointError):
        read_config(tmp_path / "x")
    begun(tmp_path / "x")
    assert names(tmp_path / "x") == {"config.yaml", "journal.jsonl", "one.ckpt"}


def test_folders_of_others_are_left_alone(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x/thesis.tex").write_text("hello")
    (tmp_path / "f").write_text("hello")
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match="holds no sentei run"):
            Run.open(tmp_path / "x", CONFIG, overwrite=overwrite)
        with pytest.raises(ConfigError, match="is a file"):
            Run.open(tmp_path / "f", CONFIG, overwrite=overwrite)
    assert names(tmp_path / "x") == {"thesis.tex"}


@pytest.mark.parametrize("make", [begun, finished])
@pytest.mark.parametrize("end", [ConfigError, KeyboardInterrupt, RuntimeError])
def test_what_was_to_be_replaced_comes_back_if_nothing_was_stored(tmp_path, make, end):
    make(tmp_path / "x")
    (tmp_path / "x/curve/01").mkdir(parents=True)
    (tmp_path / "x/curve/01/plan.json").write_text("{}")
    before = {p: p.read_bytes() for p in (tmp_path / "x").rglob("*") if p.is_file()}
    run = Run.open(tmp_path / "x", {"task": "other"}, overwrite=True)
    assert names(tmp_path / "x") == {"config.yaml", "journal.jsonl", ".lock", ".replaced"}
    with pytest.raises(end), run:
        raise end
    assert {p: p.read_bytes() for p in (tmp_path / "x").rglob("*") if p.is_file()} == before


def test_what_is_replaced_goes_when_the_new_run_is_finished(tmp_path):
    begun(tmp_path / "x")
    with Run.open(tmp_path / "x", {"task": "other"}, overwrite=True) as run:
        run.once("two", lambda: {"value": 2})
    assert (tmp_path / "x/.replaced/one.ckpt").exists()
    with Run.open(tmp_path / "x", {"task": "other"}) as run:
        run.finish(SUMMARY)
    assert names(tmp_path / "x") == {"config.yaml", "journal.jsonl", "summary.json"}


class Killed(BaseException):
    pass


def test_a_kill_in_the_last_moment_leaves_only_the_cleaning_up(tmp_path, monkeypatch):
    def dying(folder):
        raise Killed

    monkeypatch.setattr("sentei.runs.clean_up", dying)
    run = Run.open(tmp_path / "x", CONFIG)
    run.once("one", lambda: {"value": 1})
    with pytest.raises(Killed):
        run.finish(SUMMARY)
    run.close()
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="other settings: recipe"):
        Run.open(tmp_path / "x", {**CONFIG, "recipe": {}})
    with pytest.raises(JustFinished):
        Run.open(tmp_path / "x", CONFIG)
    assert names(tmp_path / "x") == {"config.yaml", "journal.jsonl", "summary.json"}
    assert read_summary(tmp_path / "x") == SUMMARY
    with pytest.raises(ConfigError, match="holds a finished run"):
        Run.open(tmp_path / "x", CONFIG)


@pytest.mark.parametrize("moves", range(8))
def test_a_kill_in_the_middle_of_replacing_loses_nothing(tmp_path, monkeypatch, moves):
    """Whatever was moved when the process died, the old run is back, or the new one has begun."""
    finished(tmp_path / "x")
    summary = (tmp_path / "x/summary.json").read_bytes()
    original, left = os.replace, [moves]

    def replace(*args):
        if left[0] == 0:
            raise Killed
        left[0] -= 1
        return original(*args)

    monkeypatch.setattr(os, "replace", replace)
    with suppress(Killed):
        Run.open(tmp_path / "x", {"task": "other"}, overwrite=True).close()
    monkeypatch.undo()
    if not is_finished(tmp_path / "x"):
        with pytest.raises(ConfigError, match="finished run"):
            Run.open(tmp_path / "x", CONFIG)
    assert (tmp_path / "x/summary.json").read_bytes() == summary
    assert names(tmp_path / "x") <= {"config.yaml", "journal.jsonl", "summary.json", ".replaced"}
    with Run.open(tmp_path / "x", {"task": "other"}, overwrite=True) as run:
        run.once("two", lambda: {"value": 2})
    assert has_progress(tmp_path / "x")


def test_a_moved_place_is_noted_and_the_run_goes_on(tmp_path):
    with Run.open(tmp_path / "x", CONFIG, {"verb": "train", "data": "/old"}) as run:
        run.once("one", lambda: {"value": 1})
    Run.open(tmp_path / "x", CONFIG, {"verb": "train", "data": "/new"}).close()
    assert read_config(tmp_path / "x")["command"]["data"] == "/new"


def test_a_read_only_folder_is_a_clear_error(tmp_path, monkeypatch):
    (tmp_path / "x").mkdir()
    real = os.open

    def refuse(path, *args, **options):
        if str(path).endswith(LOCK):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *args, **options)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(CheckpointError, match="Could not write into .*x: Permission denied"):
        Run.open(tmp_path / "x", CONFIG)


def test_a_killed_process_leaves_no_lock_behind(tmp_path):
    command = [sys.executable, "-c", textwrap.dedent(HOLD), str(tmp_path / "x")]
    holder = Popen(command, stdout=PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    holder.stdout.close()
    end = time.monotonic() + 10
    while True:
        try:
            begun(tmp_path / "x")
            break
        except SenteiError:
            assert time.monotonic() < end
            time.sleep(0.05)


def test_the_files_of_a_run_are_all_known(tmp_path):
    """What a run writes is what `clear` removes, so that an overwritten one leaves nothing foreign."""
    begun(tmp_path / "x")
    for name in runfiles.OURS:
        (tmp_path / "x" / name).touch()
    runfiles.clear(tmp_path / "x")
    assert names(tmp_path / "x") == set()


def test_what_a_kill_left_among_the_networks_on_the_way_goes(tmp_path):
    begun(tmp_path / "x")
    (tmp_path / "x/curve/01").mkdir(parents=True)
    (tmp_path / "x/curve/01/.model.safetensors.77.tmp").touch()
    Run.open(tmp_path / "x", CONFIG).close()
    assert names(tmp_path / "x/curve/01") == set()
