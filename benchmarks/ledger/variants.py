"""One contender in several ways: fine-tuned by other recipes, or with other settings of its method."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

from ledger.book import Line
from ledger.figures import budget, compared, mean, recipe, seeds_by, spread, taught, where_made
from ledger.gaps import difference
from ledger.plan import Row

Way = tuple[str, str]
"""What was taught, and the rest of the recipe."""


def recipes(lines: Iterable[Line]) -> Iterable[str]:
    """Contenders that were fine-tuned in several ways, over their seeds; the best on validation images comes first."""
    found = {cut: seeds_by(same, _way) for cut, same in groupby(sorted(compared(lines), key=_cut), _cut)}
    several = {cut: ways for cut, ways in found.items() if len(ways) > 1}
    if several:
        head = "| network | MACs | epochs | contender | taught | recipe | n | val | test | to the first way |"
        rule = "| --- | ---: | ---: | --- | --- | --- | ---: | ---: | ---: | ---: |"
        body = [row for cut, ways in several.items() for row in _ways(cut, ways)]
        where = where_made(line for ways in several.values() for same in ways.values() for line in same)
        title = "**The same contender, fine-tuned in several ways**"
        yield "\n".join([title, "", head, rule, *body, "", where])


def _cut(line: Line) -> tuple[Any, ...]:
    return *budget(line), line["row"]["contender"]


def _way(row: dict[str, Any]) -> Way:
    return taught(row), recipe(row)


def _ways(cut: tuple[Any, ...], ways: Mapping[Way, Sequence[Line]]) -> Iterable[str]:
    network, macs, epochs, label = cut
    usual = [way for way in ways if way[1] == recipe({"lr": Row.lr})]
    first = min(usual or ways, key=lambda way: (way[0] != "outputs", not way[0].startswith("outputs")))
    for way, same in sorted(ways.items(), key=lambda item: -mean(item[1], "val")):
        gap = difference(same, ways[first]) if way != first else ""
        yield (
            f"| {network} | {-macs:.0%} | {epochs} | {label} | {' | '.join(way)} | {len(same)} | "
            f"{spread(same, 'val')} | {spread(same, 'test')} | {gap} |"
        )


# -- settings of the methods


def settings(lines: Iterable[Line]) -> Iterable[str]:
    """Other settings of a method beside its own, of the same seed and recipe."""
    usual = {_without_options(line["row"]): line for line in compared(lines)}
    found = [line for line in lines if line["table"] == "settings" and not line["refused"]]
    if found:
        title = "**Settings of the methods, beside those of the tables above**"
        head = "| | setting | seed | val, cut | val | test | without it: val | test | to without |"
        rule = "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
        body = [_setting(line, usual.get(_without_options(line["row"]))) for line in found]
        yield "\n".join([title, "", head, rule, *body, "", where_made(found)])


def _setting(line: Line, own: Line | None) -> str:
    row, without = line["row"], own["row"]["options"] if own else {}
    changed = [f"{name} {value}" for name, value in row["options"].items() if without.get(name) != value]
    beside = f"{own['val']:.2%} | {own['test']:.2%} | {difference([line], [own])}" if own else " | | not made yet"
    return (
        f"| {row['contender']} | {', '.join(changed)} | {row['seed']} | {line['cut']:.2%} | {line['val']:.2%} | "
        f"{line['test']:.2%} | {beside} |"
    )


def _without_options(row: dict[str, Any]) -> str:
    return json.dumps({name: value for name, value in row.items() if name != "options"}, sort_keys=True)
