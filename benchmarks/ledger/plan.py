"""Which experiments the evidence consists of, the most informative first."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

EPOCH, HELD = 45_000, 5_000
"""Images of CIFAR-10 for training and for validation."""
COMPARED = ("half", "third", "long", "resnet56")
"""Tables whose rows are held against each other at equal cost: contenders as they are."""
TABLES = (*COMPARED, "settings", "points", "fidelity", "search")

TOOLS = {"torch-pruning": ("torch-pruning", "Torch-Pruning"), "modelopt": ("nvidia-modelopt", "ModelOpt")}
"""Other tools, by the method of a contender: package and name."""


@dataclass(frozen=True)
class Contender:
    """A way to prune: a method of sentei, or another tool."""

    method: str
    """A name in `sentei.METHODS` or of TOOLS, or fidelity."""
    options: Mapping[str, Any] = field(default_factory=dict)
    limit: int | None = None
    """Images of an epoch, for methods whose rounds are epochs; the total stays what it is."""

    @property
    def is_peer(self) -> bool:
        return self.method in TOOLS


def _torch_pruning(importance: str, **options: Any) -> Contender:
    return Contender("torch-pruning", {"importance": importance, **options})


BLOCKS = tuple(f"layer{i}.{j}" for i in (1, 2, 3) for j in (0, 1, 2))[:-1]
"""Of ResNet-20, all but the last: where they end, nine stages part."""


CONTENDERS: dict[str, Contender] = {
    "uniform": Contender("uniform"),
    "random": Contender("random"),
    "l1": Contender("l1"),
    "bn_scale": Contender("bn_scale"),
    "taylor": Contender("taylor"),
    "fpgm": Contender("fpgm"),
    "abc": Contender("abc"),
    "abc cold": Contender("abc", {"warm": False}),
    "abc reconstruct": Contender("abc", {"fitness": "reconstruct"}),
    "abc --paper": Contender("abc", {"paper": True, "fitness_epochs": 1, "fitness_images": 2000}),
    "evolution": Contender("evolution"),
    "random_search": Contender("random_search"),
    "stagewise": Contender("stagewise", {"supernet_epochs": 1}),
    "stagewise by block": Contender("stagewise", {"supernet_epochs": 1, "stages": BLOCKS}),
    "sandwich": Contender("stagewise", {"supernet_epochs": 1, "rule": "sandwich", "search": "abc", "evaluations": 100}),
    "ista": Contender("ista", {"sparse_epochs": 8, "growth": 2.0}, limit=11_250),
    "tp l2 local": _torch_pruning("l2"),
    "tp bn global": _torch_pruning("bn", everywhere=True),
    "tp taylor global": _torch_pruning("taylor", everywhere=True),
    "tp group norm": _torch_pruning("group-norm", everywhere=True, sparse_epochs=1),
    "tp isomorphic": _torch_pruning("taylor", everywhere=True, isomorphic=True),
    "modelopt fastnas": Contender("modelopt", {"divisor": 4}),
    **{
        f"{method} {count}": Contender(method, {"evaluations": count})
        for method in ("abc", "evolution", "random_search")
        for count in (20, 80, 320)
    },
}
"""By the label of the tables. In a total of four epochs a supernet gets one, sparse training two (eight rounds of a
quarter), and the paper's own search at most one (21 structures of 2,000 images)."""

PEERS = tuple(label for label, contender in CONTENDERS.items() if contender.is_peer)
FIRST = tuple(label for label in CONTENDERS if not label.rpartition(" ")[2].isdigit())
"""All that are held against each other at equal cost."""


def _fidelity(supernet_epochs: int = 3, **options: Any) -> Contender:
    return Contender(
        "fidelity", {"structures": 40, "seeds": 2, "supernet_epochs": supernet_epochs, **options}, limit=12_000
    )


STAGEWISE = ("stagewise", "stagewise-distance")
FIDELITY = {
    "fidelity": _fidelity(),
    "fidelity 2 stages": _fidelity(stages=("layer2",), proxies=STAGEWISE),
    "fidelity 9 stages": _fidelity(stages=BLOCKS, proxies=STAGEWISE),
    "fidelity 12 epochs": _fidelity(12, proxies=(*STAGEWISE, "sandwich", "random-path")),
    "fidelity 9 stages, 12 epochs": _fidelity(12, stages=BLOCKS, proxies=STAGEWISE),
}
"""No ways to prune: proxies held against real trainings of structures, by default of three stages, in supernets of
three epochs. All draw the same structures, which are trained once."""


@dataclass(frozen=True)
class Row:
    """One experiment: a network pruned by a contender, with everything that decides the result.

    Another experiment is one more of them in `_rows`; a way to prune that is new is a contender first. ValueError for a
    table that is not printed, and for settings of a method in a table of contenders as they are.
    """

    table: str
    """One of TABLES."""
    network: str
    contender: str
    limits: Mapping[str, float]
    """The budget, as in `sentei.Budget`."""
    epochs: int
    """All training images, in epochs: what a contender spends before its fine-tuning counts."""
    distill: bool = True
    """Fine-tune with the dense network as a teacher."""
    seed: int = 0
    lr: float = 0.02
    hints: float = 0.0
    """Weight of the teacher's features in that distillation."""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    """What else of `sentei.train.Recipe` is not as it is for the others."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the method in place of the contender's own."""
    epoch: int = EPOCH
    """Images of an epoch; fewer for a trial."""

    def __post_init__(self) -> None:
        if self.table not in TABLES:
            raise ValueError(f"table {self.table!r}; expected one of {', '.join(TABLES)}")
        if self.options and self.table in COMPARED:
            raise ValueError(
                f"{dict(self.options)} in table {self.table!r}; make a contender of it, or a row of settings"
            )

    @property
    def limit(self) -> int | None:
        """Images of an epoch of the recipe, where they are not all that there are."""
        limit = self.how.limit
        return (limit * self.epoch // EPOCH if limit else self.epoch) if self.epoch < EPOCH else limit

    @property
    def name(self) -> str:
        budget = "-".join(f"{what}{share:g}" for what, share in self.limits.items())
        own = "".join(f"-{key}{value}" for key, value in {**self.options, **self.recipe}.items())
        rate = "" if self.lr == 0.02 else f"-lr{self.lr:g}"
        taught = (f"hinted{self.hints:g}" if self.hints else "distilled") if self.distill else "plain"
        label = self.contender.replace(", ", "-").replace(" ", "-")
        return f"{self.network}-{budget}-{self.epochs}x-{label}{own}{rate}-{taught}-s{self.seed}"

    @property
    def how(self) -> Contender:
        given = {**CONTENDERS, **FIDELITY}[self.contender]
        return Contender(given.method, {**given.options, **self.options}, given.limit)

    def to_json(self) -> dict[str, Any]:
        """Everything that decides the result; a row is done when the ledger has it."""
        told = {
            "network": self.network, "contender": self.contender, "method": self.how.method,
            "options": dict(self.how.options), "limit": self.limit, "budget": dict(self.limits),
            "epochs": self.epochs, "distill": self.distill, "seed": self.seed, "lr": self.lr,
            **({"hints": self.hints} if self.hints else {}), **({"recipe": dict(self.recipe)} if self.recipe else {}),
        }  # fmt: skip
        plain: dict[str, Any] = json.loads(json.dumps(told))  # as the ledger has it: lists in place of tuples
        return plain


def plan() -> list[Row]:
    """All rows, the most informative first; a row that two tables share is there once.

    >>> plan()[0].name
    'resnet20-macs0.5-4x-uniform-distilled-s0'
    """
    return list({row.name: row for row in _rows()}.values())


REFERENCE = "uniform"
"""What all others are held against."""
DEFAULT = "abc"
FAST = ("l1", "fpgm")
"""The rankings between which `--fast` is decided; taylor is among the six."""
BEST_PEER = "tp taylor global"
"""The best cut of Torch-Pruning on validation images at half the MACs."""
BEST_PEERS = (BEST_PEER, "modelopt fastnas")
"""The best cut of each other tool."""
SIX = (REFERENCE, "taylor", DEFAULT, "stagewise", "ista", BEST_PEER)
"""Those that are repeated with other seeds: uniform, the best ranking, the three methods, the best peer."""
THIRD = (*SIX[:-1], "tp bn global")
"""At 30 % of the MACs another peer is the best."""
ENDS = (REFERENCE, DEFAULT, BEST_PEER)
"""Those that say most wherever not all can be made."""
HINTED = (REFERENCE, "abc", "sandwich", "taylor", "stagewise", "stagewise by block")
"""Those whose features can be compared with the dense network's: it is known which channels they have kept."""
RECIPES: tuple[dict[str, Any], ...] = (
    {"hints": 10.0},
    {"hints": 30.0},
    {"distill": False},
    {"lr": 0.05},
    {"lr": 0.1},
    {"hints": 10.0, "lr": 0.05},
    {"hints": 10.0, "recipe": {"batch_size": 64}},
    {"hints": 10.0, "recipe": {"distill_weight": 0.9}},
    {"hints": 10.0, "recipe": {"ema_decay": 0.998}},
    {"hints": 10.0, "recipe": {"cutout": 8}},
)
"""Ways to fine-tune beside that of the tables."""
SETTINGS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("abc", {"genes": "inner"}),
    ("abc", {"guide": 0.0, "moved": 1.0, "onlookers": "fitness"}),
    ("abc", {"validation_images": 500}),
    ("abc", {"validation_images": 5000}),
    ("stagewise", {"supernet_epochs": 2}),
    ("ista", {"growth": 1.5}),
    ("ista", {"growth": 3.0}),
)
"""Settings of the methods that could be other defaults. The second are the paper's moves."""


def _rows() -> Iterator[Row]:
    half, third = {"macs": 0.5}, {"macs": 0.3}
    yield from (Row("half", "resnet20", label, half, 4) for label in SIX)
    yield from (Row("half", "resnet20", REFERENCE, half, 4, **how) for how in RECIPES)
    yield from (Row("half", "resnet20", REFERENCE, half, 1, hints=weight) for weight in (0.0, 10.0, 30.0, 100.0))
    yield Row("fidelity", "resnet20", "fidelity", half, 2, distill=False)
    yield from (Row("half", "resnet20", label, half, 4) for label in ("l1", *PEERS))
    yield from (Row("third", "resnet20", label, third, 4) for label in (*ENDS, *PEERS))
    yield from (Row("half", "resnet20", label, half, 4, distill=False) for label in PEERS)
    for peer in BEST_PEERS:
        yield from (Row("half", "resnet20", peer, half, 4, distill=False, seed=seed) for seed in (1, 2))
        yield from (Row("half", "resnet20", peer, half, 4, seed=seed) for seed in (1, 2))
    yield from (Row("resnet56", "resnet56", label, half, 6) for label in ENDS)
    for share in (0.63, 0.32):
        yield Row("points", "resnet20", "ista", {"params": share}, 25, options={"sparse_epochs": 40, "growth": 1.25})
    yield from (Row("half", "resnet20", DEFAULT, half, 4, seed=seed, hints=10.0) for seed in (0, 1, 2))
    yield from (Row("fidelity", "resnet20", label, half, 2, distill=False) for label in FIDELITY)
    yield from (Row("half", "resnet20", label, half, 4, seed=seed) for seed in (1, 2) for label in ENDS)
    yield from (Row("long", "resnet20", DEFAULT, half, 8, seed=seed, hints=10.0) for seed in (0, 1, 2))
    yield from (Row("long", "resnet20", DEFAULT, half, 8, seed=seed, lr=0.05, hints=10.0) for seed in (0, 1, 2))
    hidden = {"cutout": 8}
    yield from (Row("long", "resnet20", DEFAULT, half, 8, seed=seed, hints=10.0, recipe=hidden) for seed in (0, 1, 2))
    for label in ("stagewise by block", REFERENCE):
        yield from (Row("long", "resnet20", label, half, 8, seed=seed, hints=10.0) for seed in (0, 1, 2))
    for epochs, table in ((4, "half"), (8, "long")):
        yield from (
            Row(table, "resnet20", "abc reconstruct", half, epochs, seed=seed, hints=10.0) for seed in (0, 1, 2)
        )
    yield from (Row("long", "resnet20", REFERENCE, half, 6, seed=seed) for seed in (0, 1, 2))  # as if it had searched
    yield from (Row("settings", "resnet20", label, half, 4, options=options) for label, options in SETTINGS)
    for label in ("abc reconstruct", "sandwich", "stagewise by block"):
        yield from (Row("half", "resnet20", label, half, 4, seed=seed) for seed in (0, 1, 2))
    yield from (Row("half", "resnet20", "stagewise by block", half, 4, seed=seed, hints=10.0) for seed in (0, 1, 2))
    yield from (Row("half", "resnet20", label, half, 4) for label in FIRST)
    yield from (Row("half", "resnet20", label, half, 4, seed=seed) for seed in (1, 2) for label in (*FAST, *SIX))
    yield from (Row("third", "resnet20", label, third, 4) for label in THIRD)
    yield from (Row("half", "resnet20", label, half, 4, hints=10.0) for label in HINTED)
    yield from (Row("third", "resnet20", label, third, 4, seed=seed) for seed in (1, 2) for label in THIRD)
    yield from (Row("half", "resnet20", THIRD[-1], half, 4, seed=seed) for seed in (1, 2))
    yield from (Row("half", "resnet20", label, half, 4, distill=False) for label in SIX)
    yield from (Row("resnet56", "resnet56", label, half, 6, seed=1) for label in (DEFAULT, BEST_PEER))
    for count in (20, 80, 320):
        for method in ("abc", "evolution", "random_search"):
            yield Row("search", "resnet20", f"{method} {count}", half, 4)
