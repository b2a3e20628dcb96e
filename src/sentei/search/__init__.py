"""Search over layer widths: strategies, evaluators, executors and storage, each apart from the others."""

from sentei.search.baselines import Evolution, RandomSearch
from sentei.search.colony import Colony
from sentei.search.engine import Search, SearchResult
from sentei.search.evaluators import Evaluator, Recalibrate, Train
from sentei.search.executors import open_executor
from sentei.search.inherit import Inheritance
from sentei.search.jobs import Executor, Job, Outcome
from sentei.search.space import Levels, Space, budgeted, tenths
from sentei.search.store import Store
from sentei.search.strategy import Batch, Strategy

__all__ = [
    "Batch", "Colony", "Evaluator", "Evolution", "Executor", "Inheritance", "Job", "Levels", "Outcome", "RandomSearch",
    "Recalibrate", "Search", "SearchResult", "Space", "Store", "Strategy", "Train", "budgeted", "open_executor",
    "tenths",
]  # fmt: skip
