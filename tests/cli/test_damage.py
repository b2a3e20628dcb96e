"""No damage to any file of a run gives a traceback, or goes unnoticed."""

import copy
import json
import random
import shutil

import pytest
import yaml

from sentei import runfiles
from sentei.cli.saved import saved_command
from sentei.errors import CheckpointError, SenteiError
from sentei.models import build_model, load_weights
from sentei.models.weights import read_state
from sentei.sealed import sealed_json, sealed_yaml
from sentei.tensorfile import read_tensors, write_tensors
from tests.cli.conftest import QUICK

FLIPS = 100
MANY = pytest.param(10, marks=pytest.mark.slow)
"""Times as many changes."""


@pytest.fixture(scope="module")
def pruned(tmp_path_factory, trained):
    from sentei.cli import main

    folder = tmp_path_factory.mktemp("damage") / "half"
    assert main([str(a) for a in ("prune", trained, "--method", "l1", "--run", folder, *QUICK)]) == 0
    return folder


@pytest.fixture(scope="module")
def stagewise(tmp_path_factory, trained):
    """A run with a supernet."""
    from sentei.cli import main

    folder = tmp_path_factory.mktemp("damage") / "stagewise"
    search = ("--supernet-epochs", 0, "--evaluations", 8, "--table-images", 60, "--candidates", 2,
              "--calibration-images", 64, "--validation-images", 60)  # fmt: skip
    command = ("prune", trained, "--method", "stagewise", *search, "--run", folder, *QUICK)
    assert main([str(a) for a in command]) == 0
    return folder


def test_a_damaged_supernet_is_refused(stagewise, trained, sentei, tmp_path):
    file, rng = tmp_path / "net/supernet-stagewise.safetensors", random.Random(3)
    shutil.copytree(stagewise, tmp_path / "net")
    whole = file.read_bytes()
    for _ in range(FLIPS):
        file.write_bytes(flipped(whole, rng))
        with pytest.raises(CheckpointError):
            read_tensors(file, checked=True)
    refused = sentei("prune", trained, "--method", "stagewise", "--supernet", "net", "--run", "x", *QUICK)
    assert refused.code == 2
    assert "supernet-stagewise.safetensors is" in refused.err


def flipped(payload: bytes, rng: random.Random) -> bytes:
    raw = bytearray(payload)
    raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    return bytes(raw)


READERS = {
    "config.yaml": lambda folder: saved_command(folder),
    "summary.json": lambda folder: runfiles.read_summary(folder),
    "model.safetensors": lambda folder: read_state(folder / "model.safetensors", checked=True),
}


@pytest.mark.parametrize("name", READERS)
def test_every_flip_is_noticed(name, trained, tmp_path):
    folder = tmp_path / "x"
    shutil.copytree(trained, folder)
    whole, rng = (folder / name).read_bytes(), random.Random(0)
    READERS[name](folder)
    for _ in range(FLIPS):
        (folder / name).write_bytes(flipped(whole, rng))
        with pytest.raises(SenteiError):
            READERS[name](folder)
    for size in (0, 1, len(whole) // 2, len(whole) - 1):
        (folder / name).write_bytes(whole[:size])
        with pytest.raises(SenteiError):
            READERS[name](folder)


def nodes(tree, path=()):
    """Every place in a nested structure."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield (*path, key)
            yield from nodes(value, (*path, key))
    elif isinstance(tree, list):
        for i, value in enumerate(tree):
            yield (*path, i)
            yield from nodes(value, (*path, i))


OTHERS = (None, -1, 2**70, 0.5, float("nan"), "nonsense", "", [], {}, [[]], {"a": None}, True, "../../x")


def changed(tree, rng: random.Random):
    """The same structure with one entry removed, replaced by something else, or put somewhere else."""
    tree = copy.deepcopy(tree)
    path = rng.choice(list(nodes(tree)))
    parent = tree
    for step in path[:-1]:
        parent = parent[step]
    kind = rng.randrange(3)
    if kind == 0:
        del parent[path[-1]]
    elif kind == 1:
        parent[path[-1]] = copy.deepcopy(rng.choice(OTHERS))
    else:
        parent[path[-1]] = {"nested": parent[path[-1]]}
    return tree


@pytest.mark.parametrize("times", [1, MANY])
@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.parametrize("run", ["trained", "pruned"])
def test_no_change_of_structure_gives_a_traceback(run, sealed, times, sentei, request, tmp_path):
    """`sealed` forges the checksum too: the schema has to hold alone, and what is still a valid file may be read."""
    folder = tmp_path / "x"
    shutil.copytree(request.getfixturevalue(run), folder)
    config, summary = yaml.safe_load((folder / "config.yaml").read_text()), runfiles.read_summary(folder)
    config.pop("sha256")
    rng = random.Random(1)
    for _ in range(30 * times):
        text = yaml.safe_dump(changed(config, rng), sort_keys=False)
        (folder / "config.yaml").write_bytes(sealed_yaml(text) if sealed else text.encode())
        survives(sealed, lambda: saved_command(folder))
    (folder / "config.yaml").write_bytes(sealed_yaml(yaml.safe_dump(config, sort_keys=False)))
    for _ in range(30 * times):
        other = changed(summary, rng)
        (folder / "summary.json").write_bytes(sealed_json(other) if sealed else json.dumps(other).encode())
        survives(sealed, lambda: runfiles.read_summary(folder))


def survives(sealed, read):
    try:
        read()
    except SenteiError:
        return
    assert sealed, "a changed file was read without a word"


@pytest.mark.parametrize("times", [1, MANY])
def test_commands_survive_forged_files(times, sentei, pruned, tmp_path):
    """A forged config that fits the schema may still say nonsense: the commands refuse it, they do not crash."""
    folder = tmp_path / "x"
    shutil.copytree(pruned, folder)
    config, summary = yaml.safe_load((folder / "config.yaml").read_text()), runfiles.read_summary(folder)
    config.pop("sha256")
    rng = random.Random(2)
    for i in range(15 * times):
        text = yaml.safe_dump(changed(config, rng), sort_keys=False)
        (folder / "config.yaml").write_bytes(sealed_yaml(text))
        (folder / "summary.json").write_bytes(sealed_json(changed(summary, rng)))
        verb = ("resume", "evaluate", "inspect")[i % 3]
        assert sentei(verb, folder).code in (0, 2)


def test_a_file_nested_without_end_is_damage(tmp_path, trained):
    folder = tmp_path / "x"
    shutil.copytree(trained, folder)
    for payload in (b"[" * 100_000, b"a: " * 100_000, b"\xff\xfe\x00", b"{" * 5000 + b"}" * 5000, b"2001-99-99: 1"):
        (folder / "config.yaml").write_bytes(payload)
        with pytest.raises(CheckpointError):
            saved_command(folder)
    (folder / "summary.json").write_bytes(b"[" * 100_000)
    with pytest.raises(CheckpointError):
        runfiles.read_summary(folder)


def test_a_weights_file_of_someone_else_needs_no_checksum(tmp_path):
    from safetensors.torch import save_file

    model = build_model("digitsnet")
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    assert load_weights(build_model("digitsnet"), tmp_path / "w.safetensors") == []
    with pytest.raises(CheckpointError, match="it has no checksum"):
        read_tensors(tmp_path / "w.safetensors", checked=True)
    write_tensors(tmp_path / "v.safetensors", model.state_dict(), {"about": "x"})
    assert read_tensors(tmp_path / "v.safetensors", checked=True)[1] == {"about": "x"}
