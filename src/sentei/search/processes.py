"""Worker processes on this machine. Each has its own share of the processors."""

from __future__ import annotations

from collections import deque
from multiprocessing.connection import wait

from sentei.errors import SearchError
from sentei.search.children import Child
from sentei.search.evaluators import Evaluator
from sentei.search.jobs import RETRIES, Executor, Job, Outcome, worker_threads
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


class Processes(Executor):
    """As many workers as asked for, each with processors / workers threads; one that dies is replaced.

    OMP_NUM_THREADS bounds the threads of each.
    """

    def __init__(self, evaluator: Evaluator, workers: int) -> None:
        self.workers = workers
        self.threads = worker_threads("process", workers) or 1
        self.payload = pack(evaluator)
        self.crew: list[Worker] = []
        self.waiting: deque[Job] = deque()
        self.tries: dict[Job, int] = {}
        """How often a worker died of each job that has no outcome yet."""
        self.ready: deque[Outcome] = deque()
        self.stillborn, self.any_ready = 0, False

    def submit(self, job: Job) -> None:
        self.waiting.append(job)
        self.tries[job] = 0

    def take(self) -> Outcome:
        while not self.ready:
            while len(self.crew) < min(self.workers, len(self.tries)):
                self.crew.append(Worker(self.threads))
            by_pipe = {w.pipe: w for w in self.crew}
            for pipe in wait(list(by_pipe), 0 if self._hand_out() else None):
                worker = by_pipe[pipe]  # type: ignore[index]
                try:
                    outcome = self._receive(worker)
                except (EOFError, OSError):
                    outcome = self._died(worker)
                if outcome is not None:
                    del self.tries[outcome.job]
                    self.ready.append(outcome)
            self._hand_out()  # before the outcome is looked at, so that nobody waits for that
        return self.ready.popleft()

    def close(self) -> None:
        for worker in self.crew:
            worker.stop()
        self.crew.clear()

    def _hand_out(self) -> bool:
        """Give jobs to the idle; True if a worker turned out to be dead, which its pipe will tell."""
        dead = False
        for worker in self.crew if self.waiting else ():
            if worker.ready and worker.job is None and self.waiting:
                worker.job = self.waiting.popleft()
                try:
                    worker.pipe.send(worker.job)
                except OSError:
                    dead = True
        return dead

    def _receive(self, worker: Worker) -> Outcome | None:
        message: Outcome | str = worker.pipe.recv()
        if message == HELLO:
            worker.pipe.send(self.payload.folders)
            worker.pipe.send_bytes(self.payload.evaluator)
        elif message == READY:
            worker.ready = self.any_ready = True
            self.stillborn = 0
        elif isinstance(message, Outcome):
            worker.job = None
            return message
        return None

    def _died(self, worker: Worker) -> Outcome | None:
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
        self.tries[worker.job] += 1
        if self.tries[worker.job] <= RETRIES:
            self.waiting.appendleft(worker.job)
            return None
        died = f"its worker died {self.tries[worker.job]} times, last with code {code}"
        return Outcome(worker.job, None, died, 0.0, lasting=False)
