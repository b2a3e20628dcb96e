"""`python ...` as a process of its own that need not import PyTorch again, which takes seconds a time.

A nursery, one to each test process, has imported what every command imports and computed nothing. It forks for each
command that is asked for. What comes of it is a real child of the test: it has its own process id, folder, environment,
streams and signals, and is killed and waited for like any other. Only starting the interpreter and importing are left
out; tests of these use `subprocess`, and so does everything where there is no Linux.
"""

import atexit
import ctypes
import gc
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from functools import cache
from importlib import import_module
from inspect import signature
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).parents[1]
EVERYTHING = ("sentei.cli", "torch._dynamo", "torchvision", "sklearn.datasets", "sklearn.model_selection")
"""PyTorch imports its compiler where a network is traced or trained."""
LIKE_CHILDREN = 36
"""PR_SET_CHILD_SUBREAPER: a grandchild whose parent has ended becomes our child."""


@cache
def _nursery() -> socket.socket:
    if ctypes.CDLL(None, use_errno=True).prctl(LIKE_CHILDREN, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl failed")
    ours, theirs = socket.socketpair()
    atexit.register(ours.close)
    path = os.pathsep.join(p for p in (str(ROOT / "src"), str(ROOT), *sys.path) if p)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": path}
    command = [sys.executable, "-P", __file__, str(theirs.fileno())]
    nursery = subprocess.Popen(command, pass_fds=[theirs.fileno()], cwd=ROOT, env=environment)
    nursery.returncode = 0  # it ends with us, and nobody waits for it
    theirs.close()
    assert ours.recv(1) == b"!", "the nursery could not start"
    return ours


class _Forked(subprocess.Popen):
    """Popen whose process comes from the nursery: `[sys.executable, SCRIPT | -m MODULE | -c CODE, ...]`."""

    def _execute_child(self, *given: Any) -> None:
        names = list(signature(subprocess.Popen._execute_child).parameters)[1:]
        asked = dict(zip(names, given, strict=True))
        words = [os.fspath(word) for word in asked["args"]]
        assert words[0] == sys.executable
        ends = (asked["p2cread"], asked["c2pwrite"], asked["errwrite"])
        streams = [end if end != -1 else number for number, end in enumerate(ends)]
        request = {
            "words": words[1:], "folder": os.fspath(asked["cwd"] or os.getcwd()),
            "environment": dict(asked["env"] or os.environ), "session": asked["start_new_session"],
        }  # fmt: skip
        nursery = _nursery()
        socket.send_fds(nursery, [len(body := json.dumps(request).encode()).to_bytes(4, "big")], streams)
        nursery.sendall(body)
        self.pid = int.from_bytes(nursery.recv(4, socket.MSG_WAITALL), "big")
        assert self.pid, "the nursery could not fork"
        self._child_created = True
        self._close_pipe_fds(*(asked[name] for name in names if name.endswith(("read", "write"))))


Popen: type[subprocess.Popen] = _Forked if sys.platform == "linux" else subprocess.Popen


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
        head, received, _, _ = socket.recv_fds(place, 4, 3)
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
                return {**request, "streams": received}
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
    for number, descriptor in enumerate(request["streams"]):
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
    if words[0] == "-m":
        sys.path.insert(0, os.getcwd())
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
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the tests
    if (request := _serve(place)) is not None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _become(request)
        _execute(request["words"])


if __name__ == "__main__":
    _main()
