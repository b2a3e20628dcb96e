"""The documentation as a site: built without a warning, with every public name."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import sentei

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mkdocs", reason="the extra docs is not installed")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return folder


def test_the_api_page_has_every_public_name(site: Path) -> None:
    named = {name.rpartition(".")[2] for name in re.findall(r'id="(sentei[\w.]*)"', (site / "api.html").read_text())}
    assert set(sentei.__all__) <= named


def test_examples_of_docstrings_are_code(site: Path) -> None:
    text = (site / "api.html").read_text()
    assert "&gt;&gt;&gt; " not in re.sub(r"<code.*?</code>", "", text, flags=re.S)
    assert "doctest" not in text


def test_every_page_is_in_the_navigation(site: Path) -> None:
    start = (site / "index.html").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert f'href="{page.stem}.html"' in start, page.name
    assert (site / "examples/own_model.html").is_file()
