"""Damage to the files of a saved network: every change must be refused in words, or change nothing that is loaded.

`python -m tests.surgery.damage` tries 1,000 flips and 200 structural changes of each file and prints what came of them.
"""

import copy
import hashlib
import json
import shutil
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from sentei import SenteiError, cut, load, save, trace
from tests.proof import random_plan

X = torch.zeros(2, 3, 8, 8)
FILES = ("model.safetensors", "plan.json")
ODD: tuple[Any, ...] = (
    None, True, -1, 0, 7, 2**70, 1.5, float("nan"), float("inf"), "", "float32", "\ud800", [], [0], [[]], [1] * 50, {},
    {"tensor": [1]},
)  # fmt: skip


def dense() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.Flatten(), nn.Linear(6 * 16, 4)
    )


def written(folder: Path) -> Path:
    model = dense().eval()
    graph = trace(model, X)
    plan = random_plan(graph, 0, 0.5)
    save(cut(model, graph, plan), plan, folder, source="tests:dense")
    return folder


def flipped(content: bytes, rng: np.random.Generator) -> bytes:
    """One to three bits, or one byte replaced, removed or doubled."""
    out = bytearray(content)
    at = int(rng.integers(len(out)))
    match int(rng.integers(4)):
        case 0:
            for place in rng.integers(0, len(out), int(rng.integers(1, 4))):
                out[place] ^= 1 << int(rng.integers(8))
        case 1:
            out[at] = int(rng.integers(256))
        case 2:
            del out[at]
        case _:
            out.insert(at, out[at])
    return bytes(out)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return found + [p for key, inner in items for p in places(inner, (*path, key))]


def restructured(record: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    """A value removed, replaced, renamed, wrapped or put somewhere else; every depth is equally likely."""
    out = copy.deepcopy(record)
    every = places(out)
    depth = rng.choice(sorted({len(p) for p in every}))
    at = [p for p in every if len(p) == depth]
    *above, key = at[int(rng.integers(len(at)))]
    parent: Any = out
    for step in above:
        parent = parent[step]
    odd = copy.deepcopy(ODD[int(rng.integers(len(ODD)))])
    match int(rng.integers(6)):
        case 0:
            del parent[key]
        case 1:
            parent[key] = odd
        case 2:
            parent[key] = [parent[key]]
        case 3 if isinstance(parent, dict):
            parent[f"{key}x"] = parent.pop(key)
        case 3:
            parent.insert(key, odd)
        case 4:
            other: Any = out
            for step in every[int(rng.integers(len(every)))]:
                other = other[step]
            parent[key] = copy.deepcopy(other)
        case _:
            parent[key] = str(parent[key])
    return out


def resealed(record: dict[str, Any]) -> bytes:
    """As someone would write it who knows how checksums are made."""
    body = {k: v for k, v in record.items() if k != "sha256"}
    seal = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    return json.dumps({**body, "sha256": seal}, indent=1).encode()


def outcome(folder: Path, reference: nn.Module) -> str:
    """What loading gives: a refusal, the same network, another one, or an error that is none of ours."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loaded = load(dense(), folder)
    except SenteiError as error:
        return "refused" if str(error) else "refused without a word"
    except Exception as error:  # what must not happen
        return f"{type(error).__name__}: {error}"
    same = all(torch.equal(t, reference.state_dict()[n]) for n, t in loaded.state_dict().items())
    return "the same network" if same else "another network"


def tried(flips: int, structures: int, seed: int = 0) -> dict[str, Counter[str]]:
    """Outcomes of damage, by kind: flips of each file, and structural changes of plan.json, sealed anew or not."""
    rng, found = np.random.default_rng(seed), dict[str, Counter[str]]()
    with tempfile.TemporaryDirectory() as name:
        folder = written(Path(name) / "whole")
        reference, work = load(dense(), folder), Path(name) / "damaged"
        record = json.loads((folder / "plan.json").read_text())

        def attempt(kind: str, file: str, content: bytes) -> None:
            shutil.copytree(folder, work, dirs_exist_ok=True)
            (work / file).write_bytes(content)
            if content != (folder / file).read_bytes():
                found.setdefault(kind, Counter())[outcome(work, reference)] += 1

        for file in FILES:
            content = (folder / file).read_bytes()
            for _ in range(flips):
                attempt(f"flips of {file}", file, flipped(content, rng))
        for _ in range(structures):
            changed = restructured(record, rng)
            attempt("structural changes", "plan.json", json.dumps(changed, indent=1).encode())
            attempt("structural changes, sealed anew", "plan.json", resealed(changed))
    return found


def faults(found: dict[str, Counter[str]]) -> list[str]:
    """What should not have come: a traceback anywhere, or a network where no seal was made anew."""
    wrong = []
    for kind, outcomes in found.items():
        allowed = {"refused", "the same network"} if "anew" in kind else {"refused"}
        wrong += [f"{kind}: {what} ({n} times)" for what, n in outcomes.items() if what not in allowed]
    return wrong


if __name__ == "__main__":
    torch.manual_seed(0)
    results = tried(1000, 200, seed=int(sys.argv[1]) if len(sys.argv) > 1 else 0)
    for kind, outcomes in results.items():
        print(f"{kind}: {', '.join(f'{n} {what}' for what, n in outcomes.most_common())}")
    sys.exit("\n".join(faults(results)) or 0)
