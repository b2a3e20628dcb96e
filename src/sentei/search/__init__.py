"""Search over layer widths: strategies, evaluators, executors and storage, each apart from the others."""

from sentei.search.baselines import Evolution, RandomSearch
from sentei.search.colony import Colony
from sentei.search.engine import Search, SearchResult
from sentei.search.evaluators import MEASURES, Evaluator, Recalibrate, Reconstruct, Train
from sentei.search.executors import Lazy, open_executor
from sentei.search.inherit import Inheritance
from sentei.search.jobs import Crew, Executor, Job, Outcome
from sentei.search.space import Levels, Space, budgeted, tenths
from sentei.search.steady import SteadySearch
from sentei.search.store import Store
from sentei.search.strategy import Batch, Proposal, Strategy

__all__ = [
    "MEASURES", "Batch", "Colony", "Crew", "Evaluator", "Evolution", "Executor", "Inheritance", "Job", "Lazy", "Levels",
    "Outcome", "Proposal", "RandomSearch", "Recalibrate", "Reconstruct", "Search", "SearchResult", "Space",
    "SteadySearch", "Store", "Strategy", "Train", "budgeted", "open_executor", "tenths",
]  # fmt: skip
