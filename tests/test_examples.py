"""Every program in examples/ runs as it is."""

import importlib.util
import os
import re
import sys
from pathlib import Path

import pytest

from tests import forked

ROOT = Path(__file__).parents[1]
NEEDS = {
    "hugging_face_trainer": ("transformers", "accelerate"),
    "timm_training": ("timm",),
    "ultralytics_yolo": ("ultralytics",),
}
SAYS = {
    "any_network": "loaded equals saved: True",
    "hugging_face_trainer": "sentei.prune: accuracy",
    "lightning_style": "still a module with its own step: Digits",
    "timm_training": "epoch 5: accuracy",
    "ultralytics_yolo": "still the network that was cut",
}
SLOW = {"hugging_face_trainer", "timm_training", "ultralytics_yolo"}
"""Those that take more than ten seconds."""
EVERY = sorted(path.stem for path in (ROOT / "examples").glob("*.py"))


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in EVERY])
def test_an_example_runs(name, tmp_path):
    for package in NEEDS.get(name, ()):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    offline = {"HF_HUB_OFFLINE": "1", "YOLO_OFFLINE": "true", "YOLO_CONFIG_DIR": str(tmp_path)}
    found = forked.run(
        [sys.executable, str(ROOT / "examples" / f"{name}.py")],
        cwd=tmp_path, env={**os.environ, **offline, "PYTHONPATH": path}, timeout=240,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr[-3000:]
    assert SAYS.get(name, "") in found.stdout
    if name.startswith("own_loop"):
        before, after = (int(n.replace(",", "")) for n in re.findall(r"([\d,]+) -> ([\d,]+) MACs", found.stdout)[0])
        assert 0.35 * before < after <= 0.5 * before


def test_what_is_expected_is_there():
    assert EVERY
    assert {*NEEDS, *SAYS, *SLOW} <= set(EVERY)
