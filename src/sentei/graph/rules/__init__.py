"""How each family of aten operations moves labels. Importing this package registers all rules."""

from sentei.graph.rules import (
    contraction,
    made,
    movement,
    norm,
    places,
    pointwise,
    recurrent,
    reduction,
    reparametrised,
    spatial,
)

__all__ = [
    "contraction",
    "made",
    "movement",
    "norm",
    "places",
    "pointwise",
    "recurrent",
    "reduction",
    "reparametrised",
    "spatial",
]
