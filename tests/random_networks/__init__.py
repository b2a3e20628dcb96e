"""Random small convolutional networks, drawn block by block: the inputs of the property tests.

    @given(networks())
    def test(network): network.model, network.inputs, network.recipe

Each block is a few lines that do to channels what some published network does. A block is built from picks out of
short lists, so hypothesis shrinks a failure to few blocks with the first option everywhere. `build(recipe)` rebuilds
the network of a failure from the recipe that is printed with it.
"""

from tests.random_networks import (  # noqa: F401  (registers the blocks)
    branches,
    contractions,
    convolutions,
    order,
    parts,
    recurrent,
    settings,
    space,
    state,
    statistics,
    weights,
    widths,
)
from tests.random_networks.blocks import BLOCKS, Block, conv, randomise
from tests.random_networks.whole import Answer, Drawn, build, networks

__all__ = ["BLOCKS", "Answer", "Block", "Drawn", "build", "conv", "networks", "randomise"]
