"""A process from the nursery finds what one that Python starts finds, and ends as it does."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests import forked

PROGRAM = """
import os, signal, sys
print(os.getcwd(), sys.argv, sys.path[0], __name__, globals().get("__file__"), os.getppid(), sorted(os.environ.items()))
print(sys.stdin.read(), sys.stdout.line_buffering, sys.stdout.encoding, signal.getsignal(signal.SIGTERM))
print("said", file=sys.stderr)
sys.exit(7)
"""


@pytest.mark.parametrize("words", [("program.py", "a", "b"), ("-m", "program", "a"), ("-c", PROGRAM, "a")])
def test_it_is_like_any_process(words, tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "input").write_text("asked\n")
    command, environment = [sys.executable, *words], {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "X": "y"}
    found = []
    for run in (forked.run, lambda *a, **k: subprocess.run(*a, capture_output=True, text=True, **k)):
        with (tmp_path / "input").open() as file:
            done = run(command, cwd=tmp_path, env=environment, stdin=file)
        found.append((done.returncode, done.stdout, done.stderr))
    assert found[0] == found[1]
    assert found[0][0] == 7
    assert "asked" in found[0][1]


def test_it_is_killed_waited_for_and_leads_a_group_if_asked(tmp_path):
    process = forked.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
    while os.getpgid(process.pid) != process.pid:
        time.sleep(0.01)
    assert process.poll() is None
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL


def test_an_exception_ends_it_with_a_traceback():
    done = forked.run([sys.executable, "-c", "1 / 0"])
    assert done.returncode == 1
    assert done.stderr.endswith("ZeroDivisionError: division by zero\n")
