"""Child processes that are started afresh, talk through a pipe, and end when their parent does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection


class Child:
    """`python -m MODULE FD PARENT` in a process of its own, with a pipe to it.

    It is started rather than forked, because a fork would inherit the state of the parent's threads, and without
    running the parent's script again.
    """

    def __init__(self, module: str, threads: int, environment: Mapping[str, str] | None = None) -> None:
        self.pipe, theirs = Pipe()
        own = {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "OMP_NUM_THREADS": str(threads)}
        # -P: modules in the working directory must not shadow others.
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", module, str(theirs.fileno()), str(os.getpid())],
            pass_fds=[theirs.fileno()],
            stdout=subprocess.DEVNULL,  # the parent's is for its own results
            env={**os.environ, **own, **(environment or {})},
        )
        theirs.close()

    def stop(self, patience: float = 0) -> None:
        """Hang up, wait so many seconds for it to end by itself, and end it."""
        self.pipe.close()
        if patience:
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(patience)
        self.process.kill()
        self.process.wait()

    def ended(self) -> int:
        """The exit code of one that hung up; it may need a moment to end."""
        self.stop(patience=5)
        return self.process.returncode


def be_a_child(descriptor: int, parent: int) -> Connection:
    """What a child does first; returns the pipe to its parent.

    Ctrl-C and SIGTERM reach the parent too, which then ends its children. A parent that was killed cannot: they notice
    that they have another one.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    return Connection(descriptor)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
