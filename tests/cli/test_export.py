"""`sentei export` as a user runs it, and the loaders of docs/shipping.md on what it leaves."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from sentei.cli import main
from sentei.cli.networks import load_run
from sentei.data import load_data
from sentei.deploy import making
from sentei.deploy.formats import FORMATS
from tests.cli.conftest import QUICK

PAGE = Path(__file__).parents[2] / "docs/shipping.md"


@pytest.fixture(scope="module")
def shipped(trained, tmp_path_factory) -> Path:
    """A copy of a run, with an ONNX file that was exported from it."""
    pytest.importorskip("onnxruntime")
    folder = tmp_path_factory.mktemp("shipped") / "base"
    shutil.copytree(trained, folder)
    assert main(["export", str(folder), "--batch", "dynamic"]) == 0
    return folder


def test_a_run_becomes_a_file_with_its_accuracy(shipped, trained):
    record = json.loads((shipped / "model.onnx.export.json").read_text())
    summary = json.loads((trained / "summary.json").read_text())
    assert {p.name for p in shipped.iterdir()} - {p.name for p in trained.iterdir()} == {
        "model.onnx", "model.onnx.export.json"
    }  # fmt: skip
    accuracy = record["accuracy"]
    assert accuracy["images"] == summary["data_description"]["val"]
    assert accuracy["recorded"] == summary["val_accuracy"] == accuracy["file"]["accuracy"]
    assert record["normalisation"]["mean"] == summary["data_description"]["mean"]
    assert record["classes"] == {"number": 10, "names": list("0123456789")}
    assert record["inputs"] == [{"name": "x", "shape": ["batch", 1, 8, 8], "dtype": "float32"}]
    assert (record["macs"], record["parameters"]) == (summary["macs"], summary["params"])


def test_what_is_shown_and_what_json_says(sentei, shipped, tmp_path):
    done = sentei("export", shipped, "--out", tmp_path / "a.onnx", "--images", 60)
    assert done.code == 0, done.err
    for text in ("input x", "1x1x8x8", "max error", "validation accuracy, file", "over a.onnx; a.onnx.export.json"):
        assert text in done.out
    assert "The run recorded" not in done.out
    done = sentei("export", shipped, "--out", tmp_path, "--images", 0, "--json")
    assert json.loads(done.out)["path"] == str(tmp_path / "model.onnx")
    assert json.loads(done.out)["accuracy"] is None
    assert json.loads(done.out)["normalisation"]["mean"] == pytest.approx([0.304932], abs=1e-6)


def test_a_model_by_name(sentei, trained, tmp_path):
    done = sentei("export", "digitsnet", "--weights", trained / "model.safetensors")
    assert done.code == 0, done.err
    record = json.loads(Path("digitsnet.onnx.export.json").read_text())
    assert (record["source"], record["accuracy"]) == ("digitsnet", None)


def test_an_overwritten_run_takes_its_exports_along(sentei, shipped, tmp_path):
    shutil.copytree(shipped, tmp_path / "x")
    (tmp_path / "x/own.onnx").touch()
    done = sentei("train", "digitsnet", "--data", "digits", "--run", "x", "--overwrite", *QUICK)
    assert done.code == 0, done.err
    assert [p.name for p in (tmp_path / "x").glob("*.onnx*")] == ["own.onnx"]


def test_ctrl_c_leaves_nothing(sentei, shipped, tmp_path, monkeypatch):
    shutil.copytree(shipped, tmp_path / "x")
    before = {p.name: p.read_bytes() for p in (tmp_path / "x").iterdir()}

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(making, "cases_of", interrupted)
    stopped = sentei("export", "x")
    assert (stopped.code, stopped.err) == (130, "\nInterrupted. Nothing was written.\n")
    assert {p.name: p.read_bytes() for p in (tmp_path / "x").iterdir()} == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--format", "tflite"), "there is no format 'tflite'; expected one of onnx, pt2, openvino, executorch"),
        (("--batch", "many"), "--batch many: expected a number of samples, or dynamic"),
        (("--image", "8x8x8"), "--image 8x8x8: expected pixels, such as 224 or 480x640 (height x width), or dynamic"),
        (("--weights", "w.pth"), "is a run and brings its own; leave out --weights"),
        (("--out", "mine.onnx"), "mine.onnx is there already, and sentei did not export it"),
        (("--out", "a.pt2"), "format onnx is written to a file .onnx, got a.pt2: name it a.pt2.onnx"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(arguments, said, sentei, trained, tmp_path):
    (tmp_path / "mine.onnx").touch()
    done = sentei("export", trained, *arguments)
    assert done.code == 2
    assert said in done.err.replace("\n", " ")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine.onnx"]


def test_missing_packages_are_told_before_any_work(sentei, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    done = sentei("export", "no-such-run")
    assert done.code == 2
    assert done.err.strip() == (
        "Error: format onnx needs onnxruntime, which is not installed:  pip install 'sentei[export]'"
    )


def test_data_that_have_moved_can_be_done_without(sentei, trained, monkeypatch):
    from sentei.errors import DataError

    def gone(self, *args):
        raise DataError("no images there")

    monkeypatch.setattr("sentei.cli.options.DataOptions.load", gone)
    done = sentei("export", trained, "--out", "a.onnx")
    assert done.code == 2
    assert "no images there (--images 0 exports without measuring the file)" in done.err


# -- the page


def loader_of(module: str) -> str:
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), flags=re.M | re.S)
    return next(block for block in blocks if module in block)


ALONE = "import sys\nsys.modules['sentei'] = None\n"
READERS = {"onnx": "import onnxruntime", "pt2": "torch.export.load", "openvino": "import openvino",
           "executorch": "from executorch"}  # fmt: skip


def test_the_page_has_a_loader_for_every_format():
    assert set(READERS) == set(FORMATS)
    for module in READERS.values():
        assert len([line for line in loader_of(module).splitlines() if line.strip()]) <= 11


@pytest.mark.parametrize(
    "format", ["onnx", *(pytest.param(f, marks=pytest.mark.slow) for f in ("pt2", "openvino", "executorch"))]
)
def test_a_loader_of_the_page_answers_as_the_network(format, shipped, tmp_path):
    """In a folder that holds the file and an image alone, in a process that cannot import sentei."""
    if format == "onnx":
        shutil.copy(shipped / "model.onnx", tmp_path)
    else:
        pytest.importorskip({"pt2": "torch"}.get(format, format))
        assert main(["export", str(shipped), "--format", format, "--out", str(tmp_path)]) == 0
    split = load_data("digits").val
    np.save(tmp_path / "image.npy", split.images[5].permute(2, 0, 1).numpy())
    (tmp_path / "page.py").write_text(ALONE + loader_of(READERS[format]))
    done = subprocess.run(
        [sys.executable, "-P", "page.py"], cwd=tmp_path, env=os.environ, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    image = list(split.batches(len(split)))[0][0][5:6]
    with torch.no_grad():
        wanted = load_run(str(shipped), False).eval()(image).argmax().item()
    assert done.stdout.split() == [str(wanted)]
