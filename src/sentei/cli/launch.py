"""`sentei launch`: a command in several processes, on one machine or on many, by torchrun's own agent."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Annotated, Any

import tyro
from rich.text import Text

from sentei.cli.meeting import Meeting
from sentei.cli.networks import refuse_missing_run
from sentei.cli.prune import Prune
from sentei.cli.resume import Resume
from sentei.cli.train import Train
from sentei.console import stderr
from sentei.distributed import TIMEOUT
from sentei.errors import ConfigError, TrainError
from sentei.runfiles import has_progress, is_finished, read_config, refuse_finished
from sentei.threads import available_cpus

SHARED = (Train, Prune, Resume)
"""Commands whose work several processes can share."""
LOST = 3
"""Exit code of a process that has lost the others."""
STUCK = 60.0
"""Seconds after which an agent that has not noticed the end of its process is taken for stuck."""
CPP_LOG = "TORCH_CPP_LOG_LEVEL"
NEW_STORE = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"
"""A restart gets a store of its own: in the agent's, addresses of the processes before it would still stand."""


@dataclass(frozen=True)
class Launch:
    """Run train, prune or resume in several processes that share each batch: one a GPU, or a few on CPUs.

    sentei launch --nproc-per-node 8 prune runs/base --method taylor --macs 0.5

    The command stands behind these options, as it would stand alone; its --batch-size is that of all processes
    together. On several machines, start the same line on each, with --nnodes and --rdzv-endpoint. The run may be
    resumed with another number of processes, or in one.
    """

    nproc_per_node: Annotated[int, tyro.conf.arg(metavar="N")] = 1
    """Processes on each machine."""
    nnodes: Annotated[str, tyro.conf.arg(metavar="M")] = "1"
    """Machines; MIN:MAX where some may come and go (with --max-restarts)."""
    rdzv_endpoint: Annotated[str | None, tyro.conf.arg(metavar="HOST:PORT")] = None
    """Where the machines meet: one of them, and a free port there."""
    rdzv_id: Annotated[str, tyro.conf.arg(metavar="NAME")] = "sentei"
    """Name of the job, the same on all machines, where several meet at one endpoint."""
    max_restarts: Annotated[int, tyro.conf.arg(metavar="N")] = 0
    """How often all processes are started anew when one has died; the run goes on from what it had stored."""
    timeout: Annotated[float, tyro.conf.arg(metavar="MINUTES")] = 10.0
    """How long a process waits for the others in a step before it takes them for dead, and machines for each other at
    the meeting place."""

    def launch(self, words: Sequence[str], command: Any) -> int:
        """Run the command that `words` say and `command` is; returns the exit code of the first process that failed."""
        if not isinstance(command, SHARED):
            given = f"got {words[0]}" if words else "none is given"
            verbs = ", ".join(kind.__name__.lower() for kind in SHARED)
            raise ConfigError(f"sentei launch takes a command behind its options: {verbs}; {given}")
        place = Meeting.at(self.rdzv_endpoint) if self.rdzv_endpoint else None
        config = self._config(place)
        _refuse_early(command)
        self._set_environment(place)
        from torch.distributed.elastic.multiprocessing.api import SignalException
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
        from torch.distributed.elastic.rendezvous import RendezvousError
        from torch.distributed.launcher.api import elastic_launch

        if config.max_nodes > 1:
            where = f"{self.rdzv_endpoint} for {self.nnodes.replace(':', ' to ')} machines"
            self._say(f"Waiting at {where}, {self.timeout:g} minutes at most ...")
        with _silent(), _unless_stuck(lambda: self._failed({0: LOST}, command)):
            try:
                elastic_launch(config, sys.executable)("-m", "sentei.cli", *words)
            except ChildFailedError as error:
                return self._failed({rank: f.exitcode for rank, f in error.failures.items()}, command)
            except SignalException as stop:
                return 128 + stop.sigval
            except RendezvousError as error:
                raise TrainError(self._alone(error)) from error
        return 0

    def _config(self, place: Meeting | None) -> Any:
        from torch.distributed.launcher.api import LaunchConfig

        least, _, most = self.nnodes.partition(":")
        most = most or least
        rules = {
            "nproc_per_node": (self.nproc_per_node >= 1, "1 or more"),
            "nnodes": (least.isdecimal() and most.isdecimal() and 1 <= int(least) <= int(most), "N or MIN:MAX"),
            "max_restarts": (self.max_restarts >= 0, "0 or more"),
            "timeout": (self.timeout > 0, "above 0"),
        }
        for name, (valid, expected) in rules.items():
            if not valid:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; expected {expected}")
        several = int(most) > 1
        if several and self.rdzv_endpoint is None:
            raise ConfigError(f"{self.nnodes} machines need a place to meet: give --rdzv-endpoint HOST:PORT")
        return LaunchConfig(
            min_nodes=int(least), max_nodes=int(most), nproc_per_node=self.nproc_per_node,
            run_id=self.rdzv_id if several else uuid.uuid4().hex, rdzv_backend="c10d",
            rdzv_endpoint=self.rdzv_endpoint or "localhost:0", max_restarts=self.max_restarts, monitor_interval=0.5,
            **(place.settings(self.timeout) if place else {}),
        )  # fmt: skip

    def _alone(self, error: Exception) -> str:
        return (
            f"the machines have not met at {self.rdzv_endpoint} within {self.timeout:g} minutes (--timeout; "
            f"{type(error).__name__}): start the same line on {self.nnodes} machines, one of them the endpoint's, "
            "whose port must be free there and open to the others"
        )

    def _set_environment(self, place: Meeting | None) -> None:
        """For the processes: threads, unless they are given, that do not take the processors from each other, and the
        network by which machines reach each other."""
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, available_cpus() // self.nproc_per_node)))
        if os.environ.get(CPP_LOG) in (None, "FATAL"):  # that is for the agent, see sentei_main
            os.environ[CPP_LOG] = "ERROR"
        os.environ.setdefault(NEW_STORE, "1")
        os.environ[TIMEOUT] = str(self.timeout)
        if place and (interface := place.interface()):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)

    def _failed(self, codes: Mapping[int, int], command: Any) -> int:
        """Say what has died, unless a process has said so itself."""
        killed = {rank: -code for rank, code in codes.items() if code < 0}
        if not killed and LOST not in codes.values():
            return max(codes.values(), default=1)
        text = "".join(f"Process {rank} was ended by {signal.Signals(n).name}. " for rank, n in killed.items())
        if is_finished(command.folder):
            text += f"The run in {command.folder} is finished."
        elif has_progress(command.folder):
            meeting = f"--nnodes {self.nnodes} --rdzv-endpoint {self.rdzv_endpoint} " if self.rdzv_endpoint else ""
            again = f"sentei launch {meeting}--nproc-per-node {self.nproc_per_node} resume {command.folder}"
            text += f"What was stored is kept. Go on with:  {again}"
        elif self.rdzv_endpoint:
            text += "What was stored, if anything, lies on the machine of the first process, which says how to go on."
        else:
            text += "Nothing was stored yet; start again with the same command."
        self._say(text, "red")
        return 128 + next(iter(killed.values())) if killed else LOST

    def _say(self, text: str, style: str = "") -> None:
        console = stderr()
        console.print(Text(text, style), soft_wrap=not console.is_terminal)


def _refuse_early(command: Any) -> None:
    """What several processes would only say after they have all started."""
    if isinstance(command, Resume):
        read_config(command.folder)
    else:
        refuse_missing_run(command.model)
        if not command.overwrite:
            refuse_finished(command.folder)


def split(given: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words of `sentei launch`, and those of the command behind them.

    >>> split(["launch", "--nproc-per-node", "2", "resume", "runs/x"])
    (['launch', '--nproc-per-node', '2'], ['resume', 'runs/x'])
    """
    words = list(given)
    if words[:1] != ["launch"]:
        return words, []
    at = next((i for i, word in enumerate(words[1:], 1) if _begins(words, i)), len(words))
    return words[:at], words[at:]


def _begins(words: Sequence[str], i: int) -> bool:
    """Whether the command begins here: a word that is neither an option nor the value of one."""
    before = words[i - 1]
    return not words[i].startswith("-") and (i == 1 or not before.startswith("--") or "=" in before)


@contextmanager
def _unless_stuck(tell: Callable[[], int]) -> Iterator[None]:
    """End this process, with what `tell` returns, should the agent no longer look after its own.

    It asks the meeting place now and then, and for a machine that no longer answers it would wait until the system
    gives the connection up, a quarter of an hour. A process that has ended is its to notice, within a second.
    """
    over = threading.Event()

    def watch() -> None:
        ended, since = 0, time.monotonic()
        while not over.wait(1):
            now = _ended_child()
            if not now or now != ended:
                ended, since = now, time.monotonic()
            elif time.monotonic() - since > STUCK:
                os._exit(tell())

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _ended_child() -> int:
    """A process of ours that has ended and that nobody has taken note of; 0 if there is none."""
    with suppress(ChildProcessError):
        found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        return found.si_pid if found else 0
    return 0


@contextmanager
def _silent() -> Iterator[None]:
    """The agent's own log, about processes that ended, is for SENTEI_DEBUG. Its loggers have levels of their own."""
    if not os.environ.get("SENTEI_DEBUG"):
        logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
