"""The `sentei` command. Importing PyTorch takes seconds, and Ctrl-C during those must not show a traceback either."""

import sys


def main() -> int:
    try:
        from sentei.cli import main as command
    except KeyboardInterrupt:
        print("\nInterrupted. Nothing was written.", file=sys.stderr)
        return 130
    return command()
