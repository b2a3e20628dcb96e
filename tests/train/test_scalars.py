"""Event files for TensorBoard: what the journal says, read back."""

from pathlib import Path

import pytest

from sentei.errors import ExportError
from sentei.train.journal import Journal
from sentei.train.scalars import tensorboard


def read(folder: Path) -> dict[str, list[tuple[int, float]]]:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder))
    events.Reload()
    return {
        tag: [(e.step, round(e.value, 6)) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]
    }  # fmt: skip


def test_numbers_of_the_journal_are_scalars(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    journal = Journal(tmp_path / "journal.jsonl")
    journal.append({"event": "epoch", "name": "train", "epoch": 1, "loss": 9.0})  # before: not seen
    with tensorboard(tmp_path / "tensorboard"):
        journal.append({"event": "epoch", "name": "train", "epoch": 2, "loss": 0.5, "lr": 0.1, "note": "x"})
        journal.append({"event": "phase", "phase": "cut1", "value": 0.25, "plan": "long"})
    journal.append({"event": "epoch", "name": "train", "epoch": 3, "loss": 7.0})  # after: not seen
    with tensorboard(tmp_path / "tensorboard"):  # resumed
        journal.append({"event": "epoch", "name": "train", "epoch": 4, "loss": 0.25})
    found = read(tmp_path / "tensorboard")
    assert found == {"train/loss": [(2, 0.5), (4, 0.25)], "train/lr": [(2, 0.1)], "cut1/value": [(2, 0.25)]}


def test_nothing_is_written_unasked(tmp_path: Path) -> None:
    with tensorboard(None):
        Journal(tmp_path / "journal.jsonl").append({"event": "epoch", "epoch": 1, "loss": 0.5})
    assert [p.name for p in tmp_path.iterdir()] == ["journal.jsonl"]


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tensorboard", None)
    with pytest.raises(ExportError, match=r"pip install 'sentei\[tensorboard\]'"), tensorboard(tmp_path / "t"):
        pass
    assert not (tmp_path / "t").exists()
