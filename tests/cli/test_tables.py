"""Tables stay short and readable."""

import io

import pytest
import torch
from rich.console import Console
from torch import nn

import sentei
from sentei.plan import Constraints
from sentei.report.tables import before_after, cost_table, count, frozen_table, widths_table


def text(table, width=80):
    console = Console(file=io.StringIO(), width=width)
    console.print(table)
    return console.file.getvalue()


def test_neighbours_with_equal_widths_share_a_line():
    out = text(widths_table({"a": (16, 8), "b": (16, 8), "c": (16, 8), "d": (32, 8)}))
    assert "a .. c (3)" in out
    assert len([line for line in out.splitlines() if "█" in line]) == 2


def test_long_lists_are_cut_short_and_say_so():
    out = text(widths_table({f"g{i}": (100, i + 1) for i in range(90)}))
    assert "59 more lines (see summary.json)" in out
    assert len(out.splitlines()) < 40


@pytest.mark.parametrize(
    ("value", "shown"), [(950, "950"), (38_122, "38.12 k"), (41_214_000, "41.21 M"), (4e9, "4.00 G")]
)
def test_counts(value, shown):
    assert count(value) == shown


def test_missing_accuracies_are_dashes():
    part = {"accuracy": 0.5, "val_accuracy": None, "macs": 10, "params": 10}
    metric = {"name": "accuracy", "lower_is_better": False, "percent": True}
    told = {"model": "m", "data": "d", "method": "l1", "metric": metric, "base": part, "pruned": {**part, "macs": 5}}
    out = text(before_after(told))
    assert "-50.0%" in out
    assert "+0.00 points" in out
    assert "-" in next(line for line in out.splitlines() if "validation" in line)


class Stubborn(nn.Module):
    """Half of the network is behind an operation that freezes it."""

    def __init__(self):
        super().__init__()
        self.free, self.stuck, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Linear(8, 2)

    def forward(self, x):
        x = self.stuck(self.free(x).relu())
        return self.head(torch.cumsum(x, 1).mean((2, 3)))


def test_shares_of_what_is_frozen():
    graph = sentei.trace(Stubborn(), torch.zeros(1, 3, 8, 8))
    frozen = text(frozen_table(graph))
    assert "cumsum" in frozen
    # stuck.bias and head are held by frozen groups alone: 8 + 18 of 314 parameters.
    assert graph.cost().params == 314
    share = 1 - graph.prunable()[1]
    assert share == pytest.approx(26 / 314)
    assert f"{graph.prunable()[1]:.1%}" in text(cost_table("net", graph, Constraints()))
