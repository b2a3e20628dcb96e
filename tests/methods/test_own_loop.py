"""The examples of training loops of one's own run as they are."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(name):
    found = subprocess.run(
        [sys.executable, "-W", "error", f"examples/{name}.py"], cwd=ROOT, capture_output=True, text=True, timeout=240,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])},
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    return found.stdout


@pytest.mark.parametrize("name", ["own_loop_sparsifier", "own_loop_search"])
def test_half_of_the_macs_go(name):
    before, after = re.search(r"([\d,]+) -> ([\d,]+) MACs", said := run(name)).groups()
    before, after = (int(n.replace(",", "")) for n in (before, after))
    assert 0.35 * before < after <= 0.5 * before, said
