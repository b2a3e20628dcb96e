"""Every Python block of the documentation runs, in order, as a reader would paste it."""

import os
import re
import shutil
import sys
from pathlib import Path

import pytest

from tests import forked

ROOT = Path(__file__).parents[2]
PAGES = (
    "README.md", "docs/tutorial.md", "docs/tasks.md", "docs/own-loop.md", "docs/how-it-works.md", "docs/extending.md",
    "docs/abc.md", "docs/stagewise.md", "docs/latency.md", "docs/comparing.md",
)  # fmt: skip


LONG = {"docs/own-loop.md"}
"""The programs own_loop_* in examples/ are tried in any case."""


@pytest.mark.parametrize("page", [pytest.param(p, marks=[pytest.mark.slow] * (p in LONG)) for p in PAGES])
def test_python_blocks_run(page, tmp_path):
    blocks = re.findall(r"^```python\n(.*?)^```$", (ROOT / page).read_text(), flags=re.M | re.S)
    assert blocks
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    (tmp_path / "page.py").write_text("\n".join(blocks))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # a process of its own: pages register rules and methods
    done = forked.run([sys.executable, "page.py"], cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr


WITH_LINKS = ("README.md", "docs/graph.svg", *(str(p.relative_to(ROOT)) for p in sorted((ROOT / "docs").glob("*.md"))))


@pytest.mark.parametrize("page", WITH_LINKS)
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```$", "", (ROOT / page).read_text(), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if "://" not in target:
            assert (ROOT / page).parent.joinpath(target).exists(), target


def test_example_own_model(sentei, tmp_path):
    own = ROOT / "examples/own_model.py"
    done = sentei("train", f"{own}:net", "--data", f"{own}:images", "--epochs", 1, "--run", "own")
    assert done.code == 0, done.err
    done = sentei("prune", "own", "--trust", "--method", "taylor", "--macs", 0.4, "--epochs", 1, "--run", "small")
    assert done.code == 0, done.err
    ista = ("--method", "ista", "--macs", 0.7, "--sparse-epochs", 4)
    done = sentei("prune", "own", "--trust", *ista, "--epochs", 1, "--run", "own-ista")
    assert done.code == 0, done.err
    assert (tmp_path / "own-ista/gammas.png").is_file()
    seen = sentei("inspect", f"{own}:net", "--groups")
    assert seen.code == 0
    assert "depthwise" in seen.out or "left" in seen.out
