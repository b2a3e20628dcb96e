"""Which tar files hold which part of a data set: a pattern, a folder, or a file that lists them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from glob import glob, has_magic
from pathlib import Path
from typing import Any

import yaml

from sentei.data.sources import candidate_roots
from sentei.errors import DataError
from sentei.extras import required

KIND = "webdataset:"
WORDS = {"train": ("train",), "val": ("val", "validation", "valid"), "test": ("test",)}
"""What the shards of a split are called."""
LISTS = (".yaml", ".yml", ".json")
HOW = (
    "Name them alike (photos-train-000.tar, photos-val-000.tar), or give a file that lists them:  "
    "webdataset:FILE.yaml, with lines such as  train: PATTERN  and  val: PATTERN"
)


@dataclass(frozen=True)
class ShardList:
    """The shards of each split, in order, and the names of the classes where they are written down."""

    sources: dict[str, list[str]]
    names: tuple[str, ...] | None = None


def is_remote(pattern: str) -> bool:
    """Whether shards come out of a command or an address instead of lying in a folder.

    >>> is_remote("pipe:cat a.tar"), is_remote("https://host/a.tar"), is_remote("/data/a-{000..146}.tar")
    (True, True, False)
    """
    return pattern.startswith("pipe:") or re.match(r"[a-z0-9]+://", pattern) is not None


def runs_commands(ref: str) -> bool:
    """Whether a data reference may run a command to get its shards: it fetches them, or a file tells from where."""
    pattern = ref.removeprefix(KIND)
    return ref.startswith(KIND) and (is_remote(pattern) or pattern.lower().endswith(LISTS))


def located_pattern(pattern: str, root: str | Path | None) -> str:
    """A pattern that means the same from every folder; a relative one is looked up here, then in the data root."""
    if is_remote(pattern):
        return pattern
    path = Path(pattern).expanduser()
    if not path.is_absolute() and not _found(_starred(str(path))):
        path = next((r / path for r in candidate_roots(root) if _found(_starred(str(r / path)))), path)
    return str(path.absolute())


def without_pattern(pattern: str) -> Path | None:
    """The file or folder that must be there for a pattern to name anything; None for what is fetched.

    >>> without_pattern("/data/photos-train-{000..146}.tar"), without_pattern("pipe:cat a.tar")
    (PosixPath('/data'), None)
    """
    path = Path(pattern)
    if is_remote(pattern) or not path.is_absolute():
        return None
    return next(p for p in (path, *path.parents) if not re.search(r"[{*?\[]", str(p)))


def shards_of(pattern: str) -> ShardList:
    """The shards that a pattern (absolute, or remote) names. DataError where there are none."""
    path = Path(pattern)
    if is_remote(pattern):
        return ShardList({"train": expanded(pattern)})
    if pattern.lower().endswith(LISTS):
        return _listed(path)
    if path.is_dir():
        sources = _by_word(path)
        return ShardList(sources, _names(path))
    sources = {"train": expanded(pattern), **_beside(pattern)}
    return ShardList(sources, _names(Path(sources["train"][0]).parent))


def expanded(pattern: str) -> list[str]:
    """Every shard of a pattern with braces, as webdataset expands them, and wildcards. DataError for missing files."""
    required("webdataset", "webdataset", "data in shards", DataError)
    from webdataset.shardlists import expand_urls

    try:
        given = expand_urls(pattern)
    except Exception as error:  # braces that do not match, variables that are not set
        raise DataError(f"{pattern} cannot be expanded ({type(error).__name__}: {error}).") from error
    found = {one: [one] if is_remote(one) else _found(one) for one in given}
    missing = [one for one, shards in found.items() if not shards]
    if missing:
        raise DataError(_missing(missing, len(given)))
    return [shard for shards in found.values() for shard in shards]


def _missing(shards: Sequence[str], asked: int) -> str:
    """What is wrong with a pattern that names shards which are not there."""
    first, folder = shards[0], Path(shards[0]).parent
    if not folder.is_dir():
        return f"There is no folder {folder}, so no shard {first}."
    if not Path(first).suffix:
        return f"There is no folder {first}, nor a shard of that name. {HOW}."
    told = f"There is no shard {first}"
    if asked > 1:
        told += f"; {asked - len(shards)} of the {asked} that the pattern names are there"
    if re.search(r"[{}]", first):
        told += "; a range is written {000..146}"
    near = get_close_matches(Path(first).name, [p.name for p in folder.glob("*.tar")], 1)
    return f"{told}. Did you mean {near[0]}?" if near else f"{told}. {HOW}."


def _found(pattern: str) -> list[str]:
    """Files and folders that a pattern without braces names."""
    if is_remote(pattern):
        return []
    if has_magic(pattern) and not Path(pattern).exists():
        return sorted(glob(pattern))
    return [pattern] if Path(pattern).exists() else []


def _starred(pattern: str) -> str:
    """Any number in place of those in braces: splits have different numbers of shards."""
    return re.sub(r"\{[^{}]*\}", "*", pattern)


def _word(split: str) -> str:
    return rf"(?<![A-Za-z])(?:{'|'.join(WORDS[split])})(?![A-Za-z])"


def _beside(pattern: str) -> dict[str, list[str]]:
    """The other splits of a pattern that says train: what has another word in its place."""
    sources = {}
    for split in ("val", "test"):
        for word in WORDS[split]:
            other = re.sub(_word("train"), word, pattern)
            if other != pattern and (found := _found(_starred(other))):
                sources[split] = found
                break
    return sources


def _by_word(folder: Path) -> dict[str, list[str]]:
    """The tar files below a folder, by the word in their names or in those of their folders."""
    sources: dict[str, list[str]] = {}
    for path in sorted(folder.rglob("*.tar")):
        below = str(path.relative_to(folder))
        named = [split for split in WORDS if re.search(_word(split), below, re.IGNORECASE)]
        if len(named) != 1:
            raise DataError(f"{path} says {' and '.join(named) or 'neither train, val nor test'} in its name. {HOW}.")
        sources.setdefault(named[0], []).append(str(path))
    if "train" not in sources:
        images = f"For a folder of images give imagefolder:{folder}. " if any(folder.glob("*/")) else ""
        raise DataError(f"{folder} has no .tar files for training. {images}{HOW}.")
    return {split: sources[split] for split in WORDS if split in sources}


def _listed(file: Path) -> ShardList:
    """A YAML or JSON file: a pattern, or several, for each split; local ones are relative to the file."""
    try:
        content: Any = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise DataError(f"{file} cannot be read ({error}). {HOW}.") from error
    if not isinstance(content, dict) or "train" not in content or set(content) - {*WORDS, "classes"}:
        given = f"the keys {', '.join(map(str, content))}" if isinstance(content, dict) else type(content).__name__
        raise DataError(f"{file} has {given}; expected train, and val or test or both, and perhaps classes. {HOW}.")
    sources = {}
    for split in WORDS:
        if split in content:
            patterns = content[split] if isinstance(content[split], list) else [content[split]]
            whole = (p if is_remote(p) else str(file.parent / Path(p).expanduser()) for p in map(str, patterns))
            sources[split] = [source for p in whole for source in expanded(p)]
    names = content.get("classes")
    if names is not None and not isinstance(names, list):
        raise DataError(f"{file}: classes is {names!r}; expected a list of names, such as  classes: [cat, dog]")
    return ShardList(sources, None if names is None else _checked_names(file, names))


def _names(folder: Path) -> tuple[str, ...] | None:
    """Lines of classes.txt; None where there is none."""
    file = folder / "classes.txt"
    return _checked_names(file, file.read_text(encoding="utf-8").split("\n")) if file.is_file() else None


def _checked_names(file: Path, names: Sequence[Any]) -> tuple[str, ...]:
    found = tuple(text for name in names if (text := str(name).strip()))
    if len(set(found)) != len(found) or not found:
        given = ", ".join(found[:8]) or "none"
        raise DataError(f"{file} names these classes: {given}; expected each once, in the order of the labels.")
    return found
