"""The wheel: it holds what it needs, and runs in an environment that knows nothing of this folder."""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ROOT], check=True
    )
    return next(folder.glob("sentei-*.whl"))


def test_what_is_inside(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for needed in ("sentei/cli/__main__.py", "sentei_main.py", "sentei/models/weights/"):
        assert any(name.startswith(needed) for name in names), needed
    assert not [name for name in names if name.startswith(("tests/", "docs/", "examples/"))]


def test_the_demo_runs_where_nothing_else_of_sentei_is(wheel: Path, tmp_path: Path) -> None:
    """The environment is empty but for the packages that the wheel asks for, which come from this one."""
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env/bin/python"
    where = subprocess.check_output([python, "-c", "import site; print(site.getsitepackages()[0])"], text=True)
    site = Path(where.strip())
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", wheel], check=True)
    metadata = zipfile.ZipFile(wheel).read(next(n for n in zipfile.ZipFile(wheel).namelist() if n.endswith("METADATA")))
    asked = [Requirement(line[15:]) for line in metadata.decode().splitlines() if line.startswith("Requires-Dist: ")]
    for requirement in (r for r in asked if r.marker is None):
        assert version(requirement.name) in requirement.specifier
    ours = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}  # it may lead to this folder
    told = [python, "-c", "import sentei; print(sentei.__file__)"]
    where = subprocess.check_output(told, text=True, cwd=tmp_path, env=ours)
    assert Path(where.strip()).is_relative_to(site)
    demo = [tmp_path / "env/bin/sentei", "demo"]
    done = subprocess.run(demo, cwd=tmp_path, env=ours, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Done in" in done.stdout
