"""The command line in this process, and a trained run for tests that only read it."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from sentei.cli import main
from sentei.train.journal import Journal


@dataclass
class Outcome:
    code: int
    out: str
    err: str


@pytest.fixture
def sentei(capsys, monkeypatch, tmp_path) -> Callable[..., Outcome]:
    """Run `sentei ARGUMENTS` in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SENTEI_DEBUG", raising=False)
    monkeypatch.setattr("sentei.cli.set_threads", lambda: 1)

    def run(*arguments: object) -> Outcome:
        capsys.readouterr()
        try:
            code = main([str(a) for a in arguments])
        except SystemExit as stop:  # help and unknown options
            code = int(stop.code or 0)
        return Outcome(code, *capsys.readouterr())

    return run


class Killed(BaseException):
    """Stands for the death of the process: no handler of ours catches it."""


@pytest.fixture
def dying(monkeypatch):
    """Makes the n-th write to the disk the last: half of the times just before it, half of the times just after."""
    count = {"left": -1}

    def limited(original):
        def write(*args, **options):
            if count["left"] == 0:
                raise Killed
            done = original(*args, **options)
            count["left"] -= 1
            if count["left"] == 0 and count["after"]:
                raise Killed
            return done

        return write

    monkeypatch.setattr(os, "replace", limited(os.replace))
    monkeypatch.setattr(Journal, "append", limited(Journal.append))

    def after(writes: int) -> None:
        count.update(left=writes, after=writes % 2)

    return after


QUICK = ("--epochs", 1, "--batch-size", 64, "--limit", 256)


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Path:
    """A finished run of `sentei train digitsnet --data digits`."""
    folder = tmp_path_factory.mktemp("trained") / "base"
    assert main([str(a) for a in ("train", "digitsnet", "--data", "digits", "--run", folder, *QUICK)]) == 0
    return folder
