"""A program of its own: loads an exported file, sentei being out of reach, and answers what it is sent.

    python -P answering.py FILE LOADER

LOADER is Python text with `load` and `about`. Arrays come and go through stdin and stdout, as NumPy writes them. It
imports nothing of sentei, so that it shows what a user of the file has.
"""

import io
import os
import sys
from collections.abc import Iterable
from typing import IO, Any

import numpy as np


def main(path: str, loader: str) -> None:
    sys.modules["sentei"] = None  # type: ignore[assignment]  # importing it is an error from here on
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print must not come between
    found: dict[str, Any] = {}
    exec(compile(loader, "loader", "exec"), found)
    network, questions = found["load"](path), sys.stdin.buffer
    send(answers, [np.frombuffer(found["about"](path).encode(), np.uint8)])
    while (arrays := receive(questions)) is not None:
        send(answers, network(*arrays))


def send(stream: IO[bytes], arrays: Iterable[np.ndarray]) -> None:
    packed = io.BytesIO()
    np.savez(packed, *arrays)
    stream.write(packed.tell().to_bytes(8, "big") + packed.getvalue())
    stream.flush()


def receive(stream: IO[bytes]) -> list[np.ndarray] | None:
    """None at the end."""
    size = int.from_bytes(stream.read(8), "big")
    payload = stream.read(size)
    if size == 0 or len(payload) < size:
        return None
    found = np.load(io.BytesIO(payload), allow_pickle=False)
    return [found[f"arr_{i}"] for i in range(len(found.files))]


if __name__ == "__main__":
    main(*sys.argv[1:])
