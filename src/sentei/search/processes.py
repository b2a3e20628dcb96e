"""Worker processes on this machine. Each has its own share of the processors."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from multiprocessing.connection import wait

from sentei.errors import SearchError
from sentei.search.children import Child
from sentei.search.evaluators import Evaluator
from sentei.search.jobs import RETRIES, Job, Outcome, worker_threads
from sentei.search.payload import pack

HELLO, READY = "hello", "ready"


class Worker(Child):
    """A child process that evaluates what it is sent.

    It says HELLO once it runs, gets the evaluator, and says READY.
    """

    def __init__(self, threads: int) -> None:
        super().__init__("sentei.search.worker", threads)
        self.ready = False
        self.job: Job | None = None


class Processes:
    """As many workers as asked for, each with processors / workers threads; one that dies is replaced.

    OMP_NUM_THREADS bounds the threads of each.
    """

    def __init__(self, evaluator: Evaluator, workers: int) -> None:
        self.workers = workers
        self.threads = worker_threads("process", workers) or 1
        self.payload = pack(evaluator)
        self.crew: list[Worker] = []
        self.stillborn, self.any_ready = 0, False

    def run(self, jobs: Sequence[Job]) -> Iterator[Outcome]:
        waiting, tries = deque(jobs), dict.fromkeys(jobs, 0)
        left = len(jobs)
        while left:
            while len(self.crew) < min(self.workers, left):
                self.crew.append(Worker(self.threads))
            for pipe in wait([w.pipe for w in self.crew], 0 if self._hand_out(waiting) else None):
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

    def _hand_out(self, waiting: deque[Job]) -> bool:
        """Give jobs to the idle; True if a worker turned out to be dead, which its pipe will tell."""
        dead = False
        for worker in self.crew:
            if worker.ready and worker.job is None and waiting:
                worker.job = waiting.popleft()
                try:
                    worker.pipe.send(worker.job)
                except OSError:
                    dead = True
        return dead

    def _receive(self, worker: Worker) -> Outcome | None:
        message: Outcome | str = worker.pipe.recv()
        if message == HELLO:
            worker.pipe.send_bytes(self.payload)
        elif message == READY:
            worker.ready = self.any_ready = True
            self.stillborn = 0
        elif isinstance(message, Outcome):
            worker.job = None
            return message
        return None

    def _died(self, worker: Worker, waiting: deque[Job], tries: dict[Job, int]) -> Outcome | None:
        """Give its job to another worker, or up after some attempts."""
        code = worker.ended()
        self.crew.remove(worker)
        if not worker.ready:
            self.stillborn += 1
            killed = code < 0  # by a signal; anything else would happen again
            if not (self.any_ready or killed) or self.stillborn > RETRIES:
                raise SearchError(
                    f"a worker process ended with code {code} before it could start; if it said why, that stands above"
                )
        if worker.job is None:
            return None
        tries[worker.job] += 1
        if tries[worker.job] <= RETRIES:
            waiting.appendleft(worker.job)
            return None
        died = f"its worker died {tries[worker.job]} times, last with code {code}"
        return Outcome(worker.job, None, died, 0.0, lasting=False)
