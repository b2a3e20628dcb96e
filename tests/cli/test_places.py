"""A run is known by the contents of its data, weights and code, not by where they lie or how a path was spelled."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sentei.data import load_data
from sentei.models import build_model
from tests.cli.conftest import Killed

MINE = """
import torch
from torch import nn

def net(num_classes=3):
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, num_classes))

def images():
    y = torch.arange(240) % 3
    x = torch.rand(240, 3, 8, 8, generator=torch.Generator().manual_seed(0)) + y[:, None, None, None]
    return x[:180], y[:180], x[180:], y[180:]
"""
TINY = ("--epochs", 2, "--batch-size", 32)


def photos(folder: Path, shift: int = 0) -> None:
    """Two classes of four small pictures, and as many to test on."""
    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        for label in ("cat", "dog"):
            (folder / part / label).mkdir(parents=True)
            for i in range(8):
                pixels = rng.integers(0, 255, (12 + shift, 12, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / part / label / f"{i}.png")


@pytest.fixture
def killed(sentei, dying, tmp_path, monkeypatch):
    """Start a command in the folder `home`, kill it on its way, and go on from the folder `elsewhere`."""
    (tmp_path / "home").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "home/mine.py").write_text(MINE)
    photos(tmp_path / "home/photos")
    monkeypatch.chdir(tmp_path / "home")

    def kill(*command, writes=3):
        dying(writes)
        with pytest.raises(Killed):
            sentei(*command)
        dying(-1)
        monkeypatch.chdir(tmp_path / "elsewhere")

    return kill


FOLDER = ("--data", "imagefolder:photos", "--image-size", 12, "--val", 4, "--workers", 0)
COMMANDS = {
    "folder": ("train", "resnet20", *FOLDER, "--batch-size", 4, "--epochs", 1),
    "code": ("train", "mine.py:net", "--data", "mine.py:images", *TINY),
    "weights": ("train", "digitsnet", "--data", "digits", "--weights", "w.pt", "--limit", 128, *TINY),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_resume_finds_what_was_given_by_a_relative_path(name, sentei, killed, tmp_path):
    torch.save(build_model("digitsnet").state_dict(), tmp_path / "home/w.pt")
    killed(*COMMANDS[name], "--run", "out/x")
    done = sentei("resume", "../home/out/x", "--trust")
    assert done.code == 0, done.err


@pytest.mark.parametrize("name", COMMANDS)
def test_the_same_command_goes_on_however_its_paths_are_spelled(name, sentei, killed, tmp_path):
    torch.save(build_model("digitsnet").state_dict(), tmp_path / "home/w.pt")
    killed(*COMMANDS[name], "--run", "out/x")
    spelled = [str(w).replace("photos", "../home/photos").replace("mine.py", "../elsewhere/../home/mine.py")
               .replace("w.pt", str(tmp_path / "home/w.pt")) for w in COMMANDS[name]]  # fmt: skip
    done = sentei(*spelled, "--run", tmp_path / "home/out/x")
    assert done.code == 0, done.err
    assert "Going on with the half-finished run" in done.out


def test_moved_images_are_named_again_and_their_content_decides(sentei, killed, tmp_path):
    killed(*COMMANDS["folder"], "--run", "x")
    shutil.move(tmp_path / "home/photos", tmp_path / "moved")
    lost = sentei("resume", "../home/x")
    assert lost.code == 2
    assert "sentei resume ../home/x --data imagefolder:PATH" in lost.err
    photos(tmp_path / "others", shift=1)
    other = sentei("resume", "../home/x", "--data", "imagefolder:../others")
    assert other.code == 2
    assert "other settings: data.content is" in other.err
    assert sentei("resume", "../home/x", "--data", "imagefolder:../moved").code == 0
    assert sentei("evaluate", "../home/x").code == 0  # the new place was noted


def test_moved_code_is_named_again_and_its_content_decides(sentei, killed, tmp_path):
    killed(*COMMANDS["code"], "--run", "x")
    shutil.move(tmp_path / "home/mine.py", "moved.py")
    assert "mine.py is not there any more" in sentei("resume", "../home/x", "--trust").err
    Path("other.py").write_text(MINE.replace("nn.ReLU()", "nn.Tanh()"))
    other = sentei("resume", "../home/x", "--model", "other.py:net", "--data", "moved.py:images")
    assert "other settings: code is" in other.err
    done = sentei("resume", "../home/x", "--model", "moved.py:net", "--data", "moved.py:images")
    assert done.code == 0, done.err


def test_moved_weights_are_named_again_and_their_content_decides(sentei, killed, tmp_path):
    torch.save(build_model("digitsnet").state_dict(), tmp_path / "home/w.pt")
    killed(*COMMANDS["weights"], "--run", "x")
    shutil.move(tmp_path / "home/w.pt", "moved.pt")
    assert "w.pt is not there any more" in sentei("resume", "../home/x").err
    torch.save(build_model("digitsnet").state_dict(), "other.pt")
    assert "other settings: base_sha256 is" in sentei("resume", "../home/x", "--weights", "other.pt").err
    assert sentei("resume", "../home/x", "--weights", "moved.pt").code == 0


def test_a_moved_run_and_a_moved_supernet_are_named_again(sentei, killed, tmp_path, trained):
    home, tiny = tmp_path / "home", ("--epochs", 1, "--batch-size", 64, "--limit", 128, "--score-images", 64)
    shutil.copytree(trained, home / "base")
    search = ("--supernet-epochs", 0, "--evaluations", 8, "--table-images", 60, "--candidates", 2,
              "--calibration-images", 64, "--validation-images", 60)  # fmt: skip
    stagewise = ("prune", "base", "--method", "stagewise", *search, *tiny)
    assert sentei(*stagewise, "--run", "net").code == 0
    killed(*stagewise, "--supernet", "net", "--macs", 0.4, "--run", "x", writes=6)
    shutil.move(home / "base", "base2")
    shutil.move(home / "net", "net2")
    assert "--model MODEL" in sentei("resume", "../home/x").err
    assert "--supernet RUN" in sentei("resume", "../home/x", "--model", "base2").err
    wrong = sentei("resume", "../home/x", "--model", "base2", "--supernet", "..")
    assert "no supernet trained by stagewise" in wrong.err
    done = sentei("resume", "../home/x", "--model", "base2", "--supernet", "net2")
    assert done.code == 0, done.err


def test_a_supernet_is_refused_where_none_is_used(sentei, killed):
    killed(*COMMANDS["weights"][:4], "--limit", 128, *TINY, "--run", "x")
    assert "uses no supernet" in sentei("resume", "../home/x", "--supernet", "y").err


def test_the_default_root_of_a_data_set_is_noted(tmp_path, monkeypatch):
    from sentei.cli.options import DataOptions

    (tmp_path / "data/cifar-10-batches-py").mkdir(parents=True)
    monkeypatch.delenv("SENTEI_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    assert DataOptions("cifar10").resolved().data_root == str(tmp_path / "data")
    (tmp_path / "named").mkdir()
    monkeypatch.setenv("SENTEI_DATA", "named")
    assert DataOptions("cifar10").resolved().data_root == str(tmp_path / "data")
    assert DataOptions("digits").resolved() == DataOptions("digits")


def test_identity_of_a_folder_needs_no_image(tmp_path):
    photos(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    a, b = (load_data(f"imagefolder:{tmp_path / n}", image_size=8, val=4).identity for n in "ab")
    assert a == b
    assert str(tmp_path) not in str(a)
    file = tmp_path / "b/train/cat/3.png"
    file.write_bytes(file.read_bytes() + b"x")
    assert load_data(f"imagefolder:{tmp_path / 'b'}", image_size=8, val=4).identity["content"] != a["content"]
    file.rename(file.with_name("9.png"))
    assert load_data(f"imagefolder:{tmp_path / 'b'}", image_size=8, val=4).identity["content"] != a["content"]
    assert load_data(f"imagefolder:{tmp_path / 'a'}", image_size=8, val=6).identity != a


def test_identity_of_images_in_memory_is_their_content():
    a, b = load_data("digits").identity, load_data("digits").identity
    assert a == b
    assert load_data("digits", seed=1).identity != a
    assert load_data("digits", normalize="none").identity != a
