"""What a training run keeps in its folder: the last state, whole, and a record of each epoch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sentei.errors import CheckpointError
from sentei.train.checkpoint import load_checkpoint, save_checkpoint
from sentei.train.journal import Journal

Record = dict[str, Any]


class Stored:
    """The checkpoint of one training run, and its journal if it has one; without a folder it keeps nothing.

    >>> stored = Stored(Path("runs/x"), "train")  # doctest: +SKIP
    >>> stored.save({"model": model.state_dict(), "history": history})  # doctest: +SKIP
    """

    def __init__(self, folder: Path | None, name: str, journal: bool = True) -> None:
        self.name = name
        self.file = folder / f"{name}.ckpt" if folder else None
        self.journal = Journal(folder / "journal.jsonl") if folder and journal else None

    def save(self, state: Record) -> None:
        if self.file is not None:
            save_checkpoint(self.file, state)

    def load(self, settings: Record) -> Record | None:
        """The last state, if there is one; CheckpointError if it was made with other settings."""
        if self.file is None or not self.file.exists():
            return None
        state = load_checkpoint(self.file)
        saved = {**state.get("recipe", {}), "factory": state.get("factory"), "last_limit": state.get("last_limit")}
        changed = [f"{k} was {saved.get(k)!r}, now {v!r}" for k, v in settings.items() if saved.get(k) != v]
        if changed:
            raise CheckpointError(
                f"{self.file} was written with another recipe: {'; '.join(changed)}. "
                "Use the same recipe to go on, or another run directory to start again."
            )
        return state

    def told(self, record: Record) -> None:
        """Note an epoch in the journal."""
        if self.journal is not None:
            self.journal.append({"event": "epoch", "name": self.name, **record})

    def complete(self, history: Sequence[Record]) -> None:
        """Add to the journal what a kill between checkpoint and journal has left out."""
        if self.journal is None:
            return
        written = {r["epoch"] for r in self.journal.records() if r.get("name") == self.name and "epoch" in r}
        for record in history:
            if record["epoch"] not in written:
                self.told(record)
