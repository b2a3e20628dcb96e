"""What stays on a terminal once a command has ended: one line an epoch, no remains of live bars and tables."""

import fcntl
import os
import pty
import re
import select
import struct
import sys
import termios
import time

import pyte
import pytest

from tests.forked import Popen


def on_terminal(arguments, columns: int, rows: int = 24) -> tuple[int, list[str], str]:
    """Exit code, every line that a user sees in the end, scrolled ones too, and all that was written on the way."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TERM": "xterm-256color"}
    command = [sys.executable, "-m", "sentei.cli", *map(str, arguments)]
    process = Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, close_fds=True)
    os.close(theirs)
    written, end = b"", time.monotonic() + 240
    while time.monotonic() < end:
        if select.select([ours], [], [], 0.2)[0]:
            try:
                part = os.read(ours, 65536)
            except OSError:  # the other side is closed
                break
            if not part:
                break
            written += part
    os.close(ours)
    screen = pyte.HistoryScreen(columns, rows, history=10_000, ratio=0.5)
    pyte.ByteStream(screen).feed(written)
    gone = ["".join(line[i].data for i in range(columns)).rstrip() for line in screen.history.top]
    return process.wait(60), [*gone, *(line.rstrip() for line in screen.display)], written.decode(errors="replace")


QUICK = ("--batch-size", 64, "--limit", 640)


def test_each_epoch_leaves_one_line_and_the_bar_names_its_times(tmp_path):
    code, lines, written = on_terminal(
        ("train", "digitsnet", "--data", "digits", "--epochs", 4, *QUICK, "--run", tmp_path / "x"), 100
    )
    assert code == 0, "\n".join(lines)
    epochs = [line for line in lines if line.startswith("train ")]
    assert [re.match(r"train (\d)/4  loss \d\.\d{3}  val ", line).group(1) for line in epochs] == list("1234")
    assert not any("━" in line for line in lines)
    assert re.search(r"\d s spent, (\d+ s|-) left", written)


@pytest.mark.parametrize("columns", [80, pytest.param(140, marks=pytest.mark.slow)])
def test_the_live_table_of_ista_leaves_no_orphans(columns, trained, tmp_path):
    command = ("prune", trained, "--method", "ista", "--sparse-epochs", 3, "--rho", 0.001, "--score-images", 64)
    code, lines, written = on_terminal((*command, "--epochs", 1, *QUICK, "--run", tmp_path / "x"), columns)
    assert code == 0, "\n".join(lines)
    seen = "\n".join(lines)
    assert "live:" in written
    assert "live:" not in seen
    assert not any(mark in seen for mark in "┏┡┗└│╇")
    assert len([line for line in lines if line.startswith("ista ")]) == 3
    assert len([line for line in lines if line.startswith("finetune 1/1")]) == 1


def test_a_search_leaves_one_line_a_batch(trained, tmp_path):
    search = ("--method", "evolution", "--population", 4, "--parents", 2, "--evaluations", 8, "--round-to", 1)
    command = ("prune", trained, *search, "--score-images", 64, "--epochs", 1, *QUICK, "--run", tmp_path / "x")
    code, lines, _ = on_terminal(command, 120)
    assert code == 0, "\n".join(lines)
    assert len([line for line in lines if line.startswith("search: cycle")]) == 2
    assert not any("━" in line for line in lines)
