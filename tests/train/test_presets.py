"""Published recipes: known by name, and explicit settings come before theirs."""

from dataclasses import fields, replace
from typing import get_args

import pytest
import tyro

from sentei.cli import STYLE, commands
from sentei.cli.options import Preset
from sentei.errors import ConfigError
from sentei.methods import FINE_TUNE
from sentei.train import Recipe
from sentei.train.presets import PRESETS, preset


def parsed(line: str) -> Recipe:
    argv = line.split()
    return tyro.cli(commands(argv), args=argv, config=STYLE).recipe


def test_a_preset_fills_in_what_is_not_given() -> None:
    found = parsed("train resnet56 --data digits --preset imagenet-finetune --epochs 3 --batch-size=64")
    assert (found.epochs, found.batch_size, found.lr, found.momentum) == (3, 64, 1.024, 0.875)
    assert found == replace(preset("imagenet-finetune"), epochs=3, batch_size=64)
    assert parsed("train resnet56 --data digits") == Recipe()


def test_prune_takes_presets_over_its_own_recipe() -> None:
    found = parsed("prune resnet56 --data digits --macs 0.5 --method taylor --preset=imagenet-finetune --lr 0.1")
    named = PRESETS["imagenet-finetune"].settings
    assert all(getattr(found, name) == value for name, value in named.items() if name != "lr")
    assert found.lr == 0.1
    others = [f.name for f in fields(Recipe) if f.name not in named]
    assert all(getattr(found, name) == getattr(FINE_TUNE, name) for name in others)


@pytest.mark.parametrize("verb", ["compare resnet56 --methods taylor", "fidelity resnet56"])
def test_comparisons_take_presets_too(verb) -> None:
    found = parsed(f"{verb} --data digits --preset imagenet-finetune --epochs 3")
    assert (found.epochs, found.lr) == (3, 1.024)


def test_presets_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    (names, _) = get_args(get_args(Preset)[0])
    assert list(get_args(names)) == list(PRESETS)
    for line in ("train --help", "train --preset imagenet-train --help", "prune --help"):
        with pytest.raises(SystemExit):
            parsed(line)
        told = "".join(capsys.readouterr().out.split())
        assert "imagenet-finetune|imagenet-train" in told
        assert "arXiv2210.06659" in told.replace("│", "")


def test_unknown_presets_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="there are imagenet-finetune, imagenet-train"):
        preset("imagenet")
    with pytest.raises(SystemExit):
        parsed("train resnet56 --preset imagenet")
    assert "imagenet-finetune" in capsys.readouterr().err
