"""Text that tells when it was altered: a checksum of everything before it closes each line or file.

JSON lines and JSON files keep it under their last key, "sha256", YAML files in their last line, so that every reader of
JSON or YAML still reads them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

LINE, FILE, YAML = b', "sha256": "', b',\n  "sha256": "', b"sha256: "
LINE_DIGITS = 16
"""Digits of a line's checksum: enough against damage, short enough to read over."""


def sealed_line(record: Mapping[str, Any]) -> bytes:
    r"""A record, not empty, as one JSON line with a checksum.

    >>> sealed_line({"epoch": 1})
    b'{"epoch": 1, "sha256": "4a7cd2d9a1e8b63f"}\n'
    """
    body = json.dumps(record).encode()[:-1]
    return body + LINE + _digest(body)[:LINE_DIGITS] + b'"}\n'


def read_line(line: bytes) -> dict[str, Any] | None:
    """The record of a line without its newline; None if it was altered or never had a checksum."""
    body, _, end = line.rpartition(LINE)
    if end != _digest(body)[:LINE_DIGITS] + b'"}':
        return None
    return _parsed(body + b"}")


def sealed_json(record: Mapping[str, Any]) -> bytes:
    """A record, not empty, as an indented JSON file with a checksum."""
    body = json.dumps(record, indent=2).encode().removesuffix(b"\n}")
    return body + FILE + _digest(body) + b'"\n}\n'


def read_json(payload: bytes) -> dict[str, Any] | None:
    """The record of a file that `sealed_json` made; None if it was altered."""
    body, _, end = payload.rpartition(FILE)
    return _parsed(body + b"\n}") if end == _digest(body) + b'"\n}\n' else None


def sealed_yaml(text: str) -> bytes:
    """A YAML mapping, as text, with a checksum."""
    return text.encode() + YAML + _digest(text.encode()) + b"\n"


def is_sealed_yaml(payload: bytes) -> bool:
    """Whether a file is as `sealed_yaml` made it."""
    body, _, end = payload.rpartition(YAML)
    return end == _digest(body) + b"\n"


def _parsed(text: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _digest(body: bytes) -> bytes:
    return hashlib.sha256(body).hexdigest().encode()
