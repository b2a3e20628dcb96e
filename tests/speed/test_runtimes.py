"""Networks in each runtime: the same numbers, the model untouched, nothing said, clear refusals."""

import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from sentei.errors import ExportError
from sentei.speed import runtimes
from sentei.speed.profiles import Owner
from sentei.speed.runtimes import RUNTIMES, SHOWN, OnnxRuntime, default_runtime, runtime_of, to_onnx
from sentei.speed.survey import survey
from tests import forked


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.wide = nn.Conv2d(16, 32, 1)
        self.deep = nn.Conv2d(32, 32, 3, groups=32)
        self.head = nn.Linear(32, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.deep(self.wide(self.stem(x)))).mean((2, 3)))


@pytest.fixture(scope="module")
def example() -> torch.Tensor:
    return torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def file(example) -> bytes:
    torch.manual_seed(0)
    return to_onnx(Net().eval(), example)


SLOW = [pytest.param("compile", marks=pytest.mark.slow)]
PLACES = ["eager", "onnxruntime", "openvino", *SLOW]


@pytest.mark.parametrize("name", PLACES)
def test_each_runtime_computes_what_the_network_computes_and_leaves_it_alone(name, example, capfd, recwarn):
    model = Net().train()
    model.wide.eval()
    with torch.no_grad():
        for _ in range(3):
            model(10 * torch.randn(8, 3, 12, 12))  # statistics that a pass in train mode would not use
    before = {key: value.clone() for key, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]

    once = RUNTIMES[name].prepare(model, example, threads=1)
    first = once()
    for _ in range(2):
        again = once()

    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert not capfd.readouterr().out
    assert not len(recwarn)
    with torch.no_grad():
        expected = model.eval()(example).numpy()
    for out in (first, again):
        got = out.numpy() if isinstance(out, torch.Tensor) else np.asarray(out[0])
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", PLACES)
def test_versions_are_told(name):
    versions = RUNTIMES[name].versions()
    assert versions
    assert all(version[0].isdigit() for version in versions.values())
    assert SHOWN[name]


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_inputs_may_be_several_and_by_keyword(name):
    class Two(nn.Module):
        def forward(self, x, y):
            return x - 2 * y

    x, y = torch.randn(1, 4), torch.randn(1, 4)
    for example in ((x, y), {"y": y, "x": x}):
        out = RUNTIMES[name].prepare(Two(), example)()
        np.testing.assert_allclose(np.asarray(out[0]), (x - 2 * y).numpy(), rtol=1e-6)


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted in /proc")
def test_onnx_runtime_on_one_thread_makes_no_other(file, example):
    def threads() -> int:
        return len(list(Path("/proc/self/task").iterdir()))

    OnnxRuntime().of_bytes(file, [example.numpy()])()
    before = threads()
    once = OnnxRuntime().of_bytes(file, [example.numpy()], threads=1)
    once()
    assert threads() == before
    assert threading.active_count() <= before


def test_threads_of_torch_are_those_that_were_asked_for(example):
    class Counts(nn.Module):
        seen = 0

        def forward(self, x):
            Counts.seen = torch.get_num_threads()
            return x

    before = torch.get_num_threads()
    try:
        RUNTIMES["eager"].prepare(Counts(), example, threads=2)()
        assert Counts.seen == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("name", ["eager", "onnxruntime", "openvino"])
def test_profiles_know_every_layer(name, example):
    model = Net().eval()
    layers = survey(model, example).layers
    assert list(layers) == ["stem.0", "wide", "deep", "head"]
    profile = RUNTIMES[name].place(model, example).profile(layers)
    for _ in range(4):
        profile.once()
    seconds = profile.seconds()
    assert set(seconds) == {"", *layers}
    assert all(len(times) == 3 for times in seconds.values())
    assert all(seconds[layer].sum() > 0 for layer in layers)
    assert not model._forward_hooks
    assert not model.wide._forward_hooks


def test_names_that_onnx_runtime_makes_up_lead_to_the_layer(file):
    owner = Owner(file, ["stem.0", "wide", "deep", "head"])
    graph = pytest.importorskip("onnx").load_from_string(file).graph
    convs = [node for node in graph.node if node.op_type == "Conv"]
    after = {node.input[0]: node for node in graph.node if node.op_type == "Relu"}
    for node, layer in zip(convs, ["stem.0", "wide", "deep"], strict=True):
        out = node.output[0]
        for name in (node.name, f"{node.name}_kernel_time", f"fused {node.name}_kernel_time",
                     f"{node.name}/WithoutBiases", f"{out}_nchwc_kernel_time",
                     f"{out}_nchwc_token_12_kernel_time"):  # fmt: skip
            assert owner.of(name) == layer, name
        if out in after:
            assert owner.of(f"{after[out].output[0]}_nchwc_kernel_time") == layer  # named after what was fused into it
            assert owner.of(f"{after[out].name}_kernel_time") == ""  # an operation of its own
    for name in ("ReorderInput_kernel_time", "ReorderOutput_token_7_kernel_time", "", "nothing"):
        assert owner.of(name) == ""


def test_compile_does_not_tell_where_time_goes(monkeypatch, example):
    monkeypatch.setattr(torch, "compile", lambda model, **options: model)
    assert RUNTIMES["compile"].place(Net(), example).profile(["wide"]) is None


def test_compile_refuses_with_a_sentence(monkeypatch, example):
    def broken(model, **options):
        raise RuntimeError("\nno C++ compiler\nand a long story")

    monkeypatch.setattr(torch, "compile", lambda model, **options: broken)
    with pytest.raises(ExportError, match=r"torch.compile refuses this network: RuntimeError: no C\+\+ compiler$"):
        RUNTIMES["compile"].prepare(Net(), example)


def test_the_exporter_refuses_with_a_sentence(capfd):
    class Decides(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(ExportError, match="torch.onnx.export refuses this network: "):
        to_onnx(Decides(), torch.ones(3))
    assert capfd.readouterr().out == ""


def test_weights_that_onnx_does_not_take_in_one_piece_are_refused(monkeypatch):
    monkeypatch.setattr("sentei.speed.runtimes.LARGEST", 100)
    with pytest.raises(ExportError, match="GB are measured. Take --runtime eager or compile"):
        to_onnx(torch.nn.Linear(8, 8).eval(), torch.ones(1, 8))


@pytest.mark.parametrize(("name", "module", "extra"), [
    ("onnxruntime", "onnxruntime", "export"), ("onnxruntime", "onnxscript", "export"),
    ("openvino", "openvino", "openvino"),
])  # fmt: skip
def test_what_is_missing_is_named_with_what_installs_it(monkeypatch, example, name, module, extra):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ExportError, match=rf"{module}, which is not installed:  pip install 'sentei\[{extra}\]'"):
        RUNTIMES[name].prepare(Net(), example)


def test_devices_that_a_runtime_has_not(example, file):
    with pytest.raises(ExportError, match="OpenVINO is measured on the CPU only; got device 'cuda'"):
        RUNTIMES["openvino"].prepare(Net(), example, device="cuda")
    if "CUDAExecutionProvider" not in pytest.importorskip("onnxruntime").get_available_providers():
        with pytest.raises(ExportError, match="pip install onnxruntime-gpu, or take --device cpu"):
            OnnxRuntime().of_bytes(file, [example.numpy()], device="cuda")


def test_runtimes_by_name(monkeypatch):
    assert runtime_of("eager") is RUNTIMES["eager"]
    with pytest.raises(ExportError, match="there is no runtime 'tensorrt'; expected one of eager, compile"):
        runtime_of("tensorrt")
    assert default_runtime() == "onnxruntime"
    monkeypatch.setattr(runtimes.importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else object())
    assert default_runtime() == "eager"


@pytest.mark.slow
def test_signals_are_survived_once_two_networks_in_openvino_are_gone():
    pytest.importorskip("openvino")
    script = textwrap.dedent("""
        import signal, warnings
        import torch
        warnings.simplefilter("ignore")
        from sentei.speed.runtimes import RUNTIMES
        from tests.speed.test_runtimes import Net

        passes = [RUNTIMES["openvino"].prepare(Net().eval(), torch.zeros(1, 3, 8, 8)) for _ in range(2)]
        while passes:
            passes.pop(0)()
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.raise_signal(signal.SIGCHLD)
    """)
    found = forked.run([sys.executable, "-c", script], cwd=Path(__file__).parents[2])
    assert found.returncode == 0, found.stderr[-2000:]
