"""Models by reference, and weights files that load, fit or are refused."""

import builtins
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from sentei.errors import CheckpointError, ModelError
from sentei.models import build_model, input_shape_of, load_weights, reference

USER = """
from torch import nn
class Net(nn.Module):
    def __init__(self, classes, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, 4, 3)
        self.linear = nn.Linear(4, classes)
    def forward(self, x):
        return self.linear(self.conv(x).mean((2, 3)))
def both(num_classes=5, in_channels=3): return Net(num_classes, in_channels)
def fixed(): return Net(2, 3)
def keywords(**given): return Net(given["num_classes"], given["in_channels"])
def text(): return "net"
def broken(): raise RuntimeError("out of ideas")
both.input_shape = (3, 20, 24)
"""


@pytest.fixture
def user_file(tmp_path: Path) -> str:
    (tmp_path / "net.py").write_text(USER)
    return str(tmp_path / "net.py")


def test_user_function_gets_what_it_takes(user_file: str) -> None:
    model = build_model(f"{user_file}:both", num_classes=7, in_channels=1)
    assert (model.linear.out_features, model.conv.in_channels) == (7, 1)
    assert build_model(f"{user_file}:keywords", num_classes=3, input_shape=(2, 8, 8)).conv.in_channels == 2
    assert build_model(f"{user_file}:fixed", num_classes=7).linear.out_features == 2
    assert input_shape_of(f"{user_file}:both") == (3, 20, 24)
    assert input_shape_of(f"{user_file}:fixed") == (3, 224, 224)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("text", "returned str, expected a torch.nn.Module"),
        ("broken", "RuntimeError: out of ideas"),
        ("absent", "no function 'absent'. It defines: Net, both, fixed, keywords, text, broken"),
        ("not a name", "not of the form"),
    ],
)
def test_bad_user_functions_are_refused(user_file: str, name: str, text: str) -> None:
    with pytest.raises(ModelError, match=text):
        build_model(f"{user_file}:{name}")


def test_bad_user_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is no file"):
        build_model(f"{tmp_path}/none.py:make")
    (tmp_path / "wrong.py").write_text("import nothing_of_this_name")
    with pytest.raises(ModelError, match="failed to import: ModuleNotFoundError"):
        build_model(f"{tmp_path}/wrong.py:make")


@pytest.mark.parametrize(
    ("ref", "near"),
    [
        ("resnet65", "'resnet65'. Did you mean resnet56"),
        ("torchvision:resnet500", "Did you mean torchvision:resnet50"),
        ("timm:mobilnetv2_100", "Did you mean timm:mobilenetv2_100"),
        ("sentei:resnet20-cifar", "Did you mean sentei:resnet20-cifar10"),
        ("qqqq", "Known: resnet20"),
        ("torchvision:r2plus1d_18", "Unknown torchvision model"),
    ],
)
def test_unknown_names_suggest_the_nearest(ref: str, near: str) -> None:
    if ref.startswith("timm:"):
        pytest.importorskip("timm")
    with pytest.raises(ModelError, match=near):
        build_model(ref)


def test_torchvision_and_timm_models() -> None:
    assert build_model("torchvision:resnet18", num_classes=4)(torch.zeros(1, 3, 64, 64)).shape == (1, 4)
    segmenter = build_model("torchvision:lraspp_mobilenet_v3_large", num_classes=3).eval()
    assert segmenter(torch.zeros(1, 3, 64, 64))["out"].shape == (1, 3, 64, 64)
    with pytest.raises(ModelError, match="takes 3 channels"):
        build_model("torchvision:resnet18", in_channels=1)
    pytest.importorskip("timm")
    model = build_model("timm:mobilenetv2_050", num_classes=4, in_channels=1).eval()
    assert model(torch.zeros(1, 1, 64, 64)).shape == (1, 4)


def test_input_shapes() -> None:
    assert input_shape_of("resnet20") == input_shape_of("sentei:resnet20-cifar10") == (3, 32, 32)
    assert input_shape_of("digitsnet") == (1, 8, 8)
    assert input_shape_of("torchvision:inception_v3") == (3, 299, 299)
    pytest.importorskip("timm")
    assert input_shape_of("timm:efficientnet_b4") == (3, 320, 320)


def test_timm_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    real: Callable[..., Any] = builtins.__import__

    def without(name: str, *args: Any) -> Any:
        if name == "timm":
            raise ImportError("No module named 'timm'")
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ModelError, match="pip install timm"):
        build_model("timm:resnet18")


@pytest.mark.parametrize("value", [0, -3])
def test_counts_below_one_are_refused(value: int) -> None:
    with pytest.raises(ModelError, match=f"num_classes is {value}"):
        build_model("resnet20", num_classes=value)


def trained(seed: int = 1, classes: int = 10) -> nn.Module:
    torch.manual_seed(seed)
    model = build_model("resnet20", num_classes=classes)
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.uniform_()
    return model


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize("form", ["plain", "safetensors", "module", "nested", "model_key", "compiled", "no_counters"])
def test_weights_load_from_every_common_form(tmp_path: Path, form: str) -> None:
    model = trained()
    state: Any = model.state_dict()
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pth")
    if form == "safetensors":
        save_file(state, path)
    else:
        if form == "module":
            state = {"state_dict": {f"module.{n}": t for n, t in state.items()}, "best_prec1": 91.7}
        elif form == "nested":
            state = {"state_dict": state, "epoch": 3}
        elif form == "model_key":
            state = {"model": state}
        elif form == "compiled":
            state = {f"module._orig_mod.{n}": t for n, t in state.items()}
        elif form == "no_counters":
            state = {n: t for n, t in state.items() if not n.endswith("num_batches_tracked")}
        torch.save(state, path)
    assert same(build_model("resnet20", weights=path), model)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda t: (t * 100).to(torch.int8), "file int8, model float32"),
        (lambda t: (t * 100).long(), "file int64, model float32"),
        (lambda t: t > 0, "file bool, model float32"),
        (lambda t: torch.complex(t, t), "file complex64, model float32"),
        (lambda t: t.double() * 1e300, "file float64, model float32"),
    ],
)
def test_weights_that_would_lose_values_are_refused(tmp_path: Path, change, text: str) -> None:
    state = trained().state_dict()
    state["layer1.0.conv1.weight"] = change(state["layer1.0.conv1.weight"])
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(ModelError, match=rf"holds values that ResNet cannot hold: layer1\.0\.conv1\.weight: {text}"):
        build_model("resnet20", weights=tmp_path / "w.pth")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_are_rounded(tmp_path: Path, dtype: torch.dtype) -> None:
    model = trained()
    state = {n: t.to(dtype) if t.is_floating_point() else t.float() for n, t in model.state_dict().items()}
    torch.save(state, tmp_path / "w.pth")
    assert same(build_model("resnet20", weights=tmp_path / "w.pth"), model.to(dtype).float())
    state["bn1.num_batches_tracked"] = torch.tensor(0.5)
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(ModelError, match="bn1.num_batches_tracked: file float32, model int64"):
        build_model("resnet20", weights=tmp_path / "w.pth")


def test_weights_of_another_network_are_listed(tmp_path: Path) -> None:
    torch.save(trained().state_dict(), tmp_path / "w.pth")
    with pytest.raises(ModelError, match=r"60 missing in the file \(layer1\.3\.conv1\.weight.* and 54 more"):
        build_model("resnet32", weights=tmp_path / "w.pth")
    with pytest.raises(ModelError, match=r"of another shape \(conv1\.weight: file 16x3x3x3, model 16x1x3x3\)"):
        build_model("resnet20", in_channels=1, weights=tmp_path / "w.pth")
    state = {**trained().state_dict(), "extra.weight": torch.zeros(3)}
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(ModelError, match=r"1 not in the model \(extra\.weight\)"):
        build_model("resnet20", weights=tmp_path / "x.pth")


def test_last_layer_of_other_classes_is_replaced_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = trained(classes=100)
    torch.save(source.state_dict(), tmp_path / "w.pth")
    with pytest.raises(ModelError, match="Pass num_classes"):
        build_model("resnet20", weights=tmp_path / "w.pth")
    model = build_model("resnet20", num_classes=7, weights=tmp_path / "w.pth")
    assert "New last layer for 7 classes: linear.bias, linear.weight" in caplog.text
    assert model.linear.out_features == 7
    loaded, original = model.state_dict(), source.state_dict()
    assert all(torch.equal(loaded[n], original[n]) for n in loaded if not n.startswith("linear"))
    assert load_weights(build_model("resnet20", num_classes=100), tmp_path / "w.pth", new_head=100) == []


def test_a_wrong_shape_elsewhere_is_no_head(tmp_path: Path) -> None:
    """The stem for two channels is no last layer, though 16 'classes' match its first dimension."""
    torch.save(trained().state_dict(), tmp_path / "w.pth")
    with pytest.raises(ModelError, match=r"conv1\.weight: file 16x3x3x3, model 16x2x3x3"):
        build_model("resnet20", num_classes=16, in_channels=2, weights=tmp_path / "w.pth")


class Trap:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.mkdir, ("trapped",))


def test_code_and_rubbish_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Trap()}, "trap.pth")
    with pytest.raises(CheckpointError, match="pickled code is refused"):
        build_model("resnet20", weights="trap.pth")
    assert not Path("trapped").exists()
    Path("w.safetensors").write_bytes(b"12345678{}")
    Path("w.pth").write_bytes(b"rubbish")
    torch.save([1, 2], "list.pth")
    buffer = io.BytesIO()
    torch.save(trained().state_dict(), buffer)
    Path("cut.pth").write_bytes(buffer.getvalue()[:-500])
    for name in ("w.safetensors", "w.pth", "list.pth", "cut.pth", "none.pth"):
        with pytest.raises(CheckpointError, match=name):
            build_model("resnet20", weights=name)


def test_packaged_network_loads_its_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = trained()
    save_file(model.state_dict(), tmp_path / "resnet20-cifar10.safetensors")
    monkeypatch.setattr(reference, "WEIGHTS", tmp_path)
    assert same(build_model("sentei:resnet20-cifar10"), model)
    fresh = build_model("sentei:resnet20-cifar10", num_classes=5)
    assert fresh.linear.out_features == 5
    assert torch.equal(fresh.conv1.weight, model.conv1.weight)


def test_a_file_without_its_function_is_explained():
    with pytest.raises(ModelError, match=r"'net.py' is a file; name the function .* net.py:FUNCTION"):
        build_model("net.py")
