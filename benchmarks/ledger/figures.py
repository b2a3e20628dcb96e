"""What the tables have in common: means and spreads of lines, how a row was fine-tuned, and where it was measured."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from ledger.book import Line
from ledger.plan import COMPARED, EPOCH, HELD, TOOLS
from sentei.comparison.statistics import Spread
from sentei.methods.registry import METHODS, method_of

Experiments = dict[str, list[Line]]
"""Lines by contender, one a seed."""
Key = TypeVar("Key")


def compared(lines: Iterable[Line]) -> list[Line]:
    """Those of contenders at equal cost."""
    return [line for line in lines if line["table"] in COMPARED and not line["refused"]]


def budget(line: Line) -> tuple[Any, ...]:
    """Network, MACs and epochs, the largest budget first."""
    row = line["row"]
    return row["network"], -row["budget"].get("macs", 0), row["epochs"]


def by_contender(lines: Iterable[Line]) -> Experiments:
    return seeds_by(lines, lambda row: str(row["contender"]))


def seeds_by(lines: Iterable[Line], key: Callable[[dict[str, Any]], Key]) -> dict[Key, list[Line]]:
    """Lines by what a key says of their rows, in the order of their seeds."""
    found: dict[Key, list[Line]] = defaultdict(list)
    for line in sorted(lines, key=lambda line: int(line["row"]["seed"])):
        found[key(line["row"])].append(line)
    return found


def mean(lines: Sequence[Line], name: str) -> float:
    return sum(line[name] for line in lines) / len(lines)


def share(lines: Sequence[Line], name: str) -> float:
    return sum(line[name] / line["dense"][name] for line in lines) / len(lines)


def spread(lines: Sequence[Line], name: str) -> str:
    found = Spread.of([line[name] for line in lines])
    assert found is not None
    return f"{found.mean:.2%}" + (f" ± {100 * found.deviation:.2f}" if found.deviation is not None else "")


def where_made(lines: Iterable[Line]) -> str:
    """Seeds, machines and versions in a sentence."""
    found = list(lines)
    seeds = sorted({line["row"]["seed"] for line in found})
    machines = Counter(line["machine"].get("gpu") or line["machine"]["cpu"] for line in found)
    threads = sorted({line["machine"]["threads"] for line in found})
    torch = sorted({line["versions"]["torch"] for line in found})
    days = sorted(line["when"] for line in found)
    tools = sorted({_tool(line) for line in found if line["row"]["method"] in TOOLS})
    return (
        f"Seeds {', '.join(map(str, seeds))}; {', '.join(f'{name} ({n})' for name, n in machines.items())}, "
        f"{' or '.join(map(str, threads))} threads, torch {', '.join(torch)}"
        + "".join(f", {tool}" for tool in tools)
        + f", {days[0]} to {days[-1]}."
    )


def _tool(line: Line) -> str:
    """The other tool that made the cut, with its version."""
    package, name = TOOLS[line["row"]["method"]]
    return f"{name} {line['versions'][package]}"


def recipe(row: dict[str, Any]) -> str:
    return f"learning rate {row['lr']}" + "".join(f", {name} {value}" for name, value in row.get("recipe", {}).items())


def taught(row: dict[str, Any]) -> str:
    features = f", features x {row['hints']:g}" if row.get("hints") else ""
    return f"outputs{features}" if row["distill"] else "nothing"


def judging(line: Line) -> float:
    """Passes forward by which structures were judged, in epochs of training the dense network, which takes three passes
    an image."""
    row = line["row"]
    images = line.get("judged")  # a peer's own count
    if images is None and row["method"] in METHODS:
        images = method_of(row["method"], row["options"])[1].judges_on(HELD)
    return float((images or 0) * row["budget"].get("macs", 1) / (3 * EPOCH))
