"""Contenders at equal cost: a table for each network and budget, and sentei's default beside other tools."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

from ledger.book import Line
from ledger.figures import (
    Experiments,
    budget,
    by_contender,
    compared,
    judging,
    mean,
    recipe,
    seeds_by,
    share,
    spread,
    taught,
    where_made,
)
from ledger.gaps import difference
from ledger.plan import CONTENDERS, DEFAULT, PEERS, REFERENCE, Row
from sentei.train import Recipe


def comparisons(lines: Iterable[Line]) -> Iterable[str]:
    """A table for each network, budget, total and recipe with at least two contenders; of long runs there is one."""
    for key, same in groupby(sorted(compared(lines), key=_ground), _ground):
        alike = list(same)
        experiments = by_contender(alike)
        if len(experiments) > 1 or alike[0]["table"] == "long":
            yield comparison(key, experiments)


def _ground(line: Line) -> tuple[Any, ...]:
    row = line["row"]
    return *budget(line), not row["distill"], recipe(row), row.get("hints", 0.0)


def comparison(key: tuple[Any, ...], experiments: Experiments) -> str:
    network, macs, epochs, plain, trained, hints = key
    some = next(iter(experiments.values()))[0]
    images = max(line["images"]["total"] for same in experiments.values() for line in same)
    ordered = sorted(experiments, key=lambda label: -mean(experiments[label], "test"))
    teacher = "the dense network as teacher" + (f", of features too (weight {hints:g})" if hints else "")
    way = "without a teacher" if plain else teacher
    title = (
        f"**{network}, {-macs:.0%} of the MACs, {epochs} epochs in all ({images:,} training images), {way}** "
        f"({trained}; dense {some['dense']['test']:.2%} test, {some['dense']['macs'] / 1e6:.2f} M MACs, "
        f"{some['dense']['params']:,} parameters)"
    )
    references = {label: experiments.get(label, []) for label in (REFERENCE, *_best_peers(experiments))}
    gaps = "".join(f" to {label} |" for label in references)
    head = f"| | n | val, cut | val | test |{gaps} MACs | parameters | images before fine-tuning | judging | seconds |"
    rule = f"| --- | ---: | ---: | ---: | ---: |{' ---: |' * len(references)} ---: | ---: | --- | ---: | ---: |"
    body = [_row(label, experiments[label], references) for label in ordered]
    where = where_made(line for same in experiments.values() for line in same)
    return "\n".join([title, "", head, rule, *body, "", where])


def _best_peers(experiments: Experiments) -> list[str]:
    """Of each other tool the best cut on validation images."""
    peers = sorted(
        (label for label in experiments if label in PEERS), key=lambda label: mean(experiments[label], "val")
    )
    return list({CONTENDERS[label].method: label for label in peers}.values())


def _row(label: str, lines: Sequence[Line], references: Experiments) -> str:
    seconds = min(sum(s for name, s in line["seconds"].items() if name != "total") for line in lines)
    cells = (
        label, len(lines), f"{mean(lines, 'cut'):.2%}", spread(lines, "val"), spread(lines, "test"),
        *("" if label == name else difference(lines, reference) for name, reference in references.items()),
        f"{share(lines, 'macs'):.1%}", f"{share(lines, 'params'):.1%}", _before_tuning(lines[0]),
        f"{worth:.1f}" if (worth := judging(lines[0])) else "", f"{seconds:,.0f}",
    )  # fmt: skip
    return f"| {' | '.join(map(str, cells))} |"


def _before_tuning(line: Line) -> str:
    return ", ".join(f"{name} {n:,}" for name, n in line["images"].items() if n and name not in ("finetune", "total"))


# -- sentei as it is beside other tools


def defaults(lines: Iterable[Line]) -> Iterable[str]:
    """What `sentei prune` does unless told otherwise, less the cuts of other tools, fine-tuned with and without a
    teacher."""
    usual = [line for line in compared(lines) if _is_usual(line["row"])]
    body: list[str] = []
    shown: list[Line] = []
    for key, same in groupby(sorted(usual, key=budget), budget):
        alike = list(same)
        own = [line for line in alike if _is_default(line["row"])]
        others = _by_way(line for line in alike if line["row"]["contender"] in PEERS)
        if own and others:
            body.append(_beside(key, DEFAULT, own, ""))
            body += [_beside(key, label, tried, difference(own, tried)) for label, tried in others]
            shown += [*own, *(line for _, tried in others for line in tried)]
    if body:
        title = "**sentei as it is by default, less the cuts of other tools**"
        head = f"| network | MACs | epochs | | taught | n | val | test | {DEFAULT} less it |"
        rule = "| --- | ---: | ---: | --- | --- | ---: | ---: | ---: | ---: |"
        yield "\n".join([title, "", head, rule, *body, "", where_made(shown)])


def _is_usual(row: dict[str, Any]) -> bool:
    return row["lr"] == Row.lr and not row.get("recipe")


def _is_default(row: dict[str, Any]) -> bool:
    return row["contender"] == DEFAULT and row["distill"] and row.get("hints") == Recipe.hint_weight


def _by_way(lines: Iterable[Line]) -> list[tuple[str, list[Line]]]:
    """Lines by contender and teacher, a seed each, the best on validation images first."""
    found = seeds_by(lines, lambda row: (str(row["contender"]), taught(row)))
    return sorted(((label, same) for (label, _), same in found.items()), key=lambda way: -mean(way[1], "val"))


def _beside(key: tuple[Any, ...], label: str, lines: Sequence[Line], ahead: str) -> str:
    network, macs, epochs = key
    return (
        f"| {network} | {-macs:.0%} | {epochs} | {label} | {taught(lines[0]['row'])} | {len(lines)} | "
        f"{spread(lines, 'val')} | {spread(lines, 'test')} | {ahead} |"
    )
