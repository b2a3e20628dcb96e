"""One family of errors. Each text says what was given, what was expected and what to do."""


class SenteiError(Exception):
    """Base of every error that sentei raises on purpose."""


class TraceError(SenteiError):
    """The model could not be traced on the example inputs."""


class PlanError(SenteiError):
    """A plan does not fit the graph: unknown group, frozen group, bad indices, or made for another model."""


class BudgetError(PlanError):
    """A budget that cannot be met; the text names the smallest reachable cost."""


class SurgeryError(SenteiError):
    """A cut model does not compute what the reference computes, or is not wired as the graph says."""


class CheckpointError(SenteiError):
    """A file is missing, truncated, altered, or belongs to another model."""


class DataError(SenteiError):
    """A data set was not found or is not what was expected."""


class ModelError(SenteiError):
    """A model reference or a weights file could not be used."""


class TrainError(SenteiError):
    """Training cannot start or go on."""


class ConfigError(SenteiError):
    """A setting is out of range or contradicts another."""


class SearchError(SenteiError):
    """A search cannot start or go on."""


class ExportError(SenteiError):
    """A network cannot be handed over: an optional package is missing, or the file does not compute what it should."""
