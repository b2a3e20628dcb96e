"""Worker processes on this machine. Each has its own share of the processors."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import wait
from pathlib import Path

from sentei.errors import SearchError
from sentei.search.evaluators import Evaluator
from sentei.search.executors import RETRIES, Job, Outcome
from sentei.search.payload import pack
from sentei.train.threads import available_cpus


class Worker:
    """A child process that evaluates what it is sent; it ends when its parent does."""

    def __init__(self, payload: Path, threads: int) -> None:
        self.pipe, theirs = Pipe()
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        environment["OMP_NUM_THREADS"] = str(threads)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "sentei.search.worker", str(theirs.fileno()), str(payload), str(os.getpid())],
            pass_fds=[theirs.fileno()],
            env=environment,
        )
        theirs.close()
        self.ready = False
        self.job: Job | None = None

    def send(self, job: Job) -> None:
        self.job = job
        self.pipe.send(job)

    def stop(self) -> None:
        self.pipe.close()
        self.process.kill()
        self.process.wait()

    def ended(self) -> int:
        """The exit code of a worker that hung up; it may need a moment to end."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(5)
        self.stop()
        return self.process.returncode


class Processes:
    """As many workers as asked for, each with processors / workers threads; one that dies is replaced.

    Workers are started afresh rather than forked, because a fork would inherit the state of the parent's threads, and
    without running the parent's script again.
    """

    def __init__(self, evaluator: Evaluator, workers: int) -> None:
        self.workers = workers
        self.threads = max(1, available_cpus() // workers)
        self.folder = tempfile.TemporaryDirectory(prefix="sentei-search-")
        self.payload = Path(self.folder.name) / "evaluator"
        self.payload.write_bytes(pack(evaluator))
        self.crew: list[Worker] = []

    def run(self, jobs: Sequence[Job]) -> Iterator[Outcome]:
        waiting, tries = deque(jobs), dict.fromkeys(jobs, 0)
        left = len(jobs)
        while left:
            self._fill(min(self.workers, left))
            self._hand_out(waiting)
            for pipe in wait([w.pipe for w in self.crew]):
                worker = next(w for w in self.crew if w.pipe is pipe)
                try:
                    outcome = self._receive(worker)
                except (EOFError, OSError):
                    outcome = self._died(worker, waiting, tries)
                if outcome is not None:
                    left -= 1
                    yield outcome

    def close(self) -> None:
        for worker in self.crew:
            worker.stop()
        self.crew.clear()
        self.folder.cleanup()

    def _fill(self, wanted: int) -> None:
        while len(self.crew) < wanted:
            self.crew.append(Worker(self.payload, self.threads))

    def _hand_out(self, waiting: deque[Job]) -> None:
        for worker in self.crew:
            if worker.ready and worker.job is None and waiting:
                worker.send(waiting.popleft())

    def _receive(self, worker: Worker) -> Outcome | None:
        message: Outcome | None = worker.pipe.recv()
        if message is None:
            worker.ready = True
        else:
            worker.job = None
        return message

    def _died(self, worker: Worker, waiting: deque[Job], tries: dict[Job, int]) -> Outcome | None:
        """Give its job to another worker, or up after some attempts."""
        code = worker.ended()
        self.crew.remove(worker)
        if not worker.ready:
            raise SearchError(
                f"a worker process ended with code {code} before it could start; what it said stands above"
            )
        if worker.job is None:
            return None
        tries[worker.job] += 1
        if tries[worker.job] <= RETRIES:
            waiting.appendleft(worker.job)
            return None
        died = f"its worker died {tries[worker.job]} times, last with code {code}"
        return Outcome(worker.job, None, died, 0.0)
