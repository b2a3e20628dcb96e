"""Many structures measured by one evaluator: from the journal where they are known, by workers where not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sentei.bars import live_bar
from sentei.errors import SearchError
from sentei.search import Evaluator, Job, Outcome, Store, open_executor
from sentei.search.jobs import Where
from sentei.train.journal import Journal


def measure(
    evaluator: Evaluator,
    structures: Sequence[np.ndarray],
    *,
    journal: Journal | None = None,
    where: Where = "here",
    workers: int = 1,
    title: str = "measure",
    shown: bool = False,
) -> list[dict[str, Any]]:
    """What the evaluator says of each structure, widths int64 [n_groups], in their order.

    >>> measure(evaluator, [widths], journal=run.journal)[0]["fitness"]  # doctest: +SKIP

    Each answer is in the journal before it is used, so that a call after a kill measures only what is missing. Raises
    SearchError with the reason if a structure could not be measured.
    """
    store = Store(evaluator.settings, journal)
    missing = {tuple(w.tolist()): w for w in structures if store.get(w, 1.0) is None}
    jobs = [Job(i, widths) for i, widths in enumerate(missing)]
    with (
        live_bar(shown and bool(jobs), counted=True) as bar,
        open_executor(where, evaluator, workers) as executor,
    ):
        task = bar.add_task(title, total=len(jobs))
        for outcome in executor.run(jobs):
            store.add(missing[outcome.job.widths], 1.0, _record(outcome))
            bar.advance(task)
    found = [dict(record) for w in structures if (record := store.get(w, 1.0)) is not None]
    failed = [record for record in found if record["error"] is not None]
    if failed:
        raise SearchError(f"structure {failed[0]['widths']} could not be measured: {failed[0]['error']}")
    return found


def _record(outcome: Outcome) -> dict[str, Any]:
    return {"phase": "measure", **(outcome.result or {}), "error": outcome.error, "seconds": outcome.seconds}
