"""What the files of a run hold, checked when they are read: no damage gets further than this."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, model_validator

from sentei.errors import CheckpointError

T = TypeVar("T")


def validated(kind: type[T], value: object, where: object) -> T:
    """The value as a `kind`: a dataclass, a model below, or any type; CheckpointError, naming the first fault.

    >>> validated(dict[str, int], {"a": "b"}, "x.yaml")
    Traceback (most recent call last):
    sentei.errors.CheckpointError: x.yaml: a is 'b'; Input should be a valid integer, ...
    """
    own = isinstance(kind, type) and issubclass(kind, Open)
    try:
        found: T = _adapter(kind).validate_python(value, extra="allow" if own else "forbid")
        return found
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the whole"
        raise CheckpointError(
            f"{where} is damaged or of another version: {place} is {_short(first['input'])}: {first['msg']}"
        ) from error
    except RecursionError as error:
        raise CheckpointError(f"{where} is damaged: it is nested without end") from error


def _adapter(kind: type[T]) -> TypeAdapter[T]:
    return TypeAdapter(kind)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


class Open(BaseModel):
    """A mapping with some fields that are relied on, among others."""

    model_config = ConfigDict(extra="allow")


class Images(Open):
    input_shape: tuple[int, int, int] | None


class Resolved(Open):
    """What makes a run this one and no other."""

    data: Images | None = None
    threads: int | None = None


class Config(Open):
    """config.yaml."""

    sentei: str
    command: dict[str, Any] | None
    resolved: Resolved


class Metric(Open):
    name: str
    lower_is_better: bool
    percent: bool


class Measured(Open):
    macs: int
    params: int


class Check(Open):
    max_error: float
    stale: list[str] = []


class Searched(Open):
    """Report of a search over whole structures."""

    evaluations: int
    genes: int
    seconds: float
    failed: int
    curve: list[tuple[int, float]]


class FoldReport(Open):
    error: float


class Timed(Open):
    """Report of a budget of milliseconds."""

    runtime: str
    dense_ms: float
    small_ms: float
    predicted_ms: float


class IstaReport(Open):
    fold: FoldReport


class DataDescription(Open):
    val: int
    test: int
    content: str


class Summary(Open):
    """summary.json, whatever the command."""

    verb: Literal["train", "prune", "fidelity"]
    task: str
    metric: Metric
    model: str
    data: str


def refuse_unmeasured(figures: Mapping[str, Any], *names: str) -> None:
    """ValueError if a figure is not there, or is neither a number nor nothing."""
    for name in names:
        if name not in figures or not isinstance(figures[name], (int, float, type(None))):
            raise ValueError(f"it has no figure {name}")


class TrainSummary(Summary):
    verb: Literal["train"]
    macs: int
    params: int
    data_description: DataDescription
    images_trained: dict[str, int] | None = None

    @model_validator(mode="after")
    def has_its_metric(self) -> TrainSummary:
        refuse_unmeasured(self.model_extra or {}, self.metric.name, f"val_{self.metric.name}")
        return self


class PruneSummary(Summary):
    verb: Literal["prune"]
    method: str
    base: Measured
    pruned: Measured
    after_cut: dict[str, float | None]
    check: Check
    widths: dict[str, tuple[int, int]]
    note: str
    warnings: list[str]
    data_description: DataDescription
    images_trained: dict[str, int] | None = None
    search: Searched | None = None
    latency: Timed | None = None
    ista: IstaReport | None = None

    @model_validator(mode="after")
    def has_its_metric(self) -> PruneSummary:
        name = self.metric.name
        refuse_unmeasured(self.after_cut, f"val_{name}")
        for part in (self.base, self.pruned):
            refuse_unmeasured(part.model_extra or {}, name, f"val_{name}")
        return self


class Proxy(Open):
    tau: float
    low: float
    high: float
    rho: float
    across_tau: float | None = None


class Structure(Open):
    band: bool
    real: list[float]


class FidelitySummary(Summary):
    verb: Literal["fidelity"]
    epochs: int
    agreement: float | None
    proxies: dict[str, Proxy]
    structures: list[Structure]


class ComparedRun(Open):
    folder: str
    method: str
    budget: dict[str, float]
    seed: int
    state: Literal["waiting", "finished", "failed"]
    error: str | None
    result: dict[str, Any] | None


class ComparedPlan(Open):
    metric: Metric
    methods: dict[str, dict[str, Any]]
    budgets: list[dict[str, float]]
    seeds: list[int]
    counted: dict[str, int | None]
    shared: dict[str, Any]
    dense: dict[str, float | None] | None
    total_images: int
    epoch_images: int
    batch_images: int


class Compared(Open):
    """compare.json."""

    format: Literal["sentei compare"]
    version: Literal[1]
    plan: ComparedPlan
    runs: list[ComparedRun]


class BenchNetwork(Open):
    """A network in bench.json: ms of a pass over the batch, MACs of one sample."""

    name: str
    role: Literal["dense", "small", "other"]
    ms: float
    ms_low: float
    ms_high: float
    macs: int
    params: int
    memory_bytes: int


class BenchLayer(Open):
    name: str
    dense_ms: float
    small_ms: float
    dense_width: int | None
    small_width: int | None
    share_macs: float
    note: str


class BenchEntry(Open):
    """One measurement; figures of a comparison are None where a network was measured alone."""

    runtime: str
    when: str
    threads: int
    batch: int
    device: str
    clock: Literal["thread", "wall"]
    machine: dict[str, Any]
    versions: dict[str, str]
    networks: list[BenchNetwork]
    speedup: float | None
    speedup_low: float | None
    speedup_high: float | None
    macs_kept: float | None
    efficiency: float | None
    rounds: int
    sure: bool
    layers: list[BenchLayer]
    rest_ms: tuple[float, float] | None = None


class BenchFile(Open):
    """bench.json."""

    format: Literal["sentei bench"]
    version: Literal[1]
    entries: list[BenchEntry]


def with_metric(summary: dict[str, Any]) -> dict[str, Any]:
    """A summary as it is written now; the first versions knew classification alone, and called the command a task."""
    if "verb" in summary or "task" not in summary:
        return summary
    metric = {"name": "accuracy", "lower_is_better": False, "percent": True}
    return {**summary, "verb": summary["task"], "task": "classification", "metric": metric}


SUMMARIES: dict[str, type[Summary]] = {"train": TrainSummary, "prune": PruneSummary, "fidelity": FidelitySummary}
