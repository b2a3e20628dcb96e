"""`python -m sentei.search.worker FD PARENT`: evaluates the jobs that come through a pipe."""

from __future__ import annotations

import sys

from sentei.search.children import be_a_child
from sentei.search.jobs import attempt
from sentei.search.payload import unpack
from sentei.search.processes import HELLO, READY
from sentei.threads import set_threads


def main(descriptor: int, parent: int) -> None:
    pipe = be_a_child(descriptor, parent)
    set_threads()
    try:
        pipe.send(HELLO)
        folders = pipe.recv()
        evaluator = unpack(pipe.recv_bytes(), folders)
        pipe.send(READY)
        while True:
            pipe.send(attempt(evaluator, pipe.recv()))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
