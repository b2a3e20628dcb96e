"""Many structures measured by one evaluator: from the journal where they are known, by workers where not."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np

from sentei.bars import live_bar
from sentei.errors import SearchError
from sentei.search import Crew, Evaluator, Job, Outcome, Store, open_executor
from sentei.train.journal import Journal


class Measuring:
    """An evaluator with its workers, which keep model and data from one question to the next.

    >>> with Measuring(evaluator, run.journal, Crew("process", 4)) as measuring:  # doctest: +SKIP
    ...     measuring([widths])[0]["fitness"]

    Each answer is in the journal before it is used, so that a call after a kill measures only what is missing.
    """

    def __init__(
        self, evaluator: Evaluator, journal: Journal | None = None, crew: Crew | None = None, shown: bool = False
    ) -> None:
        self.store, self.shown = Store(evaluator.settings, journal), shown
        self.executor = open_executor(crew or Crew(), evaluator)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.executor.close()

    def __call__(self, structures: Sequence[np.ndarray], title: str = "measure") -> list[dict[str, Any]]:
        """What the evaluator says of each structure, widths int64 [n_groups], in their order.

        SearchError with the reason if a structure could not be measured.
        """
        store = self.store
        missing = {tuple(w.tolist()): w for w in structures if store.get(w, 1.0) is None}
        jobs = [Job(i, widths) for i, widths in enumerate(missing)]
        try:
            with live_bar(self.shown and bool(jobs), counted=True) as bar:
                task = bar.add_task(title, total=len(jobs))
                for outcome in self.executor.run(jobs):
                    store.add(missing[outcome.job.widths], 1.0, _record(outcome))
                    bar.advance(task)
        finally:
            store.sync()
        found = [dict(record) for w in structures if (record := store.get(w, 1.0)) is not None]
        failed = [record for record in found if record["error"] is not None]
        if failed:
            raise SearchError(f"structure {failed[0]['widths']} could not be measured: {failed[0]['error']}")
        return found


def measure(
    evaluator: Evaluator,
    structures: Sequence[np.ndarray],
    *,
    journal: Journal | None = None,
    crew: Crew | None = None,
    title: str = "measure",
    shown: bool = False,
) -> list[dict[str, Any]]:
    """`Measuring` for a single question.

    >>> measure(evaluator, [widths], journal=run.journal)[0]["fitness"]  # doctest: +SKIP
    """
    with Measuring(evaluator, journal, crew, shown) as measuring:
        return measuring(structures, title)


def _record(outcome: Outcome) -> dict[str, Any]:
    return {"phase": "measure", **(outcome.result or {}), "error": outcome.error, "seconds": outcome.seconds}
