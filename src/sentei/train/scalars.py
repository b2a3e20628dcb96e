"""What the journal of a run says, for TensorBoard too."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sentei.extras import required
from sentei.train.journal import Journal


@contextmanager
def tensorboard(folder: str | Path | None) -> Iterator[None]:
    """Write every number of a journal as a scalar into event files in this folder; None writes none.

    >>> with tensorboard("runs/half/tensorboard"):                                    # doctest: +SKIP
    ...     sentei.prune(model, data, run_dir="runs/half")

    Raises ExportError if TensorBoard is not installed.
    """
    if folder is None:
        yield
        return
    required("tensorboard", "tensorboard", "--tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    writer: SummaryWriter | None = None  # its files are not there before the run is
    count = 0

    def watch(record: dict[str, Any]) -> None:
        nonlocal count, writer
        count += 1
        writer = writer or SummaryWriter(str(folder))
        for name, value in scalars(record).items():
            writer.add_scalar(name, value, record.get("epoch", count))
        writer.flush()

    Journal.watchers.append(watch)
    try:
        yield
    finally:
        Journal.watchers.remove(watch)
        if writer is not None:
            writer.close()


def scalars(record: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a record, under the name of the training or phase that they are of.

    >>> scalars({"event": "epoch", "name": "finetune", "epoch": 3, "loss": 0.5, "lr": 0.1})
    {'finetune/loss': 0.5, 'finetune/lr': 0.1}
    """
    of = record.get("name") or record.get("phase") or record.get("event") or "run"
    return {
        f"{of}/{key}": float(value)
        for key, value in record.items()
        if key != "epoch" and isinstance(value, (int, float)) and not isinstance(value, bool)
    }
