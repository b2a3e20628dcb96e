"""What belongs together: label layers, the tracer, rules by family of operations, groups and cost."""

from sentei.graph.cost import Cost, Costs
from sentei.graph.graph import ChannelGraph
from sentei.graph.groups import Group, Slice
from sentei.graph.settle import trace
from sentei.graph.structure import Structure

__all__ = ["ChannelGraph", "Cost", "Costs", "Group", "Slice", "Structure", "trace"]
