"""Markdown tables made of the ledger alone; each states its seeds, spread, images and machines."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

import numpy as np
from scipy import stats

from ledger.book import Line
from ledger.plan import CONTENDERS, DEFAULT, EPOCH, PEERS
from sentei.comparison.statistics import Spread, answers_of, paired
from sentei.methods.common.searching import WidthSearch
from sentei.train import Recipe

COMPARED = ("half", "third", "long", "resnet56")
TEST_IMAGES, RESAMPLES = 10_000, 1000
REFERENCE = "uniform"
"""What all others are held against, and the best of the other tools."""
COLUMNS = (
    "*n*: seeds; ±: their standard deviation, in *to* others the standard error of the difference, over seeds and "
    "test images, image by image where it is known which ones are right; a tie lies within two of those. *val, cut*: "
    "before fine-tuning."
)
Experiments = dict[str, list[Line]]
"""Lines by contender, one a seed."""


def tables(lines: Sequence[Line]) -> str:
    """All tables that these lines give.

    >>> tables([])
    'The ledger is empty.'
    """
    made = (_comparisons, _defaults, _recipes, _searches, _points, _fidelities, _refusals)
    parts = [table for kind in made for table in kind(lines)]
    return "\n\n".join(parts) if parts else "The ledger is empty."


# -- methods at equal cost


def _comparisons(lines: Iterable[Line]) -> Iterable[str]:
    """A table for each network, budget, total and recipe with at least two contenders; of long runs there is one."""
    finished = [line for line in lines if not line["refused"] and line["table"] in COMPARED]
    for key, same in groupby(sorted(finished, key=_ground), _ground):
        alike = list(same)
        experiments = _by_contender(alike)
        if len(experiments) > 1 or alike[0]["table"] == "long":
            yield comparison(key, experiments)


def _ground(line: Line) -> tuple[Any, ...]:
    row = line["row"]
    kind = row["network"], -row["budget"].get("macs", 0), row["epochs"], not row["distill"]
    return *kind, _recipe(row), row.get("hints", 0.0)


def _by_contender(lines: Iterable[Line]) -> Experiments:
    found: Experiments = defaultdict(list)
    for line in sorted(lines, key=lambda line: int(line["row"]["seed"])):
        found[line["row"]["contender"]].append(line)
    return found


def comparison(key: tuple[Any, ...], experiments: Experiments) -> str:
    network, macs, epochs, plain, recipe, hints = key
    some = next(iter(experiments.values()))[0]
    ordered = sorted(experiments, key=lambda label: -_mean(experiments[label], "test"))
    teacher = "the dense network as teacher" + (f", of features too (weight {hints:g})" if hints else "")
    taught = "without a teacher" if plain else teacher
    title = (
        f"**{network}, {-macs:.0%} of the MACs, {epochs} x 45,000 training images in all, {taught}** ({recipe}; "
        f"dense {some['dense']['test']:.2%} test, {some['dense']['macs'] / 1e6:.2f} M MACs, "
        f"{some['dense']['params']:,} parameters)"
    )
    references = {label: experiments.get(label, []) for label in (REFERENCE, *_best_peer(experiments))}
    gaps = "".join(f" to {label} |" for label in references)
    head = f"| | n | val, cut | val | test |{gaps} MACs | parameters | images before fine-tuning | seconds |"
    rule = f"| --- | ---: | ---: | ---: | ---: |{' ---: |' * len(references)} ---: | ---: | --- | ---: |"
    body = [_row(label, experiments[label], references) for label in ordered]
    where = _where(line for same in experiments.values() for line in same)
    return "\n".join([title, "", head, rule, *body, "", f"{where} {COLUMNS}"])


def _best_peer(experiments: Experiments) -> list[str]:
    """The best of the other tools on validation images, if there is any."""
    peers = [label for label in experiments if label in PEERS]
    return [max(peers, key=lambda label: _mean(experiments[label], "val"))] if peers else []


def _row(label: str, lines: Sequence[Line], references: Experiments) -> str:
    seconds = [sum(s for name, s in line["seconds"].items() if name != "total") for line in lines]
    cells = (
        label, len(lines), f"{_mean(lines, 'cut'):.2%}", _spread(lines, "val"), _spread(lines, "test"),
        *("" if label == name else _difference(lines, reference) for name, reference in references.items()),
        f"{_share(lines, 'macs'):.1%}", f"{_share(lines, 'params'):.1%}", _before_tuning(lines[0]),
        f"{sum(seconds) / len(seconds):,.0f}",
    )  # fmt: skip
    return f"| {' | '.join(map(str, cells))} |"


def _difference(lines: Sequence[Line], reference: Sequence[Line]) -> str:
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


def _mean(lines: Sequence[Line], name: str) -> float:
    return sum(line[name] for line in lines) / len(lines)


def _share(lines: Sequence[Line], name: str) -> float:
    return sum(line[name] / line["dense"][name] for line in lines) / len(lines)


def _spread(lines: Sequence[Line], name: str) -> str:
    found = Spread.of([line[name] for line in lines])
    assert found is not None
    return f"{found.mean:.2%}" + (f" ± {100 * found.deviation:.2f}" if found.deviation is not None else "")


def _where(lines: Iterable[Line]) -> str:
    """Seeds, machines and versions in a sentence."""
    found = list(lines)
    seeds = sorted({line["row"]["seed"] for line in found})
    machines = Counter(line["machine"].get("gpu") or line["machine"]["cpu"] for line in found)
    threads = sorted({line["machine"]["threads"] for line in found})
    torch = sorted({line["versions"]["torch"] for line in found})
    days = sorted(line["when"] for line in found)
    peers = {line["versions"].get("torch-pruning") for line in found if line["row"]["method"] == "torch-pruning"}
    return (
        f"Seeds {', '.join(map(str, seeds))}; {', '.join(f'{name} ({n})' for name, n in machines.items())}, "
        f"{' or '.join(map(str, threads))} threads, torch {', '.join(torch)}"
        + "".join(f", Torch-Pruning {version}" for version in peers)
        + f", {days[0]} to {days[-1]}."
    )


# -- sentei as it is beside other tools


def _defaults(lines: Iterable[Line]) -> Iterable[str]:
    """What `sentei prune` does unless told otherwise, less the cuts of other tools, fine-tuned with and without a
    teacher."""
    usual = [line for line in lines if line["table"] in COMPARED and not line["refused"] and _is_usual(line["row"])]
    body = []
    for key, same in groupby(sorted(usual, key=_budget), _budget):
        alike = list(same)
        own = [line for line in alike if _is_default(line["row"])]
        others = _by_way(line for line in alike if line["row"]["contender"] in PEERS)
        if own and others:
            body.append(_beside(key, DEFAULT, own, ""))
            body += [_beside(key, label, tried, _difference(own, tried)) for label, tried in others]
    if body:
        title = "**sentei as it is by default, less the cuts of other tools**"
        head = f"| network | MACs | epochs | | taught | n | val | test | {DEFAULT} less it |"
        rule = "| --- | ---: | ---: | --- | --- | ---: | ---: | ---: | ---: |"
        where = _where(line for line in usual if _is_default(line["row"]) or line["row"]["contender"] in PEERS)
        yield "\n".join([title, "", head, rule, *body, "", f"{where} {COLUMNS}"])


def _is_usual(row: dict[str, Any]) -> bool:
    return row["lr"] == 0.02 and not row.get("recipe")


def _is_default(row: dict[str, Any]) -> bool:
    return row["contender"] == DEFAULT and row["distill"] and row.get("hints") == Recipe.hint_weight


def _budget(line: Line) -> tuple[Any, ...]:
    row = line["row"]
    return row["network"], -row["budget"].get("macs", 0), row["epochs"]


def _by_way(lines: Iterable[Line]) -> list[tuple[str, list[Line]]]:
    """Lines by contender and teacher, a seed each, the best on validation images first."""
    found: dict[tuple[str, str], list[Line]] = defaultdict(list)
    for line in sorted(lines, key=lambda line: int(line["row"]["seed"])):
        found[line["row"]["contender"], _taught(line["row"])].append(line)
    return sorted(((label, same) for (label, _), same in found.items()), key=lambda way: -_mean(way[1], "val"))


def _beside(key: tuple[Any, ...], label: str, lines: Sequence[Line], ahead: str) -> str:
    network, macs, epochs = key
    return (
        f"| {network} | {-macs:.0%} | {epochs} | {label} | {_taught(lines[0]['row'])} | {len(lines)} | "
        f"{_spread(lines, 'val')} | {_spread(lines, 'test')} | {ahead} |"
    )


# -- one cut, several ways to fine-tune


def _recipes(lines: Iterable[Line]) -> Iterable[str]:
    """Contenders of one seed that were fine-tuned in several ways; the best on validation images comes first."""
    finished = [line for line in lines if line["table"] in COMPARED and not line["refused"]]
    same = groupby(sorted(finished, key=_cut), _cut)
    found = {key: sorted(tried, key=lambda line: -line["val"]) for key, tried in same}
    several = {key: tried for key, tried in found.items() if len(tried) > 1}
    if not several:
        return
    head = "| network | MACs | epochs | contender | seed | taught | recipe | val | test |"
    rule = "| --- | ---: | ---: | --- | ---: | --- | --- | ---: | ---: |"
    body = [
        f"| {network} | {-macs:.0%} | {epochs} | {label} | {seed} | {_taught(line['row'])} | {_recipe(line['row'])} | "
        f"{line['val']:.2%} | {line['test']:.2%} |"
        for (network, macs, epochs, label, seed), tried in several.items()
        for line in tried
    ]
    where = _where(line for tried in several.values() for line in tried)
    yield "\n".join(["**The same cut, fine-tuned in several ways**", "", head, rule, *body, "", where])


def _recipe(row: dict[str, Any]) -> str:
    return f"learning rate {row['lr']}" + "".join(f", {name} {value}" for name, value in row.get("recipe", {}).items())


def _taught(row: dict[str, Any]) -> str:
    features = f", features x {row['hints']:g}" if row.get("hints") else ""
    return f"outputs{features}" if row["distill"] else "nothing"


def _cut(line: Line) -> tuple[Any, ...]:
    row = line["row"]
    return row["network"], -row["budget"].get("macs", 0), row["epochs"], row["contender"], row["seed"]


# -- evaluations against accuracy


def _searches(lines: Iterable[Line]) -> Iterable[str]:
    found = _by_contender(line for line in lines if line["table"] == "search" and not line["refused"])
    if not found:
        return
    head = "| search | structures | n | val, cut | val | test | seconds of search | epochs' worth |"
    rule = "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    body = []
    for label, same in sorted(found.items(), key=lambda item: list(CONTENDERS).index(item[0])):
        method, count = label.rsplit(" ", 1)
        seconds = sum(line["seconds"]["search"] for line in same) / len(same)
        body.append(
            f"| {method} | {count} | {len(same)} | {_mean(same, 'cut'):.2%} | {_spread(same, 'val')} | "
            f"{_spread(same, 'test')} | {seconds:,.0f} | {_epochs_worth(same[0]):.1f} |"
        )
    where = _where(line for same in found.values() for line in same)
    worth = (
        "*epochs' worth*: the images that were measured, in epochs of training the dense network, a pass forward at "
        "the budget's MACs against three at its own; ABCPruner trains structures for 30 to 34 epochs."
    )
    title = "**How many structures a search measures**"
    yield "\n".join([title, "", head, rule, *body, "", f"{where} {worth}"])


def _epochs_worth(line: Line) -> float:
    row, how = line["row"], WidthSearch
    images = line["evaluations"] * (how.calibration_images + how.validation_images)
    return float(images * row["budget"]["macs"] / (3 * EPOCH))


# -- ISTA towards the paper's points


def _points(lines: Iterable[Line]) -> Iterable[str]:
    found = [line for line in lines if line["table"] == "points" and not line["refused"]]
    if not found:
        return
    head = "| | epochs | of them sparse | parameters | MACs | val | test |"
    rule = "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    body = [
        f"| ista to {line['row']['budget']['params']:.0%} of the parameters | {line['row']['epochs']} | "
        f"{line['images']['sparse'] / 45_000:.1f} | {_share([line], 'params'):.1%} | {_share([line], 'macs'):.1%} | "
        f"{line['val']:.2%} | {line['test']:.2%} |"
        for line in found
    ]
    yield "\n".join(["**ISTA towards the points of its paper**", "", head, rule, *body, "", _where(found)])


# -- proxies against real trainings


def _fidelities(lines: Iterable[Line]) -> Iterable[str]:
    found = [line for line in lines if line["table"] == "fidelity" and not line["refused"]]
    yield from (fidelity(line) for line in found if line["row"]["contender"] == "fidelity")
    if len(found) > 1:
        yield _supernets(found)


def _supernets(lines: Sequence[Line]) -> str:
    """A line for each number of stages and length of the supernet, over the same structures."""
    proxies = ("stagewise", "stagewise-distance", "sandwich", "random-path")
    body = []
    for line in sorted(lines, key=lambda line: (line["row"]["options"]["supernet_epochs"], _stages(line))):
        told = [line["proxies"].get(name) for name in proxies]
        cells = [f"{p['tau']:+.2f} ({p['low']:+.2f} .. {p['high']:+.2f})" if p else "" for p in told]
        body.append(f"| {_stages(line)} | {line['row']['options']['supernet_epochs']} | {' | '.join(cells)} |")
    images = f"{lines[0]['row']['limit']:,} images"
    title = f"**The same structures in other supernets: tau, 90 % interval** (epochs of {images})"
    head = f"| stages | epochs of the supernet | {' | '.join(proxies)} |"
    return "\n".join([title, "", head, "| ---: | ---: | --- | --- | --- | --- |", *body, "", _where(lines)])


def _stages(line: Line) -> int:
    """Of ResNet-20 there are three, one for each spatial size, unless they are named."""
    return len(line["row"]["options"].get("stages", ("layer1", "layer2"))) + 1


def fidelity(line: Line) -> str:
    """Kendall's tau of every proxy, and that of the stage-wise one less each other's over the same resamples."""
    row, structures = line["row"], [s for s in line["structures"] if s["band"]]
    real = np.array([np.mean(s["real"]) for s in structures])
    title = (
        f"**Proxies beside {len(structures)} structures of {row['network']}, {row['budget']['macs']:.0%} of the MACs, "
        f"trained {len(structures[0]['real'])} times each, {row['epochs']} epochs of {row['limit']:,} images** "
        f"(validation accuracy {real.min():.2%} to {real.max():.2%})"
    )
    head = "| proxy | tau | 90 % interval | stagewise less it | 90 % interval | decided |"
    body = []
    for name, found in sorted(line["proxies"].items(), key=lambda item: -item[1]["tau"]):
        ahead, low, high = tau_ahead(*(np.array([s[n] for s in structures]) for n in ("stagewise", name)), real)
        verdict = "" if name == "stagewise" else "better" if low > 0 else "worse" if high < 0 else "no"
        told = ("", "") if name == "stagewise" else (f"{ahead:+.2f}", f"{low:+.2f} .. {high:+.2f}")
        interval = f"{found['low']:+.2f} .. {found['high']:+.2f}"
        body.append(f"| {name} | {found['tau']:+.2f} | {interval} | {told[0]} | {told[1]} | {verdict} |")
    agreement = f"Two trainings of one structure agree to tau {line['agreement']:+.2f}. " if line["agreement"] else ""
    rule = "| --- | ---: | ---: | ---: | ---: | --- |"
    return "\n".join([title, "", head, rule, *body, "", agreement + _where([line])])


def tau_ahead(first: np.ndarray, second: np.ndarray, real: np.ndarray) -> tuple[float, float, float]:
    """By how much the first proxy's tau is higher than the second's, with a 90 % interval by a paired bootstrap.

    >>> tau_ahead(np.arange(9.0), np.arange(9.0), np.arange(9.0))
    (0.0, 0.0, 0.0)
    """
    rng = np.random.default_rng(0)

    def ahead(of: np.ndarray) -> float:
        taus = (stats.kendalltau(proxy[of], real[of]).statistic for proxy in (first, second))
        return float(np.subtract(*np.nan_to_num(list(taus))))

    gaps = [ahead(rng.integers(0, len(real), len(real))) for _ in range(RESAMPLES)]
    low, high = np.percentile(gaps, [5, 95])
    return ahead(np.arange(len(real))), float(low), float(high)


# -- what could not be done


def _refusals(lines: Iterable[Line]) -> Iterable[str]:
    refused = [line for line in lines if line["refused"]]
    if refused:
        told = [f"- {line['row']['contender']} on {line['row']['network']}: {line['refused']}" for line in refused]
        yield "\n".join(["**Refused**", "", *told])
