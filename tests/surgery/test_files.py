"""Files: what is written comes back bit for bit, and anything else is refused with its reason."""

import json
import os
import pickle
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from sentei import Plan, cut, load, save, trace
from sentei.errors import CheckpointError, PlanError
from sentei.surgery import load_plan
from tests import forked
from tests.proof import outputs, random_plan, same_bits
from tests.random_networks import Block, conv, randomise

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def build(width: int = 8, norm: bool = True) -> nn.Sequential:
    return nn.Sequential(
        conv(3, width),
        nn.BatchNorm2d(width) if norm else nn.Identity(),
        nn.ReLU(),
        conv(width, 6),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 4),
    ).eval()


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model = randomise(build())
    graph = trace(model, X)
    plan = random_plan(graph, 0, 0.5)
    save(cut(model, graph, plan), plan, tmp_path / "small", source="tests:build")
    return tmp_path / "small"


def tied() -> nn.Module:
    a, b = conv(6, 6), conv(6, 6)
    b.weight = a.weight
    return nn.Sequential(conv(3, 6), a, nn.ReLU(), b, conv(6, 2))


class Hidden(nn.Module):
    """Buffers that are not saved, an integer buffer, a scalar parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.scale = conv(3, 6), conv(6, 2), nn.Parameter(torch.tensor(0.5))
        self.register_buffer("table", torch.arange(6.0).view(6, 1, 1), persistent=False)
        self.register_buffer("steps", torch.tensor(7))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.scale * self.a(x) + self.table)


def dictionary() -> nn.Module:
    return Block(lambda m, x: {"a": m.b(m.a(x))}, a=conv(3, 6), b=conv(6, 2))


@pytest.mark.parametrize("make", [build, tied, Hidden, dictionary])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_round_trip_is_bit_equal(tmp_path: Path, make, dtype) -> None:
    model, x = randomise(make()).to(dtype).eval(), X.to(dtype)
    graph = trace(model, x)
    plan = random_plan(graph, 1, 0.5)
    small = cut(model, graph, plan)
    save(small, plan, tmp_path)
    back = load(make().to(dtype), tmp_path).eval()
    assert same_bits(outputs(back, (x,)), outputs(small, (x,)))
    assert {n: (t.dtype, t.shape) for n, t in back.state_dict().items()} == {
        n: (t.dtype, t.shape) for n, t in small.state_dict().items()
    }
    assert load_plan(tmp_path) == plan


def test_channels_last_round_trip(tmp_path: Path) -> None:
    model = randomise(build()).to(memory_format=torch.channels_last)
    x = X.to(memory_format=torch.channels_last)
    graph = trace(model, x)
    plan = random_plan(graph, 1, 0.5)
    small = cut(model, graph, plan)
    save(small, plan, tmp_path)
    back = load(build().to(memory_format=torch.channels_last), tmp_path)
    assert same_bits(list(back.state_dict().values()), list(small.state_dict().values()))


def test_tied_parameters_are_stored_once(tmp_path: Path) -> None:
    model = randomise(tied())
    graph = trace(model, X)
    plan = random_plan(graph, 0, 0.5)
    save(cut(model, graph, plan), plan, tmp_path)
    stored = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert "1.weight" in stored
    assert "3.weight" not in stored
    back = load(tied(), tmp_path)
    assert back[1].weight is back[3].weight


def test_trained_on_after_the_cut(saved: Path, tmp_path: Path) -> None:
    """What is saved are the weights of the cut model, not those of the dense one it came from."""
    small, plan = load(build(), saved), load_plan(saved)
    with torch.no_grad():
        for p in small.parameters():
            p.add_(0.25)
    save(small, plan, tmp_path / "again")
    assert same_bits(outputs(load(build(), tmp_path / "again"), (X,)), outputs(small, (X,)))


# -- nothing executable


def test_folder_holds_safetensors_and_json_only(saved: Path) -> None:
    assert sorted(f.name for f in saved.iterdir()) == ["model.safetensors", "plan.json"]
    record = json.loads((saved / "plan.json").read_text())
    assert record["source"] == "tests:build"
    header = int.from_bytes((saved / "model.safetensors").read_bytes()[:8], "little")
    assert json.loads((saved / "model.safetensors").read_bytes()[8 : 8 + header])
    for file in saved.iterdir():
        content = file.read_bytes()
        assert not content.startswith((b"\x80", b"PK"))
        with pytest.raises(Exception):  # noqa: B017, PT011  whatever pickle says, it cannot read this
            pickle.loads(content)


def test_load_never_unpickles(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_, **__):
        raise AssertionError("load tried to unpickle")

    for owner, name in [
        (torch, "load"),
        (pickle, "load"),
        (pickle, "loads"),
        (pickle, "Unpickler"),
        (pickle, "_Unpickler"),
    ]:
        monkeypatch.setattr(owner, name, refuse)
    monkeypatch.setattr("builtins.eval", refuse)
    load(build(), saved)


# -- damaged files


def test_missing_folder_and_files(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot read .*nowhere.*No such file.*plan.json"):
        load(build(), tmp_path / "nowhere")
    (saved / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="model.safetensors"):
        load(build(), saved)


@pytest.mark.parametrize("cut_off", [0, 4, 100, -1])
@pytest.mark.parametrize("name", ["model.safetensors", "plan.json"])
def test_truncated_file(saved: Path, name: str, cut_off: int) -> None:
    content = (saved / name).read_bytes()
    (saved / name).write_bytes(content[:cut_off])
    with pytest.raises(CheckpointError, match=f"{name}.*(truncated|altered)"):
        load(build(), saved)


@pytest.mark.parametrize("where", [0, 9, 0.5, 0.9, -1])
def test_flipped_bit_in_the_weights(saved: Path, where: float) -> None:
    file = saved / "model.safetensors"
    content = bytearray(file.read_bytes())
    position = int(where * len(content)) if isinstance(where, float) else where
    content[position] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match="model.safetensors is truncated or altered"):
        load(build(), saved)


def test_appended_bytes(saved: Path) -> None:
    with open(saved / "model.safetensors", "ab") as file:
        file.write(b"more")
    with pytest.raises(CheckpointError, match="truncated or altered"):
        load(build(), saved)


def edit(path: Path, change) -> None:
    record = json.loads((path / "plan.json").read_text())
    change(record)
    (path / "plan.json").write_text(json.dumps(record))


@pytest.mark.parametrize(
    "change",
    [
        lambda r: r["plan"]["keep"]["0"].pop(),
        lambda r: r["plan"]["keep"].update({"0": [0, 1, 2, 3]}),
        lambda r: r.update(source="elsewhere"),
        lambda r: r["weights"].update(sha256="0" * 64),
        lambda r: r["weights"].update(file="../other.safetensors"),
        lambda r: r.update(sha256="0" * 64),
        lambda r: r.pop("sha256"),
        lambda r: r.pop("plan"),
        lambda r: r.pop("weights"),
        lambda r: r.update(format="other"),
    ],
)
def test_altered_plan(saved: Path, change) -> None:
    edit(saved, change)
    with pytest.raises(CheckpointError, match=r"plan\.json"):
        load(build(), saved)


@pytest.mark.parametrize("text", ["", "[]", "null", "3", '{"format": "sentei.pruned"}', "not json", "\x00\xff"])
def test_not_a_plan(saved: Path, text: str) -> None:
    (saved / "plan.json").write_text(text, encoding="latin-1")
    with pytest.raises(CheckpointError, match=r"plan\.json"):
        load(build(), saved)


def test_newer_version_is_refused(saved: Path) -> None:
    edit(saved, lambda r: r.update(version=3))
    with pytest.raises(CheckpointError, match="version 3, this sentei reads versions 1 to 2"):
        load(build(), saved)


# -- other models


@pytest.mark.parametrize(
    ("other", "text"),
    [
        (
            lambda: build(width=10),
            "parameter 0.weight is of shape 8x3x3x3 in the first and of shape 10x3x3x3 in the second",
        ),
        (
            lambda: nn.Sequential(conv(1, 8), *build()[1:]),
            "parameter 0.weight is of shape 8x3x3x3 in the first and of shape 8x1x3x3 in the second",
        ),
        (lambda: build(norm=False), "parameter 1.weight of shape 8 exists only in the first"),
        (lambda: nn.Sequential(*build(), nn.Linear(4, 4)), "parameter 7.weight of shape 4x4 exists only in the second"),
    ],
)
def test_other_model_is_refused_with_the_first_difference(saved: Path, other, text) -> None:
    with pytest.raises(CheckpointError, match=f"another model: {text}"):
        load(other(), saved)


def test_same_shapes_other_wiring_is_refused(tmp_path: Path) -> None:
    def plain(m: Block, x: torch.Tensor) -> torch.Tensor:
        return m.c(m.b(m.a(x)).relu())

    def skip(m: Block, x: torch.Tensor) -> torch.Tensor:
        y = m.a(x)
        return m.c(m.b(y).relu() + y)

    first, second = (Block(f, a=conv(3, 6), b=conv(6, 6), c=conv(6, 2)) for f in (plain, skip))
    graph = trace(first, X)
    plan = random_plan(graph, 0, 0.5)
    save(cut(first, graph, plan), plan, tmp_path)
    with pytest.raises(CheckpointError, match="another model"):
        load(second, tmp_path)


def test_model_given_to_load_is_untouched(saved: Path) -> None:
    model = build()
    before = [p.clone() for p in model.parameters()]
    load(model, saved)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


# -- writing


def test_plan_without_a_model_is_refused(tmp_path: Path) -> None:
    model = build()
    plan = Plan({"0": [0, 1]})
    with pytest.raises(PlanError, match="not bound to a model"):
        save(cut(model, trace(model, X), plan), plan, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_unwritable_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    model = build()
    graph = trace(model, X)
    plan = random_plan(graph, 0, 0.5)
    with pytest.raises(CheckpointError, match="could not write"):
        save(cut(model, graph, plan), plan, tmp_path / "file" / "small")


FULL_DISK = """
import resource, signal, sys, torch
from pathlib import Path
from sentei import cut, save, trace
from sentei.errors import CheckpointError
from tests.proof import random_plan
from tests.surgery.test_files import X, build
model = build(width=64)
graph = trace(model, X)
plan = random_plan(graph, 0, 0.9)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
try:
    save(cut(model, graph, plan), plan, Path(sys.argv[1]))
except CheckpointError as error:
    print("refused:", error)
"""


@pytest.mark.skipif(os.name == "nt", reason="file size limits are POSIX")
def test_full_disk_leaves_the_old_files(saved: Path) -> None:
    """A file size limit stops the write half way: the old checkpoint stays, no half file is left."""
    before = {f.name: f.read_bytes() for f in saved.iterdir()}
    root = Path(__file__).parents[2]
    env = {**os.environ, "PYTHONPATH": f"{root / 'src'}{os.pathsep}{root}"}
    done = forked.run([sys.executable, "-c", FULL_DISK, str(saved)], env=env)
    assert done.returncode == 0, done.stderr
    assert "refused: could not write" in done.stdout
    assert "free some space" in done.stdout
    assert {f.name: f.read_bytes() for f in saved.iterdir()} == before
    load(build(), saved)


def test_no_space_at_the_rename(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {f.name: f.read_bytes() for f in saved.iterdir()}

    def full(*_):
        raise OSError(28, "No space left on device")

    small, plan = load(build(), saved), load_plan(saved)
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        save(small, plan, saved)
    assert {f.name: f.read_bytes() for f in saved.iterdir()} == before


def test_crash_between_the_two_files_is_seen(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """New weights beside an old plan: refused, not loaded as a mixture."""
    small, plan = load(build(), saved), load_plan(saved)
    with torch.no_grad():
        small[0].weight.add_(1)
    replace, calls = os.replace, []

    def crash(source, target):
        calls.append(target)
        if len(calls) == 2:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        save(small, plan, saved)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="truncated or altered"):
        load(build(), saved)
