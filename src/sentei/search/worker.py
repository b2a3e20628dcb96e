"""`python -m sentei.search.worker FD PARENT`: evaluates the jobs that come through a pipe."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from multiprocessing.connection import Connection

from sentei.search.executors import attempt
from sentei.search.payload import unpack
from sentei.search.processes import HELLO, READY
from sentei.train.threads import set_threads


def main(descriptor: int, parent: int) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):  # they reach the parent too, which then ends its workers
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    set_threads()
    pipe = Connection(descriptor)
    try:
        pipe.send(HELLO)
        evaluator = unpack(pipe.recv_bytes())
        pipe.send(READY)
        while True:
            pipe.send(attempt(evaluator, pipe.recv()))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


def _end_with(parent: int) -> None:
    """A parent that was killed cannot end its workers; they notice that they have another one."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
