"""Runs that are stopped and go on: the end is the same to the bit."""

import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from subprocess import DEVNULL

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from sentei.data import load_data
from sentei.errors import CheckpointError
from sentei.models import build_model
from sentei.train import Recipe, fit
from sentei.train.checkpoint import load_checkpoint
from sentei.train.journal import Journal
from tests.forked import Popen

SCRIPT = Path(__file__).with_name("resumable.py")
SOURCE = Path(__file__).parents[2] / "src"


def start(run_dir: Path, out: Path) -> Popen:
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), str(run_dir), str(out)]
    return Popen(command, env=environment, stdout=DEVNULL)


def epochs_in(run_dir: Path) -> int:
    path = run_dir / "journal.jsonl"
    return len(path.read_bytes().splitlines()) if path.exists() else 0


def kill_after(run_dir: Path, out: Path, epochs: int) -> None:
    process = start(run_dir, out)
    try:
        deadline = time.monotonic() + 120
        while epochs_in(run_dir) < epochs and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        assert process.poll() is None, "the run ended before it could be killed"
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not out.exists()


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
def test_killed_run_ends_with_the_weights_of_one_never_killed(tmp_path: Path) -> None:
    whole = start(tmp_path / "whole", tmp_path / "whole.safetensors")
    kill_after(tmp_path / "killed", tmp_path / "killed.safetensors", epochs=2)
    assert start(tmp_path / "killed", tmp_path / "killed.safetensors").wait() == 0
    assert whole.wait() == 0
    expected, found = load_file(tmp_path / "whole.safetensors"), load_file(tmp_path / "killed.safetensors")
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[n], found[n]) for n in expected)
    timing = ("seconds", "images_per_second")
    runs = [Journal(tmp_path / name / "journal.jsonl").records() for name in ("whole", "killed")]
    plain = [[{k: v for k, v in r.items() if k not in timing} for r in records] for records in runs]
    assert plain[0] == plain[1]
    assert [r["epoch"] for r in plain[0]] == [1, 2, 3, 4, 5, 6]


RECIPE = Recipe(epochs=2, batch_size=128, lr=0.1)


def stopped_after_one_epoch(run_dir: Path) -> None:
    def stop(record: dict[str, object]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(
            build_model("digitsnet"),
            load_data("digits"),
            RECIPE,
            run_dir=run_dir,
            on_epoch=stop,
            progress=False,
        )


def test_interrupted_run_goes_on_and_a_finished_one_returns_at_once(tmp_path: Path) -> None:
    stopped_after_one_epoch(tmp_path)
    epochs: list[int] = []
    data = load_data("digits")
    first = fit(
        build_model("digitsnet"),
        data,
        RECIPE,
        run_dir=tmp_path,
        progress=False,
        on_epoch=lambda r: epochs.append(r["epoch"]),
    )
    assert epochs == [2]
    again = fit(
        build_model("digitsnet"),
        data,
        RECIPE,
        run_dir=tmp_path,
        progress=False,
        on_epoch=lambda r: epochs.append(r["epoch"]),
    )
    assert epochs == [2]
    assert again.history == first.history
    a, b = first.model.state_dict(), again.model.state_dict()
    assert all(torch.equal(a[n], b[n]) for n in a)


def test_journal_is_completed_after_a_kill_between_checkpoint_and_journal(tmp_path: Path) -> None:
    stopped_after_one_epoch(tmp_path)
    (tmp_path / "journal.jsonl").write_bytes(b'{"event": "epo')
    fit(build_model("digitsnet"), load_data("digits"), RECIPE, run_dir=tmp_path, progress=False)
    assert [r["epoch"] for r in Journal(tmp_path / "journal.jsonl").records()] == [1, 2]


def test_phases_share_a_run_directory(tmp_path: Path) -> None:
    model, data = build_model("digitsnet"), load_data("digits")
    fit(model, data, RECIPE, run_dir=tmp_path, name="train", progress=False)
    fit(model, data, replace(RECIPE, epochs=1), run_dir=tmp_path, name="finetune", progress=False)
    records = Journal(tmp_path / "journal.jsonl").records()
    assert [(r["name"], r["epoch"]) for r in records] == [("train", 1), ("train", 2), ("finetune", 1)]


def test_another_recipe_or_model_is_refused(tmp_path: Path) -> None:
    stopped_after_one_epoch(tmp_path)
    data = load_data("digits")
    with pytest.raises(CheckpointError, match=r"another recipe: lr was 0\.1, now 0\.2"):
        fit(build_model("digitsnet"), data, replace(RECIPE, lr=0.2), run_dir=tmp_path, progress=False)
    with pytest.raises(CheckpointError, match="belongs to another model"):
        fit(build_model("resnet20", in_channels=1), data, RECIPE, run_dir=tmp_path, progress=False)


def test_corrupt_checkpoint_is_refused(tmp_path: Path) -> None:
    stopped_after_one_epoch(tmp_path)
    path = tmp_path / "train.ckpt"
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(CheckpointError, match="truncated"):
        fit(build_model("digitsnet"), load_data("digits"), RECIPE, run_dir=tmp_path, progress=False)


def test_a_state_within_an_epoch_is_gone_on_from_to_the_bit(data, tmp_path, monkeypatch):
    recipe = Recipe(epochs=2, batch_size=50, limit=500, lr=0.1, bf16=False, ema_decay=0.9)

    def made(folder=None, stop_at=None, minutes=None):
        torch.manual_seed(0)
        model = nn.Sequential(build_model("digitsnet"), nn.Dropout(0.2))
        steps = 0

        def after(*_):
            nonlocal steps
            steps += 1
            if steps == stop_at:
                raise KeyboardInterrupt

        return fit(
            model, data, recipe, run_dir=folder, after_step=after, checkpoint_minutes=minutes, progress=False
        )  # fmt: skip

    whole = made()
    with pytest.raises(KeyboardInterrupt):
        made(tmp_path, stop_at=17, minutes=1e-9)
    assert load_checkpoint(tmp_path / "train.ckpt")["inside"]["step"] == 6
    seen = []
    monkeypatch.setattr(type(data.train), "batches", _noting(type(data.train).batches, seen))
    again = made(tmp_path)
    assert seen[0] == 6
    first, second = whole.model.state_dict(), again.model.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    plain = ("epoch", "loss", "lr", "accuracy", "images")
    assert [[r[k] for k in plain] for r in whole.history] == [[r[k] for k in plain] for r in again.history]


def _noting(batches, seen):
    def noted(self, *args, **how):
        if how.get("train"):
            seen.append(how["start"])
        return batches(self, *args, **how)

    return noted
