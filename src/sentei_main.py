"""The `sentei` command. Importing PyTorch takes seconds, and Ctrl-C during those must not show a traceback either."""

import signal
import sys


def main() -> int:
    try:
        from sentei.cli import main as command
    except KeyboardInterrupt:
        print("\nInterrupted. Nothing was written.", file=sys.stderr)
        return 130
    code = command()
    for number in (signal.SIGINT, signal.SIGTERM):  # all is said and done: only the interpreter is left to end
        signal.signal(number, signal.SIG_IGN)
    return code
