"""Checkpoints and journals: whole or absent, checked, and never executed."""

import errno
import io
import os
import pickle
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sentei.atomic import write_atomic
from sentei.errors import CheckpointError
from sentei.models import build_model
from sentei.train import checkpoint
from sentei.train import journal as journal_module
from sentei.train.checkpoint import load_checkpoint, save_checkpoint, save_weights
from sentei.train.journal import Journal


def test_round_trip(tmp_path: Path) -> None:
    state = {"epoch": 3, "w": torch.randn(4, 5), "nested": {"list": [1, 2.5, None, "x"]}}
    save_checkpoint(tmp_path / "new" / "a.ckpt", state)
    back = load_checkpoint(tmp_path / "new" / "a.ckpt")
    assert torch.equal(back.pop("w"), state.pop("w"))  # type: ignore[call-overload]
    assert back == state
    assert os.listdir(tmp_path / "new") == ["a.ckpt"]


@pytest.mark.parametrize("place", [5, 60, 200, 500, -1])
def test_any_altered_byte_is_noticed(tmp_path: Path, place: int) -> None:
    path = tmp_path / "a.ckpt"
    save_checkpoint(path, {"w": torch.randn(100)})
    raw = bytearray(path.read_bytes())
    raw[place] ^= 1
    path.write_bytes(raw)
    with pytest.raises(CheckpointError, match="checksum"):
        load_checkpoint(path)


@pytest.mark.parametrize("size", [0, 10, 300])
def test_truncated_file_is_refused(tmp_path: Path, size: int) -> None:
    path = tmp_path / "a.ckpt"
    save_checkpoint(path, {"w": torch.randn(100)})
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CheckpointError, match=r"a\.ckpt is truncated"):
        load_checkpoint(path)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="No such file"):
        load_checkpoint(tmp_path / "none.ckpt")


class Trap:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.mkdir, ("trapped",))


def test_code_in_a_checkpoint_is_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    buffer = io.BytesIO()
    torch.save({"w": Trap()}, buffer)
    payload = buffer.getvalue()
    digest = checkpoint._digest(payload).encode()
    (tmp_path / "bad.ckpt").write_bytes(checkpoint.HEADER + digest + b"\n" + payload)
    with pytest.raises(CheckpointError, match="tensors and plain values"):
        load_checkpoint(tmp_path / "bad.ckpt")
    assert not (tmp_path / "trapped").exists()
    with pytest.raises(pickle.UnpicklingError):
        torch.load(io.BytesIO(payload), weights_only=True)


def test_full_disk_leaves_the_old_file_and_no_rubbish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.ckpt"
    write_atomic(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match="No space left on device.*previous file"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.ckpt"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_signal_while_writing_leaves_the_old_file_and_no_rubbish(tmp_path, monkeypatch, step) -> None:
    path = tmp_path / "a.ckpt"
    write_atomic(path, b"old")

    def stopped(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, step, stopped)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.ckpt"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk_while_appending_to_the_journal(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    journal.path = Path("/dev/full")
    with pytest.raises(CheckpointError, match="No space left on device"):
        journal.append({"epoch": 1})


def test_unwritable_folder_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match="could not write"):
        write_atomic(tmp_path / "file" / "a.ckpt", b"x")
    with pytest.raises(CheckpointError, match="Could not open"):
        Journal(tmp_path / "file" / "journal.jsonl")


def test_weights_are_safetensors_with_metadata(tmp_path: Path) -> None:
    model = build_model("digitsnet").to(memory_format=torch.channels_last)
    save_weights(tmp_path / "w.safetensors", model, {"seed": "0"})
    back = load_file(tmp_path / "w.safetensors")
    state = model.state_dict()
    assert back.keys() == state.keys()
    assert all(torch.equal(back[n], state[n]) for n in state)


def test_journal_appends_and_reads_back(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "run" / "journal.jsonl")
    journal.append({"epoch": 1, "loss": 0.1})
    journal.append({"epoch": 2, "text": "é\n"})
    assert Journal(journal.path).records() == [{"epoch": 1, "loss": 0.1}, {"epoch": 2, "text": "é\n"}]


@pytest.mark.parametrize("torn", [b"{", b'{"epoch": 3, "lo', b'{"epoch": 3}'])
def test_torn_last_line_is_repaired(tmp_path: Path, torn: bytes) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    journal.append({"epoch": 1})
    journal.append({"epoch": 2})
    with open(journal.path, "ab") as file:
        file.write(torn)
    again = Journal(journal.path)
    again.append({"epoch": 3})
    assert [r["epoch"] for r in again.records()] == [1, 2, 3]


@pytest.mark.parametrize("change", [(b"0.5", b"0.6"), (b'"epoch": 2', b'"epoch": 7'), (b"\n", b"x"), (b'"', b"\xff")])
def test_an_altered_line_is_left_out_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture, change) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    for epoch in (1, 2, 3):
        journal.append({"epoch": epoch, "fitness": 0.5})
    lines = journal.path.read_bytes().splitlines(keepends=True)
    lines[1] = lines[1].replace(*change, 1)
    journal.path.write_bytes(b"".join(lines))
    found = Journal(journal.path).records()
    assert [r["epoch"] for r in found] == ([1] if change[0] == b"\n" else [1, 3])
    assert [r.getMessage() for r in caplog.records] == [
        f"{journal.path}: line 2 was altered (its checksum does not match) and is left out; what it told is done again"
    ]
    Journal(journal.path).records()
    assert len(caplog.records) == 1


def test_records_reach_the_disk_in_groups_and_are_written_before_that(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(journal_module, "_sync", lambda descriptor: synced.append(os.fstat(descriptor).st_size))
    journal = Journal(tmp_path / "j")
    for i in range(50):
        journal.append({"event": "evaluation", "number": i}, wait=False)
        assert len(journal.records()) == i + 1  # a kill now would lose nothing
    end = time.monotonic() + 20
    while not (synced and synced[-1] == (tmp_path / "j").stat().st_size):
        assert time.monotonic() < end
        time.sleep(0.01)
    assert len(synced) < 50
    before = len(synced)
    journal.append({"event": "evaluation", "number": 50}, wait=False)
    journal.sync()
    assert synced[before] == (tmp_path / "j").stat().st_size


def test_a_disk_that_fails_while_records_wait_for_it_is_told_by_the_next_call(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(journal_module, "_sync", full)
    journal = Journal(tmp_path / "j")
    journal.append({"event": "evaluation"}, wait=False)
    with pytest.raises(CheckpointError, match=r"Could not append to .*j: No space left"):
        journal.sync()
    monkeypatch.undo()
    journal.append({"event": "evaluation"}, wait=False)
    journal.sync()
    assert len(journal.records()) == 2
