"""The `sentei` command. Importing PyTorch takes seconds, and Ctrl-C during those must not show a traceback either."""

import os
import signal
import sys


def main() -> int:
    code = _version() if sys.argv[1:] == ["--version"] else _command()
    for number in (signal.SIGINT, signal.SIGTERM):  # all is said and done: only the interpreter is left to end
        signal.signal(number, signal.SIG_IGN)
    return code


def _version() -> int:
    """At once, without PyTorch."""
    from importlib import metadata

    try:
        print(f"sentei {metadata.version('sentei')}", flush=True)
    except metadata.PackageNotFoundError:  # run from a checkout
        return _command()
    return 0


def _command() -> int:
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupted)
    if sys.argv[1:2] == ["launch"] and not os.environ.get("SENTEI_DEBUG"):
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")  # read at the import; the agent tells what it lacks
    from sentei.cli import main as command

    if signal.getsignal(signal.SIGINT) is _interrupted:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return command()


def _interrupted(number: int, frame: object) -> None:
    """Ends the process at once: an exception that is raised while a library of C++ is loaded can abort it."""
    print("\nInterrupted. Nothing was written.", file=sys.stderr, flush=True)
    os._exit(130)
