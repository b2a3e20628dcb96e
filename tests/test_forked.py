"""A process from the nursery finds what one that Python starts finds, and ends as it does."""

import json
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


def test_it_has_the_descriptors_that_are_passed_under_their_numbers():
    ours, theirs = os.pipe()
    high = os.dup2(theirs, 77)
    code = f"import os; os.write({theirs}, b'low'); os.write({high}, b'high'); print(sorted(map(int, OPEN)))"
    code = code.replace("OPEN", "os.listdir('/proc/self/fd')")
    with forked.Popen([sys.executable, "-c", code], pass_fds=[high, theirs], stdout=subprocess.PIPE) as process:
        open_there = process.stdout.read()
    for end in (theirs, high):
        os.close(end)
    assert {theirs, high} <= set(json.loads(open_there))
    with os.fdopen(ours) as file:
        assert file.read() == "lowhigh"


def test_a_module_in_the_folder_shadows_others_unless_it_is_to_be_safe(tmp_path):
    (tmp_path / "program.py").write_text("print('here')")
    for words, code in (((), 0), (("-P",), 1)):
        done = forked.run([sys.executable, *words, "-m", "program"], cwd=tmp_path, env={"PATH": os.environ["PATH"]})
        assert (done.returncode, done.stdout) == (code, "" if code else "here\n")


STARTS_ANOTHER = """
import os, signal, subprocess, sys
other = [sys.executable, "-c", "import os, sys; print(os.getppid(), 'torch' in sys.modules); sys.exit(3)"]
done = subprocess.run(other, capture_output=True, text=True)
print(os.getpid(), done.stdout.split(), done.returncode, subprocess.run(["echo", "ok"], capture_output=True).stdout)
endless = [sys.executable, "-c", "import time; time.sleep(60)"]
endless = subprocess.Popen(endless, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
print(endless.pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(not forked.LINUX, reason="there is a nursery on Linux only")
def test_a_parent_has_children_of_its_own_that_need_not_import_either():
    command = [sys.executable, "-c", STARTS_ANOTHER]
    with forked.Parent(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        me = str(process.pid)
        assert process.stdout.readline() == f"{me} ['{me}', 'True'] 3 b'ok\\n'\n"
        endless = int(process.stdout.readline())
        assert forked.children(process.pid) == [endless]
        process.kill()
        process.wait()
        assert process.stdout.read() == ""  # the nursery is gone too
    os.kill(endless, signal.SIGKILL)


def test_an_exception_ends_it_with_a_traceback():
    done = forked.run([sys.executable, "-c", "1 / 0"])
    assert done.returncode == 1
    assert done.stderr.endswith("ZeroDivisionError: division by zero\n")
