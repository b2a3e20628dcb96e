"""The command line: one verb per job."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from types import FrameType
from typing import Annotated, Any, Union

import tyro
from rich.text import Text

from sentei.cli.bench import BenchCommand
from sentei.cli.compare import Compare
from sentei.cli.demo import Demo
from sentei.cli.evaluate import Evaluate
from sentei.cli.export import Export
from sentei.cli.fidelity import FidelityCommand
from sentei.cli.inspect import Inspect
from sentei.cli.launch import LOST, SHARED, Launch, split
from sentei.cli.options import Output, with_preset
from sentei.cli.prune import method_named, prune_with, refuse_options_of_others
from sentei.cli.report import Report
from sentei.cli.resume import Resume
from sentei.cli.saved import resume_hint
from sentei.cli.train import Train
from sentei.console import hushed, stderr, talk_on_stderr
from sentei.distributed import LostError, is_first_to_tell, is_leader, joined, processes
from sentei.errors import ConfigError, SenteiError
from sentei.runfiles import has_progress, is_finished, version
from sentei.threads import set_threads

STYLE = (tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes, tyro.conf.FlagCreatePairsOff)
ABOUT = (
    "Make trained convolutional networks smaller by removing channels, and prove that each cut is correct. "
    "`sentei --version` tells the version."
)


class Terminated(KeyboardInterrupt):
    """SIGTERM: a scheduler wants the process to end."""


def commands(argv: Sequence[str]) -> Any:
    """The commands as tyro sees them; the options of `prune` are those of the method that is asked for."""
    method = method_named(argv)
    if argv[:1] == ["prune"]:
        refuse_options_of_others(argv, method)
    verbs = {
        "demo": Demo,
        "inspect": Inspect,
        "train": with_preset(Train, argv),
        "prune": with_preset(prune_with(method), argv),
        "resume": Resume,
        "launch": Launch,
        "evaluate": Evaluate,
        "export": Export,
        "fidelity": with_preset(FidelityCommand, argv),
        "bench": BenchCommand,
        "compare": with_preset(Compare, argv),
        "report": Report,
    }
    _refuse_unknown(argv, list(verbs))
    return Union[tuple(Annotated[kind, tyro.conf.subcommand(name)] for name, kind in verbs.items())]  # noqa: UP007


def _refuse_unknown(argv: Sequence[str], verbs: Sequence[str]) -> None:
    """ConfigError, in one line, for a command that there is not."""
    if argv and not argv[0].startswith("-") and argv[0] not in verbs:
        near = get_close_matches(argv[0], verbs, 1, 0.6)
        meant = f" Did you mean {near[0]}?" if near else ""
        raise ConfigError(f"there is no command {argv[0]!r}.{meant} Commands: {', '.join(verbs)}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0 done, 2 refused with a message, 3 if other processes that share the work
    are lost, 130 interrupted, 143 terminated.

    SENTEI_DEBUG=1 shows the traceback of an error.
    """
    command: object = None
    try:
        given = sys.argv[1:] if argv is None else list(argv)
        if given[:1] == ["--version"]:
            print(f"sentei {version()}")
            return 0
        given, behind = split(given)
        command = parsed = _parsed(given)
        if isinstance(parsed, Launch):
            return parsed.launch(behind, _parsed(behind) if behind else None)
        set_threads()
        output = getattr(parsed, "output", Output())
        with _terminating(), joined(), talk_on_stderr(output.as_json), hushed(output.quiet or not is_leader()):
            _refuse_several(parsed)
            parsed.execute()
    except BrokenPipeError:  # whoever read our output has gone, `| head` for instance
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (SenteiError, OSError) as error:
        if os.environ.get("SENTEI_DEBUG"):
            raise
        if isinstance(error, LostError) or is_first_to_tell(str(error)):  # whom would the lost ones ask?
            _tell(f"Error: {error}{_after(command, error)}", "red")
        return LOST if isinstance(error, LostError) else 2
    except KeyboardInterrupt as stop:
        ended = isinstance(stop, Terminated)
        _tell(f"\n{'Terminated' if ended else 'Interrupted'}. {_how_to_go_on(command)}", "yellow")
        return 143 if ended else 130
    return 0


def _parsed(given: Sequence[str]) -> Any:
    return tyro.cli(commands(given), prog="sentei", description=ABOUT, args=given, config=STYLE)


def _refuse_several(parsed: object) -> None:
    """ConfigError where torchrun starts several processes of a command that runs in one."""
    if processes() > 1 and not isinstance(parsed, SHARED):
        raise ConfigError(f"there are {processes()} processes; only train, prune and resume can share their work")


@contextmanager
def _terminating() -> Iterator[None]:
    """SIGTERM ends like Ctrl-C: workers are ended, files closed, and a line says how to go on."""

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)  # once is enough, and cleaning up must not be disturbed
        raise Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _tell(text: str, style: str) -> None:
    console = stderr()
    console.print(Text(text, style), soft_wrap=not console.is_terminal)


def _after(command: object, error: Exception) -> str:
    """How to go on after something went wrong on the way; empty where a command was refused."""
    folder = getattr(command, "folder", None)
    told = isinstance(error, (ConfigError, LostError))  # what to do then, the agent says
    if folder is None or told or is_finished(folder) or not has_progress(folder):
        return ""
    return f"\nWhat was stored is kept. Once that is mended, go on with:  {resume_hint(folder)}"


def _how_to_go_on(command: object) -> str:
    if isinstance(command, Compare):
        return command.how_to_go_on()
    folder = getattr(command, "folder", None)
    if folder is None:
        return "Nothing was written."
    if is_finished(folder):
        return f"The run in {folder} is finished."
    if has_progress(folder):
        return f"Go on with:  {resume_hint(folder)}"
    return f"Nothing was stored in {folder} yet; start again with the same command."
