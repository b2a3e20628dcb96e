"""The `sentei` command. Importing PyTorch takes seconds, and Ctrl-C during those must not show a traceback either."""

import signal
import sys
from importlib import metadata


def main() -> int:
    code = _version() if sys.argv[1:] == ["--version"] else _command()
    for number in (signal.SIGINT, signal.SIGTERM):  # all is said and done: only the interpreter is left to end
        signal.signal(number, signal.SIG_IGN)
    return code


def _version() -> int:
    """At once, without PyTorch."""
    print(f"sentei {metadata.version('sentei')}", flush=True)
    return 0


def _command() -> int:
    try:
        from sentei.cli import main as command
    except KeyboardInterrupt:
        print("\nInterrupted. Nothing was written.", file=sys.stderr)
        return 130
    return command()
