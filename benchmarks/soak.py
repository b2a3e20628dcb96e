"""What happens to runs and files when everything goes wrong: kills, damage, full disks, crowds, lost workers.

    python benchmarks/soak.py                      # about half an hour on one core; `make soak`
    python benchmarks/soak.py --share 0.1          # a tenth of every trial, a few minutes
    python benchmarks/soak.py --only kills flips   # some of the parts

Each trial runs the command line in a process of its own, forked after the imports, and lets it meet its fate. A run
that was stopped goes on, in turn by `sentei resume` and by the same command, and its networks must be those of a run
that was never stopped, byte for byte. A damaged file must be refused with a SenteiError, or what it lost done again.

kills       SIGKILL at every write point: before and after each rename, removal and sync, in every other sync after a
            part of what was written had been lost
flips       one bit of a file turned over
changes     an entry of a file removed, replaced or moved, also with a forged checksum
disks       no space left, and a read-only disk, from some write point on
crowds      a second process gives the same command, resumes or overwrites while the first one works
signals     SIGTERM or Ctrl-C at a random moment
workers     a worker of a search killed at a random moment
ray         a raylet killed (where Ray is installed)
"""

from __future__ import annotations

import argparse
import copy
import errno
import json
import os
import random
import shutil
import signal
import stat
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml

from sentei import load
from sentei.cli import main
from sentei.cli.saved import saved_command
from sentei.errors import SenteiError
from sentei.machine import machine
from sentei.models import build_model, load_weights
from sentei.runfiles import has_progress, read_summary
from sentei.sealed import sealed_json, sealed_yaml
from sentei.surgery.files import load_plan
from sentei.tensorfile import read_tensors, write_tensors
from sentei.train.checkpoint import load_checkpoint
from sentei.train.journal import Journal

TINY = ["--epochs", "2", "--batch-size", "64", "--limit", "128"]
PRUNE = ["prune", "base", *TINY, "--score-images", "64", "--round-to", "1"]
SEARCH = ["--calibration-images", "64", "--validation-images", "100"]
ABC = [*PRUNE, "--method", "abc", "--evaluations", "12", *SEARCH]
COMMANDS = {
    "train": ["train", "digitsnet", "--data", "digits", *TINY],
    "taylor": [*PRUNE, "--method", "taylor", "--steps", "2"],
    "abc": ABC,
    "ista": [*PRUNE, "--method", "ista", "--sparse-epochs", "2"],
    "stagewise": [*PRUNE, "--method", "stagewise", "--supernet-epochs", "1", "--evaluations", "12", "--candidates", "3",
                  "--table-images", "60", *SEARCH],
}  # fmt: skip
OWN = ("config.yaml", "journal.jsonl", "summary.json", "gammas.png", ".lock")
"""Files that hold times or places, or no network."""


# -- processes


@dataclass
class Child:
    """A command in a forked process, its words in a file."""

    pid: int
    words: Path

    @classmethod
    def start(cls, command: list[str], before: Callable[[], None] = lambda: None) -> Child:
        words = Path(tempfile.mkstemp(prefix="words-", dir=".")[1])
        sys.stdout.flush()
        pid = os.fork()
        if pid:
            return cls(pid, words)
        try:
            file = os.open(words, os.O_WRONLY)
            os.dup2(file, 1)
            os.dup2(file, 2)
            before()
            code = main(command)
            sys.stdout.flush()
            os._exit(code)
        except BaseException:
            import traceback

            traceback.print_exc()
            sys.stderr.flush()
        os._exit(70)

    def wait(self) -> tuple[int, str]:
        """Exit code (negative for a signal) and what it said."""
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        text = self.words.read_text(errors="replace")
        self.words.unlink()
        return code, text


def run(command: list[str], before: Callable[[], None] = lambda: None) -> tuple[int, str]:
    return Child.start(command, before).wait()


def networks(folder: Path) -> dict[str, bytes]:
    """Every network that a run has made, also those on the way."""
    files = (p for p in sorted(folder.rglob("*")) if p.is_file() and p.name not in OWN and "supernet" not in p.name)
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


# -- write points


class Fate:
    """Counts write points and strikes at one of them."""

    def __init__(self, at: int, strike: Callable[[int | None], None]) -> None:
        self.count, self.at, self.strike = 0, at, strike

    def point(self, file: int | None = None) -> None:
        self.count += 1
        if self.count == self.at:
            self.strike(file)

    def install(self) -> None:
        """Write points are the calls through which everything of sentei's reaches the disk."""
        for name in ("replace", "unlink", "fsync", "rmdir", "mkdir"):
            original = getattr(os, name)

            def call(*args: Any, _original: Any = original, _name: str = name, **options: Any) -> Any:
                self.point(args[0] if _name == "fsync" else None)
                done = _original(*args, **options)
                if _name == "replace":
                    self.point()
                return done

            setattr(os, name, call)
        append = Journal.append

        def appended(journal: Journal, record: dict[str, Any], wait: bool = True) -> None:
            if not wait:  # the disk has it a moment later, which is no point that could be counted
                self.point()
            append(journal, record, wait)

        Journal.append = appended  # type: ignore[method-assign]


def points_of(command: list[str], folder: str) -> int:
    """How many write points a command passes."""
    report = Path("points").resolve()
    fate = Fate(-1, lambda file: None)

    def before() -> None:
        fate.install()
        import atexit

        exit_, write = os._exit, report.write_text

        def leave(code: int) -> None:
            write(str(fate.count))
            exit_(code)

        os._exit = leave  # type: ignore[assignment]
        atexit.register(leave, 0)

    code, text = run([*command, "--run", folder], before)
    if code:
        raise RuntimeError(f"{command} failed before any harm was done:\n{text}")
    return int(report.read_text())


# -- the books


@dataclass
class Books:
    """What was tried and what came of it."""

    rows: dict[str, Counter[str]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def note(self, part: str, outcome: str, detail: str = "") -> None:
        self.rows.setdefault(part, Counter())[outcome] += 1
        if outcome in BAD:
            print(f"  {part}: {outcome} {detail.strip()[-1500:]}", flush=True)

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[part] = time.perf_counter() - started

    def show(self) -> bool:
        """Print the table; True if nothing bad happened."""
        print(f"\n| what | tried | {' | '.join(GOOD)} | {' | '.join(BAD)} |")
        print("|---|" + "---:|" * (1 + len(GOOD) + len(BAD)))
        for part, seen in self.rows.items():
            figures = [seen[o] for o in (*GOOD, *BAD)]
            print(f"| {part} | {sum(seen.values())} | {' | '.join(map(str, figures))} |")
        print("\nseconds: " + ", ".join(f"{part} {s:.0f}" for part, s in self.seconds.items()))
        return not any(seen[o] for seen in self.rows.values() for o in BAD)


GOOD = ("same bytes", "refused", "harmless")
"""Ended as if nothing had happened; ended with a clear error; read, with the same content or as it was forged to be."""
BAD = ("lost", "unnoticed", "traceback")


@dataclass
class Soak:
    share: float
    rng: random.Random
    books: Books = field(default_factory=Books)
    expected: dict[str, dict[str, bytes]] = field(default_factory=dict)
    points: dict[str, int] = field(default_factory=dict)

    def some(self, count: int) -> int:
        return max(2, round(count * self.share))

    def prepare(self) -> None:
        """A base to prune, and what every command makes when nothing disturbs it."""
        base = ["train", "digitsnet", "--data", "digits", "--epochs", "3", "--batch-size", "64", "--run", "base"]
        code, text = run(base)
        if code:
            raise RuntimeError(text)
        for name, command in COMMANDS.items():
            self.points[name] = points_of(command, f"whole-{name}")
            self.expected[name] = networks(Path(f"whole-{name}"))
        print("write points: " + ", ".join(f"{n} {p}" for n, p in self.points.items()), flush=True)

    def recovered(self, part: str, name: str, folder: Path, command: list[str] | None = None, turn: int = 0) -> None:
        """Go on with what was stopped, and compare."""
        command = command or COMMANDS[name]
        resumed = turn % 2 == 0 and has_progress(folder)
        code, text = run(["resume", str(folder)] if resumed else [*command, "--run", str(folder)])
        if code == 2 and "holds a finished run" in text:
            code = 0  # the blow came after the end
        found = networks(folder) if folder.exists() else {}
        other = [n for n in {**found, **self.expected[name]} if found.get(n) != self.expected[name].get(n)]
        outcome = "lost" if code or other else "same bytes"
        self.books.note(part, "traceback" if "Traceback" in text else outcome, f"{text}\n{folder}: {other}")
        shutil.rmtree(folder, ignore_errors=True)

    # -- what is done to runs

    def kills(self) -> None:
        for name, command in COMMANDS.items():
            every = range(1, self.points[name] + 1)
            for n in sorted(self.rng.sample(every, min(len(every), self.some(len(every))))):
                folder = Path(f"kill-{name}-{n}")
                seed = self.rng.random()

                def strike(file: int | None, seed: float = seed) -> None:
                    if file is not None and seed < 0.5 and stat.S_ISREG(os.fstat(file).st_mode):
                        # what a lost machine may do to a file that was not synced yet
                        os.ftruncate(file, int(os.fstat(file).st_size * seed * 2))
                    os.kill(os.getpid(), signal.SIGKILL)

                code, text = run([*command, "--run", str(folder)], Fate(n, strike).install)
                if code not in (0, -signal.SIGKILL):
                    self.books.note("kills", "traceback", text)
                self.recovered("kills", name, folder, turn=n)

    def disks(self) -> None:
        for kind, number in (("full disk", errno.ENOSPC), ("read-only disk", errno.EROFS)):
            for turn in range(self.some(30)):
                name = self.rng.choice(list(COMMANDS))
                folder, n = Path(f"disk-{number}-{turn}"), self.rng.randint(1, self.points[name])

                def strike(file: int | None, number: int = number) -> None:
                    def refuse(*args: Any, **options: Any) -> Any:
                        raise OSError(number, os.strerror(number))

                    for call in ("replace", "fsync", "mkdir", *(("unlink", "rmdir") if number == errno.EROFS else ())):
                        setattr(os, call, refuse)
                    refuse()

                code, text = run([*COMMANDS[name], "--run", str(folder)], Fate(n, strike).install)
                if "Traceback" in text or code not in (0, 2):
                    self.books.note(kind, "traceback", text)
                    shutil.rmtree(folder, ignore_errors=True)
                else:
                    self.recovered(kind, name, folder, turn=turn)

    def crowds(self) -> None:
        for turn in range(self.some(10)):
            name = self.rng.choice(["taylor", "abc", "ista"])
            folder = Path(f"crowd-{turn}")
            first = Child.start([*COMMANDS[name], "--run", str(folder)])
            while not has_progress(folder):
                time.sleep(0.002)
            os.kill(first.pid, signal.SIGSTOP)
            again = [*COMMANDS[name], "--run", str(folder)]
            for second in (again, [*again, "--overwrite"], ["resume", str(folder)]):
                code, text = run(second)
                good = code == 2 and "another process is working" in text and "Traceback" not in text
                self.books.note("second process", "refused" if good else "lost", text)
            os.kill(first.pid, signal.SIGCONT)
            code, text = first.wait()
            same = code == 0 and networks(folder) == self.expected[name]
            self.books.note("first process", "same bytes" if same else "lost", text)
            shutil.rmtree(folder, ignore_errors=True)

    def signals(self) -> None:
        spent = {}
        for name, command in COMMANDS.items():
            started = time.perf_counter()
            run([*command, "--run", "timed"])
            spent[name] = time.perf_counter() - started
            shutil.rmtree("timed")
        for turn in range(self.some(40)):
            name = self.rng.choice(list(COMMANDS))
            folder = Path(f"signal-{turn}")
            child = Child.start([*COMMANDS[name], "--run", str(folder)])
            time.sleep(0.2 + self.rng.random() * spent[name])
            number, part = ((signal.SIGTERM, "SIGTERM"), (signal.SIGINT, "Ctrl-C"))[turn // 2 % 2]
            os.kill(child.pid, number)
            code, text = child.wait()
            if "Traceback" in text or code not in (0, 130, 143):
                self.books.note(part, "traceback", f"{code} {text}")
            self.recovered(part, name, folder, turn=turn)

    def workers(self) -> None:
        command = [*ABC, "--executor", "process", "--processes", "2"]
        for turn in range(self.some(10)):
            folder = Path(f"worker-{turn}")
            child = Child.start([*command, "--run", str(folder)])
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline:
                crew = children_of(child.pid, "sentei.search.worker")
                if len(crew) == 2:
                    break
                time.sleep(0.01)
            time.sleep(self.rng.random() * 6)
            for pid in crew[:1]:
                kill(pid)
            code, text = child.wait()
            if code:
                self.books.note("lost worker", "traceback" if "Traceback" in text else "lost", text)
            self.recovered("lost worker", "abc", folder, command, turn=1)

    def ray(self) -> None:
        try:
            import ray  # noqa: F401
        except ImportError:
            return
        command = [*ABC, "--executor", "ray", "--processes", "1"]
        for turn in range(self.some(3)):
            folder = Path(f"ray-{turn}")
            child = Child.start([*command, "--run", str(folder)])
            deadline = time.monotonic() + 120
            while time.monotonic() < deadline and not has_progress(folder):
                time.sleep(0.02)
            for driver in children_of(child.pid, "sentei.search.ray_driver"):
                for pid in children_of(driver, "raylet"):
                    kill(pid)
            code, text = child.wait()
            clear = code == 0 or (code == 2 and "the Ray cluster was lost" in text)
            if not clear or "Traceback" in text:
                self.books.note("killed raylet", "traceback", text)
            self.recovered("killed raylet", "abc", folder, command, turn=1)

    # -- what is done to files

    def flips(self) -> None:
        for kind, (path, read) in self.files().items():
            whole, good = path.read_bytes(), read()
            for _ in range(self.some(1000)):
                raw = bytearray(whole)
                raw[self.rng.randrange(len(raw))] ^= 1 << self.rng.randrange(8)
                path.write_bytes(raw)
                self.judge(f"flip: {kind}", read, good)
            path.write_bytes(whole)

    def changes(self) -> None:
        for name, change in self.structures().items():
            kind = name.removesuffix(FORGED)
            path, read = self.files()[kind]
            whole, good = path.read_bytes(), read()
            for _ in range(self.some(200)):
                change(path)
                self.judge(f"change: {name}", read, good, forged=kind != name)
                path.write_bytes(whole)

    def judge(self, part: str, read: Callable[[], Any], good: Any, forged: bool = False) -> None:
        """A forged file is valid: what it says may be another thing."""
        try:
            found = read()
        except SenteiError:
            self.books.note(part, "refused")
        except Exception as error:
            self.books.note(part, "traceback", f"{type(error).__name__}: {error}")
        else:
            same = equal(found, good)
            self.books.note(part, "harmless" if same or forged else "unnoticed", f"{found!r:.200}")

    def files(self) -> dict[str, tuple[Path, Callable[[], Any]]]:
        """A file of each kind, and how it is read."""
        train, ista, stagewise = Path("whole-train"), Path("whole-ista"), Path("whole-stagewise")
        curve = ista / "curve/01"
        checkpoint = Path("a.ckpt")
        if not checkpoint.exists():
            from sentei.train.checkpoint import save_checkpoint

            save_checkpoint(checkpoint, {"model": build_model("digitsnet").state_dict(), "history": [{"epoch": 1}]})

        def weights() -> Any:
            model = build_model("digitsnet")
            load_weights(model, train / "model.safetensors", checked=True)
            return model.state_dict()

        def journal() -> Any:
            lines = Journal(ista / "journal.jsonl").records()
            known = self.__dict__.setdefault("lines", lines)
            if any(line not in known for line in lines):
                return lines  # something that never happened
            if len(lines) < len(known):
                raise SenteiError("a line was left out, and is done again")
            return lines

        def network(folder: Path) -> Callable[[], Any]:
            return lambda: load(build_model("digitsnet"), folder).state_dict()

        return {
            "config.yaml": (ista / "config.yaml", lambda: saved_command(ista)),
            "summary.json": (ista / "summary.json", lambda: read_summary(ista)),
            "plan.json": (ista / "plan.json", lambda: load_plan(ista).to_json()),
            "journal.jsonl": (ista / "journal.jsonl", journal),
            "weights of a trained network": (train / "model.safetensors", weights),
            "weights of a pruned network": (ista / "model.safetensors", network(ista)),
            "weights of a curve point": (curve / "model.safetensors", network(curve)),
            "supernet": (
                stagewise / "supernet-stagewise.safetensors",
                lambda: read_tensors(stagewise / "supernet-stagewise.safetensors", checked=True)[0],
            ),
            "checkpoint": (checkpoint, lambda: load_checkpoint(checkpoint)),
        }

    def structures(self) -> dict[str, Callable[[Path], None]]:
        """How the structure of each kind of file is changed."""

        def config(path: Path) -> None:
            path.write_text(yaml.safe_dump(changed(yaml.safe_load(path.read_bytes()), self.rng), sort_keys=False))

        def forged_config(path: Path) -> None:
            found = yaml.safe_load(path.read_bytes())
            found.pop("sha256")
            path.write_bytes(sealed_yaml(yaml.safe_dump(changed(found, self.rng), sort_keys=False)))

        def forged_summary(path: Path) -> None:
            path.write_bytes(sealed_json(changed(read_summary(path.parent), self.rng)))

        def plain(path: Path) -> None:
            path.write_text(json.dumps(changed(json.loads(path.read_text()), self.rng)))

        def journal(path: Path) -> None:
            lines = path.read_bytes().splitlines(keepends=True)
            at = self.rng.randrange(len(lines))
            record = changed(json.loads(lines[at]), self.rng)
            lines[at] = self.rng.choice([json.dumps(record).encode() + b"\n", b"", lines[at][: len(lines[at]) // 2]])
            path.write_bytes(b"".join(lines))

        def weights(path: Path) -> None:
            tensors, metadata = read_tensors(path, checked=False)
            write_tensors(path, rearranged(tensors, self.rng), metadata)

        return {
            "config.yaml": config, f"config.yaml{FORGED}": forged_config, "summary.json": plain,
            f"summary.json{FORGED}": forged_summary, "plan.json": plain, "journal.jsonl": journal,
            "weights of a trained network": weights, "weights of a pruned network": weights,
            "weights of a curve point": weights,
        }  # fmt: skip


FORGED = ", forged"
"""The checksum was made anew too: the schema has to hold alone, and what still fits it is a valid file."""
OTHERS = (None, -1, 2**70, 0.5, "nonsense", "", [], {}, [[]], {"a": None}, True, "../../x")


def nodes(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    entries = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in entries:
        yield (*path, key)
        yield from nodes(value, (*path, key))


def changed(tree: Any, rng: random.Random) -> Any:
    """The same with one entry removed, replaced by something else, or one level down."""
    tree = copy.deepcopy(tree)
    path = rng.choice(list(nodes(tree)))
    parent = tree
    for step in path[:-1]:
        parent = parent[step]
    kind = rng.randrange(3)
    if kind == 0:
        del parent[path[-1]]
    elif kind == 1:
        old = parent[path[-1]]
        parent[path[-1]] = rng.choice([other for other in OTHERS if other != old])
    else:
        parent[path[-1]] = {"nested": parent[path[-1]]}
    return tree


def rearranged(tensors: dict[str, torch.Tensor], rng: random.Random) -> dict[str, torch.Tensor]:
    """The same with one tensor missing, renamed, of another shape or type of number, or one more."""
    tensors = dict(tensors)
    name = rng.choice([n for n, t in tensors.items() if t.is_floating_point()])
    kind, old = rng.randrange(5), tensors.pop(name)
    if kind == 1:
        tensors[f"{name}.x"] = old
    elif kind == 2:
        tensors[name] = torch.cat([old, old])
    elif kind == 3:
        tensors[name] = old.to(torch.int32)
    elif kind == 4:
        tensors |= {name: old, "more": old}
    return tensors


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(equal(v, b[k]) for k, v in a.items())
    return bool(a == b)


def children_of(pid: int, word: str) -> list[int]:
    """Child processes whose command line has a word."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            try:
                if word in Path(f"/proc/{child}/cmdline").read_text():
                    found.append(child)
            except OSError:
                continue
    return found


def kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


PARTS = ("kills", "disks", "crowds", "signals", "workers", "ray", "flips", "changes")


def soak() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=1.0, help="share of every trial, 0 to 1")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    logging_off()
    print(f"{machine(torch.device('cpu'))}, share {options.share}, seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="sentei-soak-") as home:
        os.chdir(home)
        work = Soak(options.share, random.Random(options.seed))
        with work.books.timed("prepare"):
            work.prepare()
        for part in options.only:
            with work.books.timed(part):
                getattr(work, part)()
            print(f"{part}: {work.books.seconds[part]:.0f} s", flush=True)
        os.chdir("/")
    return 0 if work.books.show() else 1


def logging_off() -> None:
    """The log names every damaged line, a thousand times here."""
    import logging

    logging.getLogger("sentei").setLevel(logging.ERROR)


if __name__ == "__main__":
    sys.exit(soak())
