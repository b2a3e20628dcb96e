"""Proxies against real trainings of structures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from scipy import stats

from ledger.book import Line
from ledger.figures import where_made

RESAMPLES = 1000


def fidelities(lines: Iterable[Line]) -> Iterable[str]:
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
    return "\n".join([title, "", head, "| ---: | ---: | --- | --- | --- | --- |", *body, "", where_made(lines)])


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
    return "\n".join([title, "", head, rule, *body, "", agreement + where_made([line])])


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
