"""Markdown tables made of the ledger alone; each states its seeds, spread, images and machines."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ledger.book import Line
from ledger.comparisons import comparisons, defaults
from ledger.figures import by_contender, judging, mean, share, spread, where_made
from ledger.plan import CONTENDERS
from ledger.proxies import fidelities
from ledger.variants import recipes, settings

LEGEND = """\
*n*: seeds; *±*: their standard deviation, in differences the standard error, over the seeds that both have (said
where one has more) and over test images, image by image where it is known which ones are right. *tie*: within two
standard errors or, of several seeds, within the 95 % interval of Student's t, which is wider; of one seed nothing is
known but the test images. *val, cut*: validation accuracy before fine-tuning. *images before fine-tuning*: of those
in the title. *judging*: passes forward by which structures are judged, on top of those, at most, in epochs of
training the dense network (an image takes one pass at the budget's MACs against three at its own). *seconds*: of the
fastest seed. *to the first way*: to outputs as teacher alone where that was tried, else to features too. At equal
cost the best on test images come first, elsewhere the best on validation images.

*abc reconstruct*: structures judged with weights that make up for the cut; *abc cold*: begun with random structures;
*abc --paper*: the paper's own search, whose alpha decides the MACs; *sandwich*: a colony in a sandwich supernet;
*stagewise by block*: with a stage for each block; *tp*: Torch-Pruning; *modelopt*: NVIDIA ModelOpt."""


def tables(lines: Sequence[Line]) -> str:
    """All tables that these lines give, and how to read them.

    >>> tables([])
    'The ledger is empty.'
    """
    made = (comparisons, defaults, recipes, settings, _searches, _points, fidelities, _refusals)
    parts = [table for kind in made for table in kind(lines)]
    return "\n\n".join([LEGEND, *parts]) if parts else "The ledger is empty."


# -- evaluations against accuracy


def _searches(lines: Iterable[Line]) -> Iterable[str]:
    found = by_contender(line for line in lines if line["table"] == "search" and not line["refused"])
    if not found:
        return
    head = "| search | structures | n | val, cut | val | test | seconds of search | judging |"
    rule = "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    body = []
    for label, same in sorted(found.items(), key=lambda item: list(CONTENDERS).index(item[0])):
        method, count = label.rsplit(" ", 1)
        seconds = sum(line["seconds"]["search"] for line in same) / len(same)
        body.append(
            f"| {method} | {count} | {len(same)} | {mean(same, 'cut'):.2%} | {spread(same, 'val')} | "
            f"{spread(same, 'test')} | {seconds:,.0f} | {judging(same[0]):.1f} |"
        )
    where = where_made(line for same in found.values() for line in same)
    paper = "ABCPruner trains structures for 30 to 34 epochs."
    title = "**How many structures a search measures**"
    yield "\n".join([title, "", head, rule, *body, "", f"{where} {paper}"])


# -- ISTA towards the paper's points


def _points(lines: Iterable[Line]) -> Iterable[str]:
    found = [line for line in lines if line["table"] == "points" and not line["refused"]]
    if not found:
        return
    head = "| | epochs | of them sparse | parameters | MACs | val | test |"
    rule = "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    body = [
        f"| ista to {line['row']['budget']['params']:.0%} of the parameters | {line['row']['epochs']} | "
        f"{line['images']['sparse'] / 45_000:.1f} | {share([line], 'params'):.1%} | {share([line], 'macs'):.1%} | "
        f"{line['val']:.2%} | {line['test']:.2%} |"
        for line in found
    ]
    yield "\n".join(["**ISTA towards the points of its paper**", "", head, rule, *body, "", where_made(found)])


# -- what could not be done


def _refusals(lines: Iterable[Line]) -> Iterable[str]:
    refused = [line for line in lines if line["refused"]]
    if refused:
        told = [f"- {line['row']['contender']} on {line['row']['network']}: {line['refused']}" for line in refused]
        yield "\n".join(["**Refused**", "", *told])
