"""`python ...` as a process of its own that need not import PyTorch again, which takes seconds a time.

A nursery, one to each test process, has imported what every command imports and computed nothing. It forks for each
command that is asked for. What comes of it is a real child of the test: it has its own process id, folder, environment,
streams and signals, and is killed and waited for like any other. Only starting the interpreter and importing are left
out; tests of these use `subprocess`, and so does everything where there is no Linux.

`Parent` is for a process that starts others in turn: it has a nursery of its own, which `children` does not count. The
workers of searches in a test process come from the nursery too; see tests/conftest.py.
"""

import atexit
import ctypes
import fcntl
import gc
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from importlib import import_module
from inspect import signature
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

ROOT = Path(__file__).parents[1]
EVERYTHING = ("sentei.cli", "torch._dynamo", "torchvision", "sklearn.datasets", "sklearn.model_selection")
"""PyTorch imports its compiler where a network is traced or trained."""
LIKE_CHILDREN = 36
"""PR_SET_CHILD_SUBREAPER: a grandchild whose parent has ended becomes our child."""


NURSERY = b"nursery"
"""The name of the process."""
SET_NAME = 15
_mine: list[socket.socket] = []
"""What leads to the nursery of this process, once there is one."""


def _nursery() -> socket.socket:
    if not _mine:
        _adopt()
        ours, theirs = socket.socketpair()
        atexit.register(ours.close)
        path = os.pathsep.join(p for p in (str(ROOT / "src"), str(ROOT), *sys.path) if p)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": path}
        command = [sys.executable, "-P", __file__, str(theirs.fileno())]
        nursery = subprocess.Popen(command, pass_fds=[theirs.fileno()], cwd=ROOT, env=environment)
        nursery.returncode = 0  # it ends with us, and nobody waits for it
        theirs.close()
        assert ours.recv(1) == b"!", "the nursery could not start"
        _mine.append(ours)
    return _mine[0]


def _adopt() -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(LIKE_CHILDREN, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl failed")


class _Forked(subprocess.Popen):
    """Popen whose Python processes come from there: `[sys.executable, [-P] SCRIPT | -m MODULE | -c CODE, ...]`."""

    starts_others = False

    def _execute_child(self, *given: Any) -> None:
        names = list(signature(super()._execute_child).parameters)
        asked = dict(zip(names, given, strict=True))
        words = [os.fspath(word) for word in asked["args"]]
        if words[0] != sys.executable:
            return super()._execute_child(*given)
        ends = (asked["p2cread"], asked["c2pwrite"], asked["errwrite"])
        streams = {number: end if end != -1 else number for number, end in enumerate(ends)}
        streams |= {number: number for number in asked["pass_fds"]}
        request = {
            "words": words[1:], "folder": os.fspath(asked["cwd"] or os.getcwd()), "numbers": list(streams),
            "environment": dict(asked["env"] or os.environ), "session": asked["start_new_session"],
            "starts_others": self.starts_others,
        }  # fmt: skip
        nursery = _nursery()
        body = json.dumps(request).encode()
        socket.send_fds(nursery, [len(body).to_bytes(4, "big")], list(streams.values()))
        nursery.sendall(body)
        self.pid = int.from_bytes(nursery.recv(4, socket.MSG_WAITALL), "big")
        assert self.pid, "the nursery could not fork"
        self._child_created = True
        self._close_pipe_fds(*(asked[name] for name in names if name.endswith(("read", "write"))))


class _ForkedParent(_Forked):
    """One whose own Python processes come from a nursery too."""

    starts_others = True


LINUX = sys.platform == "linux"
Popen: type[subprocess.Popen] = _Forked if LINUX else subprocess.Popen
Parent: type[subprocess.Popen] = _ForkedParent if LINUX else subprocess.Popen
SUBPROCESS = SimpleNamespace(**{**vars(subprocess), "Popen": Popen})
"""In the place of the module, for code that asks it for Popen."""


def children(pid: int) -> list[int]:
    """The processes that a process has started, in the order of their numbers."""
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False).stdout.split()
    return sorted(int(child) for child in found if not _is_nursery(child))


def _is_nursery(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/comm").read_bytes().strip() == NURSERY
    except OSError:
        return False


def run(command: list[Any], timeout: float | None = None, **options: Any) -> subprocess.CompletedProcess:
    """Like `subprocess.run(..., capture_output=True, text=True)`."""
    with Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


# -- in the nursery


def _serve(place: socket.socket) -> dict[str, Any] | None:
    """Fork for each request; returns what was asked for in the child, and None once the tests are over."""
    while True:
        head, received, _, _ = socket.recv_fds(place, 4, 16)
        if not head:
            return None
        request: dict[str, Any] = json.loads(place.recv(int.from_bytes(head, "big"), socket.MSG_WAITALL))
        told, tell = os.pipe()
        if (pid := os.fork()) == 0:
            between = os.getpid()
            if (child := os.fork()) == 0:
                for descriptor in (told, tell):
                    os.close(descriptor)
                place.close()
                while os.getppid() == between:
                    time.sleep(0.001)
                return {**request, "received": received}
            os.write(tell, child.to_bytes(4, "big"))
            os._exit(0)
        os.waitpid(pid, 0)  # from now on the child is the test's
        os.close(tell)
        place.sendall(os.read(told, 4) or bytes(4))
        for descriptor in (told, *received):
            os.close(descriptor)


def _become(request: dict[str, Any]) -> None:
    if request["session"]:
        os.setsid()
    above = max(request["numbers"]) + 1
    moved = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, above) for descriptor in request["received"]]
    for descriptor in request["received"]:
        os.close(descriptor)
    for number, descriptor in zip(request["numbers"], moved, strict=True):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    for name, number, mode in (("stdin", 0, "r"), ("stdout", 1, "w"), ("stderr", 2, "w")):
        buffering, old = 1 if os.isatty(number) or name == "stderr" else -1, getattr(sys, name)
        stream = open(number, mode, buffering, old.encoding, old.errors, closefd=False)  # noqa: SIM115
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def _execute(words: list[str]) -> None:
    extra = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:0] = [p for p in extra if p and p not in sys.path]
    if safe := words[0] == "-P":
        words = words[1:]
    if words[0] == "-m":
        sys.path[:0] = [] if safe else [os.getcwd()]
        sys.argv[:] = ["-m", *words[2:]]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        return
    sys.modules["__main__"] = main = ModuleType("__main__")
    if words[0] == "-c":
        place, program, sys.argv[:] = "<string>", words[1], ["-c", *words[2:]]
        sys.path.insert(0, "")
    else:
        place, program, sys.argv[:] = os.path.abspath(words[0]), Path(words[0]).read_text(), words
        sys.path.insert(0, os.path.dirname(place))
        main.__file__ = place
    exec(compile(program, place, "exec"), main.__dict__)


def _main() -> None:
    place = socket.socket(fileno=int(sys.argv[1]))
    for module in EVERYTHING:
        import_module(module)
    gc.freeze()
    threads = os.listdir("/proc/self/task")
    assert len(threads) == 1, "a process with threads must not fork"
    place.sendall(b"!")
    _live(place)


def _live(place: socket.socket) -> None:
    """Be the nursery, and in each child of it what was asked for."""
    ctypes.CDLL(None).prctl(SET_NAME, NURSERY, 0, 0, 0)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # those are for the tests
    if (request := _serve(place)) is None:
        os._exit(0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(SET_NAME, b"python", 0, 0, 0)
    _become(request)
    if request["starts_others"] and not _has_nursery():
        return
    _execute(request["words"])


def _has_nursery() -> bool:
    """Make a nursery that every Python process comes from; False in the processes that do."""
    ours, theirs = socket.socketpair()
    if os.fork() == 0:
        ours.close()
        _live(theirs)
        return False
    theirs.close()
    _adopt()
    _mine[:] = [ours]
    subprocess.Popen = _Forked
    return True


if __name__ == "__main__":
    _main()
