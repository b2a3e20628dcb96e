"""Names and samples in little memory are what lists of them would be."""

import os
import random
from pathlib import Path

import pytest
import torch
from torchvision.datasets import ImageFolder

from sentei.data import load_data
from sentei.data.folder import scanned
from sentei.data.names import Names
from sentei.data.splits import content_of
from tests.data.test_folder import make_folder


def test_names_are_those_of_a_list() -> None:
    texts = ["", "a.png", "ä/ß.jpg", os.fsdecode(b"bad\xff.png"), "z" * 300]
    names = Names.of(texts)
    assert list(names) == texts
    assert list(names[1:3]) == texts[1:3]
    order = torch.tensor([4, 0, 2])
    assert list(names.take(order)) == [texts[i] for i in order.tolist()]
    assert list(Names.of([])) == []
    with pytest.raises(IndexError):
        names[len(texts)]


def nested(path: Path) -> Path:
    """Class folders with folders in them, a link, files of other kinds and names that sort oddly."""
    draw = random.Random(0)
    for name in ("b", "a", "10", "9"):
        for below in ("", "x", "x/y", "X"):
            folder = path / name / below
            folder.mkdir(parents=True, exist_ok=True)
            for i in draw.sample(range(100), 4):
                (folder / f"{i}.{draw.choice(['JPEG', 'png', 'txt'])}").touch()
        (path / name / "sure.png").touch()
    (path / "a" / "link").symlink_to(path / "b", target_is_directory=True)
    (path / "readme.md").touch()
    return path


def test_a_folder_is_scanned_as_torchvision_does(tmp_path: Path) -> None:
    ours, theirs = scanned(nested(tmp_path)), ImageFolder(str(tmp_path))
    assert list(ours) == theirs.samples
    assert list(ours.classes) == theirs.classes
    assert ours.labels.tolist() == theirs.targets


def test_the_content_is_what_it_was_as_one_text(tmp_path: Path) -> None:
    data = load_data(f"imagefolder:{make_folder(tmp_path)}", image_size=16, workers=0)
    told = [f"{Path(p).relative_to(tmp_path)} {os.path.getsize(p)} {y}" for p, y in data.test.samples]
    assert data.test.content() == content_of("\n".join(told), *data.test.constants())
