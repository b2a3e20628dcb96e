"""Contenders at equal cost: a table for each network and budget, sentei's default beside other tools, recipes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

from ledger.book import Line
from ledger.figures import Experiments, by_contender, mean, recipe, seeds_by, share, spread, taught, where_made
from ledger.plan import DEFAULT, PEERS, REFERENCE, Row
from sentei.comparison.statistics import answers_of, paired
from sentei.train import Recipe

COMPARED = ("half", "third", "long", "resnet56")
"""Tables whose rows are held against each other at equal cost."""
TEST_IMAGES = 10_000
COLUMNS = (
    "*n*: seeds; ±: their standard deviation, in *to* others the standard error of the difference, over seeds and "
    "test images, image by image where it is known which ones are right; a tie lies within two of those. *val, cut*: "
    "before fine-tuning."
)


def comparisons(lines: Iterable[Line]) -> Iterable[str]:
    """A table for each network, budget, total and recipe with at least two contenders; of long runs there is one."""
    for key, same in groupby(sorted(_compared(lines), key=_ground), _ground):
        alike = list(same)
        experiments = by_contender(alike)
        if len(experiments) > 1 or alike[0]["table"] == "long":
            yield comparison(key, experiments)


def _compared(lines: Iterable[Line]) -> list[Line]:
    return [line for line in lines if line["table"] in COMPARED and not line["refused"]]


def _budget(line: Line) -> tuple[Any, ...]:
    row = line["row"]
    return row["network"], -row["budget"].get("macs", 0), row["epochs"]


def _ground(line: Line) -> tuple[Any, ...]:
    row = line["row"]
    return *_budget(line), not row["distill"], recipe(row), row.get("hints", 0.0)


def comparison(key: tuple[Any, ...], experiments: Experiments) -> str:
    network, macs, epochs, plain, trained, hints = key
    some = next(iter(experiments.values()))[0]
    ordered = sorted(experiments, key=lambda label: -mean(experiments[label], "test"))
    teacher = "the dense network as teacher" + (f", of features too (weight {hints:g})" if hints else "")
    way = "without a teacher" if plain else teacher
    title = (
        f"**{network}, {-macs:.0%} of the MACs, {epochs} x 45,000 training images in all, {way}** ({trained}; "
        f"dense {some['dense']['test']:.2%} test, {some['dense']['macs'] / 1e6:.2f} M MACs, "
        f"{some['dense']['params']:,} parameters)"
    )
    references = {label: experiments.get(label, []) for label in (REFERENCE, *_best_peer(experiments))}
    gaps = "".join(f" to {label} |" for label in references)
    head = f"| | n | val, cut | val | test |{gaps} MACs | parameters | images before fine-tuning | seconds |"
    rule = f"| --- | ---: | ---: | ---: | ---: |{' ---: |' * len(references)} ---: | ---: | --- | ---: |"
    body = [_row(label, experiments[label], references) for label in ordered]
    where = where_made(line for same in experiments.values() for line in same)
    return "\n".join([title, "", head, rule, *body, "", f"{where} {COLUMNS}"])


def _best_peer(experiments: Experiments) -> list[str]:
    """The best of the other tools on validation images, if there is any."""
    peers = [label for label in experiments if label in PEERS]
    return [max(peers, key=lambda label: mean(experiments[label], "val"))] if peers else []


def _row(label: str, lines: Sequence[Line], references: Experiments) -> str:
    seconds = [sum(s for name, s in line["seconds"].items() if name != "total") for line in lines]
    cells = (
        label, len(lines), f"{mean(lines, 'cut'):.2%}", spread(lines, "val"), spread(lines, "test"),
        *("" if label == name else difference(lines, reference) for name, reference in references.items()),
        f"{share(lines, 'macs'):.1%}", f"{share(lines, 'params'):.1%}", _before_tuning(lines[0]),
        f"{sum(seconds) / len(seconds):,.0f}",
    )  # fmt: skip
    return f"| {' | '.join(map(str, cells))} |"


def difference(lines: Sequence[Line], reference: Sequence[Line]) -> str:
    """In points of test accuracy over the seeds that both have; a tie within two standard errors."""
    by_seed = {line["row"]["seed"]: line for line in reference}
    pairs = [(line, by_seed[line["row"]["seed"]]) for line in lines if line["row"]["seed"] in by_seed]
    if not pairs:
        return ""
    own, others = ([pair[i] for pair in pairs] for i in (0, 1))
    values = [[line["test"] for line in side] for side in (own, others)]
    found = paired(*values, images=TEST_IMAGES, answers=answers_of(own, others))
    tie = " (tie)" if abs(found.mean) < 2 * found.error else ""
    return f"{100 * found.mean:+.2f} ± {100 * found.error:.2f}{tie}"


def _before_tuning(line: Line) -> str:
    return ", ".join(f"{name} {n:,}" for name, n in line["images"].items() if n and name not in ("finetune", "total"))


# -- sentei as it is beside other tools


def defaults(lines: Iterable[Line]) -> Iterable[str]:
    """What `sentei prune` does unless told otherwise, less the cuts of other tools, fine-tuned with and without a
    teacher."""
    usual = [line for line in _compared(lines) if _is_usual(line["row"])]
    body: list[str] = []
    shown: list[Line] = []
    for key, same in groupby(sorted(usual, key=_budget), _budget):
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
        yield "\n".join([title, "", head, rule, *body, "", f"{where_made(shown)} {COLUMNS}"])


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


# -- one cut, several ways to fine-tune


def recipes(lines: Iterable[Line]) -> Iterable[str]:
    """Contenders of one seed that were fine-tuned in several ways; the best on validation images comes first."""
    same = groupby(sorted(_compared(lines), key=_cut), _cut)
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
    return *_budget(line), line["row"]["contender"], line["row"]["seed"]


# -- settings of the methods


def settings(lines: Iterable[Line]) -> Iterable[str]:
    """Other settings of a method beside its own, of the same seed and recipe."""
    usual = {_without_options(line["row"]): line for line in _compared(lines)}
    body = []
    for line in (line for line in lines if line["table"] == "settings" and not line["refused"]):
        if own := usual.get(_without_options(line["row"])):
            changed = {k: v for k, v in line["row"]["options"].items() if own["row"]["options"].get(k) != v}
            body.append((line, ", ".join(f"{name} {value}" for name, value in changed.items()), own))
    if body:
        title = "**Settings of the methods, beside those of the tables above**"
        head = "| | setting | seed | val, cut | val | test | without it: val | test | to without |"
        rule = "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
        rows = [
            f"| {line['row']['contender']} | {changed} | {line['row']['seed']} | {line['cut']:.2%} | "
            f"{line['val']:.2%} | {line['test']:.2%} | {own['val']:.2%} | {own['test']:.2%} | "
            f"{difference([line], [own])} |"
            for line, changed, own in body
        ]
        where = where_made(line for line, *_ in body)
        yield "\n".join([title, "", head, rule, *rows, "", f"{where} {COLUMNS}"])


def _without_options(row: dict[str, Any]) -> str:
    return json.dumps({name: value for name, value in row.items() if name != "options"}, sort_keys=True)
