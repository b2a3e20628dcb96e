"""One contender in several ways: fine-tuned by other recipes, or with other settings of its method."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import groupby
from typing import Any

from ledger.book import Line
from ledger.figures import CUTS, budget, compared, recipe, taught, where_made
from ledger.gaps import GAPS, difference


def recipes(lines: Iterable[Line]) -> Iterable[str]:
    """Contenders of one seed that were fine-tuned in several ways; the best on validation images comes first."""
    same = groupby(sorted(compared(lines), key=_cut), _cut)
    found = {key: sorted(tried, key=lambda line: -line["val"]) for key, tried in same}
    several = {key: tried for key, tried in found.items() if len(tried) > 1}
    if not several:
        return
    head = "| network | MACs | epochs | contender | seed | taught | recipe | val | test |"
    rule = "| --- | ---: | ---: | --- | ---: | --- | --- | ---: | ---: |"
    body = [
        f"| {network} | {-macs:.0%} | {epochs} | {label} | {seed} | {taught(line['row'])} | {recipe(line['row'])} | "
        f"{line['val']:.2%} | {line['test']:.2%} |"
        for (network, macs, epochs, label, seed), tried in several.items()
        for line in tried
    ]
    where = where_made(line for tried in several.values() for line in tried)
    yield "\n".join(["**The same cut, fine-tuned in several ways**", "", head, rule, *body, "", where])


def _cut(line: Line) -> tuple[Any, ...]:
    return *budget(line), line["row"]["contender"], line["row"]["seed"]


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
        yield "\n".join([title, "", head, rule, *body, "", f"{where_made(found)} {GAPS} {CUTS}"])


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
