"""Each command as a user runs it, and what it leaves behind."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from sentei import load
from sentei.methods import METHODS
from sentei.models import build_model
from tests import forked
from tests.cli.conftest import QUICK

FILES = {"config.yaml", "journal.jsonl", "model.safetensors", "plan.json", "summary.json"}


def test_train_prune_evaluate_inspect(sentei, trained):
    summary = json.loads((trained / "summary.json").read_text())
    assert {f.name for f in trained.iterdir()} == FILES - {"plan.json"}
    assert summary["params"] == 38_122

    done = sentei("prune", trained, "--method", "taylor", "--macs", 0.5, "--run", "half", *QUICK)
    assert done.code == 0, done.err
    pruned = json.loads(Path("half/summary.json").read_text())
    assert pruned["base"]["accuracy"] == summary["accuracy"]
    assert pruned["pruned"]["macs"] <= 0.5 * pruned["base"]["macs"]
    for text in ("Run directory: half", "sentei evaluate half", "test accuracy", "MACs", "max error", "conv2"):
        assert text in done.out

    found = sentei("evaluate", "half")
    assert found.code == 0
    assert f"{pruned['pruned']['accuracy']:.2%}" in found.out
    assert "The run recorded the same" in found.out
    assert "The run recorded the same" in sentei("evaluate", trained, "--split", "val").out
    assert load(build_model("digitsnet"), "half").conv2.out_channels == pruned["widths"]["conv2"][1]

    seen = sentei("inspect", "half")
    assert seen.code == 0
    assert f"{pruned['pruned']['params']:,}" in seen.out


def test_prune_takes_model_and_data_from_the_run(sentei, trained):
    assert sentei("prune", trained, "--method", "l1", "--run", "x", "--steps", 2, *QUICK).code == 0
    config = yaml.safe_load(Path("x/config.yaml").read_text())
    assert config["resolved"]["data"]["data"] == "digits"
    assert config["resolved"]["method"] == "l1"
    assert config["resolved"]["budget"] == {"macs": 0.5}
    assert config["command"]["dense"]["ref"] == "digitsnet"
    assert config["command"]["dense"]["num_classes"] == 10


def test_options_reach_the_plan(sentei, trained):
    done = sentei("prune", trained, "--method", "l1", "--run", "x", "--round-to", 1, "--max-ratio", 0.6, "--keep",
                  "linear", "--params", 0.6, "--scope", "local", "--seed", 3, "--score-images", 64, "--distill",
                  *QUICK)  # fmt: skip
    assert done.code == 0, done.err
    summary = json.loads(Path("x/summary.json").read_text())
    assert summary["widths"]["conv4"] == [64, 64]
    assert summary["budget"] == {"params": 0.6}
    assert summary["seed"] == 3
    assert summary["settings"]["scope"] == "local"
    assert summary["settings"]["distill"]
    assert summary["pruned"]["params"] <= 0.6 * summary["base"]["params"]


def test_a_users_own_model_and_data(sentei, tmp_path):
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "from torch import nn\n"
        "def net(num_classes=3):\n"
        "    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3),\n"
        "                         nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, num_classes))\n"
        "def images():\n"
        "    g = torch.Generator().manual_seed(0)\n"
        "    y = torch.arange(240) % 3\n"
        "    x = torch.rand(240, 3, 8, 8, generator=g) + y[:, None, None, None]\n"
        "    return x[:180], y[:180], x[180:], y[180:]\n"
    )
    assert sentei("train", "mine.py:net", "--data", "mine.py:images", "--run", "base", "--epochs", 2).code == 0
    done = sentei("prune", "base", "--trust", "--method", "l2", "--run", "small", "--epochs", 1)
    assert done.code == 0, done.err
    assert json.loads(Path("small/summary.json").read_text())["widths"].keys() == {"0", "3"}
    assert "sentei evaluate small --trust" in done.out
    assert sentei("evaluate", "small", "--trust").code == 0
    assert sentei("inspect", "mine.py:net", "--input", "1,3,8,8").code == 0


def test_weights_for_another_number_of_classes_are_trained_first(sentei):
    torch.save(build_model("digitsnet", num_classes=7).state_dict(), "seven.pt")
    refused = sentei("prune", "digitsnet", "--data", "digits", "--weights", "seven.pt")
    assert refused.code == 2
    assert "the last layer of digitsnet is new" in refused.err
    assert "sentei train digitsnet --data digits --weights seven.pt --run runs/base" in refused.err
    done = sentei("train", "digitsnet", "--data", "digits", "--weights", "seven.pt", "--run", "base", *QUICK)
    assert done.code == 0
    assert "new last layer linear" in done.out
    assert sentei("prune", "base", "--method", "l1", "--run", "half", *QUICK).code == 0


def test_weights_file_names_the_trained_network(sentei):
    torch.manual_seed(1)
    model = build_model("digitsnet")
    torch.save({"state_dict": model.state_dict()}, "w.pt")
    done = sentei("prune", "digitsnet", "--method", "l1", "--data", "digits", "--weights", "w.pt", *QUICK)
    assert done.code == 0, done.err
    assert "Run directory: runs/digitsnet-digits-l1" in done.out
    assert sentei("evaluate", "digitsnet", "--data", "digits", "--weights", "w.pt").code == 0


def test_inspect_names_what_is_frozen_and_why(sentei):
    out = sentei("inspect", "resnet20", "--groups").out
    assert "40,551,040" in out
    assert "269,722" in out
    assert "reaches the network output" in out
    assert re.search(r"layer3\.1\.conv1 +64", out)
    assert "zero padding" in out


def test_inspect_says_what_the_forward_never_reads(sentei, tmp_path):
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.a, self.b, self.spare = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1), nn.Linear(10, 8)\n"
        "    def forward(self, x):\n"
        "        return self.b(self.a(x))\n"
        "def net():\n"
        "    return Net()\n"
    )
    out = sentei("inspect", "mine.py:net", "--input", "1,3,8,8").out
    assert "The forward never reads 88 parameters (77.2% of them): spare." in " ".join(out.split())
    assert "never reads" not in sentei("inspect", "resnet20").out


def test_inspect_takes_a_shape(sentei):
    assert "2x3x64x64" in sentei("inspect", "torchvision:squeezenet1_1", "--input", "2,3,64,64").out


def test_output_fits_80_columns(sentei, trained, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    sentei("prune", trained, "--method", "l1", "--run", "x", *QUICK)
    out = sentei("resume", "x").out + sentei("inspect", "resnet20", "--groups").out
    tables = [line for line in out.splitlines() if "  " in line.strip() or "─" in line]
    assert tables
    assert max(map(len, tables)) <= 80


VERBS = ["demo", "inspect", "train", "prune", "resume", "evaluate", "export", "fidelity", "bench", "compare", "report"]


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help(verb, sentei):
    done = sentei(*([verb] if verb else []), "--help")
    assert done.code == 0
    assert "usage: sentei" in done.out
    assert len(done.out) > 300


@pytest.mark.parametrize("method", METHODS)
def test_each_method_has_its_own_options(method, sentei):
    """Option names must not collide with those of data and recipe either: the parser would refuse them."""
    done = sentei("prune", "--method", method, "--help")
    assert done.code == 0
    assert f"method {method.replace('_', '-')} options" in done.out
    assert ("--evaluations" in done.out) == hasattr(METHODS[method], "evaluations")


def test_an_option_of_another_method_is_refused(sentei, trained):
    done = sentei("prune", trained, "--method", "l1", "--sources", 3)
    assert done.code == 2
    assert "method l1 has no option --sources; it belongs to abc. See:  sentei prune --method l1 --help" in done.err
    assert sentei("prune", trained, "--method", "abc", "--no-nonsense").code == 2


def test_the_paper_s_search_from_the_command_line(sentei, trained):
    search = ("--method", "abc", "--paper", "--alpha", 0.5, "--fitness-images", 64, "--cycles", 1)
    done = sentei("prune", trained, *search, "--run", "x", *QUICK)
    assert done.code == 0, done.err
    summary = json.loads(Path("x/summary.json").read_text())
    assert summary["settings"]["genes"] == "inner"
    assert summary["widths"]["conv2"][1] <= 16
    refused = sentei("prune", trained, *search, "--macs", 0.5, "--run", "y", *QUICK)
    assert refused.code == 2
    assert "takes no budget" in refused.err


def test_demo_tells_its_story(sentei, monkeypatch):
    from sentei.cli import demo
    from sentei.train import Recipe

    monkeypatch.setattr(demo, "TRAIN", Recipe(epochs=1, batch_size=64, limit=256))
    monkeypatch.setattr(demo, "TUNE", Recipe(epochs=1, batch_size=64, limit=128))
    done = sentei("demo", "--methods", "uniform", "taylor", "--run", "kept")
    assert done.code == 0, done.err
    assert all(f"{i}. " in done.out for i in range(1, 6))
    rows = {line.split()[0]: line for line in done.out.splitlines() if line.strip()}
    assert "1.49 M" in rows["none"]
    assert "741.77 k" in rows["uniform"]
    for method in ("uniform", "taylor"):
        summary = json.loads(Path(f"kept/{method}/summary.json").read_text())
        assert f"{summary['pruned']['accuracy']:.2%}" in rows[method]


def test_the_command_itself(tmp_path):
    """Through the interpreter, without a terminal: plain text on stdout, errors on stderr, exit codes."""
    run = [sys.executable, "-m", "sentei.cli"]
    good = subprocess.run([*run, "inspect", "digitsnet"], capture_output=True, text=True, cwd=tmp_path)
    assert (good.returncode, good.stderr) == (0, "")
    assert "\x1b" not in good.stdout
    assert "38,122" in good.stdout
    bad = forked.run([*run, "inspect", "digitnet"], cwd=tmp_path)
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr.startswith("Error: Unknown model 'digitnet'. Did you mean digitsnet")
    assert "Traceback" not in bad.stderr
