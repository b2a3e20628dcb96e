"""A file that is handed over computes what its network computes; otherwise there is none."""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

import sentei
from benchmarks.export import half
from sentei.data import Data
from sentei.deploy.alone import Alone
from sentei.deploy.axes import Axes, based, others
from sentei.deploy.formats import FORMATS
from sentei.deploy.handover import hand_over, workshop
from sentei.deploy.plain import Plain, like, named_outputs
from sentei.deploy.program import parameters_of, program_of
from sentei.deploy.record import facts_of
from sentei.errors import ExportError
from tests.deploy.plain_format import Flat, Numbers, OneByOne, Pooled

IMAGES = torch.zeros(1, 4, 2, 2)


@pytest.fixture
def numbers(monkeypatch):
    """Registers the format of NumPy; called with a factor, one that is wrong by it."""

    def registered(factor: float = 1.0) -> Numbers:
        monkeypatch.setitem(FORMATS, "numbers", Numbers(factor))
        return FORMATS["numbers"]

    registered()
    return registered


def exported(model, example, path, **more) -> sentei.Exported:
    return sentei.export(model, example, path, **{"format": "numbers", **more})


# -- the networks of the fast suite


@pytest.mark.parametrize(
    ("name", "free"),
    [
        ("resnet18", {"batch": "dynamic", "image": "dynamic"}),
        ("mobilenet_v2", {}),
        ("shufflenet_v2_x0_5", {}),
    ],
)
def test_onnx_computes_what_the_network_computes(name, free, tmp_path):
    onnx, ort = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    small, x = half(name, 64)
    before = {k: t.clone() for k, t in small.state_dict().items()}
    made = sentei.export(small, x, tmp_path / "net.onnx", **free)
    assert {p.name for p in tmp_path.iterdir()} == {"net.onnx", "net.onnx.export.json"}
    assert 0 < made.max_error <= 1e-5
    assert made.record["variation"] > 1e-3

    model = onnx.load(tmp_path / "net.onnx", load_external_data=False)
    onnx.checker.check_model(model, full_check=True)
    assert not any(t.HasField("data_location") and t.data_location for t in model.graph.initializer)
    assert str(Path(sentei.__file__).parents[2]) not in str(model.graph.node)
    dims = [d.dim_param or d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    assert dims == (["batch", 3, "height", "width"] if free else [1, 3, 64, 64])

    session = ort.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    other = torch.randn(5, 3, 96, 32) if free else torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        wanted = small.eval()(other)
    (found,) = session.run(["output"], {"x": other.numpy()})
    assert np.abs(found - wanted.numpy()).max() <= 1e-5 * wanted.abs().max()

    beside = json.loads(made.sidecar.read_text())
    inside = json.loads(session.get_modelmeta().custom_metadata_map["sentei"])
    assert {k: v for k, v in beside.items() if k in inside} == inside
    assert set(beside) - set(inside) == {"files", "seconds", "sha256"}
    assert beside["files"][0]["sha256"] == hashlib.sha256(made.path.read_bytes()).hexdigest() == made.checksum
    assert beside["parameters"] == sum(p.numel() for p in small.parameters())
    assert beside["macs"] == sentei.trace(small, x).cost().macs
    assert inside["versions"].keys() >= {"python", "sentei", "torch", "onnx", "onnxscript", "onnxruntime"}
    assert all(torch.equal(t, before[k]) for k, t in small.state_dict().items())


@pytest.mark.parametrize("room", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_weights_that_an_onnx_file_cannot_hold_lie_beside_it(room, tmp_path, monkeypatch):
    """With a lower limit, so that no gigabytes are needed; one byte more of room, and all is in one file."""
    onnx, ort = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    from sentei.deploy.formats import onnx as format

    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(4, 64, 3, bias=False), nn.ReLU(), nn.Conv2d(64, 8, 3, bias=False)).eval()
    size = sum(4 * p.numel() for p in net.parameters())
    monkeypatch.setattr(format, "LARGEST", size - 1 + room)
    monkeypatch.setattr(format, "ROOM", 0)
    x = torch.zeros(1, 4, 9, 9)
    made = sentei.export(net, x, tmp_path / "big.onnx")
    names = ["big.onnx"] if room else ["big.onnx", "big.onnx.data"]
    assert [f.name for f in made.files] == [f["name"] for f in made.record["files"]] == names
    assert {p.name for p in tmp_path.iterdir()} == {*names, "big.onnx.export.json"}
    for file, told in zip(made.files, made.record["files"], strict=True):
        assert told["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert (made.path.stat().st_size < size) == (room == 0)
    onnx.checker.check_model(str(made.path), full_check=True)
    (found,) = ort.InferenceSession(made.path, providers=["CPUExecutionProvider"]).run(None, {"input": x.numpy() + 1})
    with torch.no_grad():
        assert np.abs(found - net(x + 1).numpy()).max() <= 1e-5
    if room == 0:
        (tmp_path / "big.onnx.other").touch()
        sentei.export(nn.Conv2d(4, 8, 3).eval(), x, made.path)
        assert {p.name for p in tmp_path.iterdir()} == {"big.onnx", "big.onnx.export.json", "big.onnx.other"}
        pytest.importorskip("openvino")
        with pytest.raises(ExportError, match="which holds 2 GB; the weights are .* Take format onnx"):
            sentei.export(net, x, tmp_path / "big.xml", format="openvino")
        assert not (tmp_path / "big.xml").exists()


# -- what stands in the record


def test_record_has_inputs_classes_normalisation_and_figures(numbers, tmp_path):
    torch.manual_seed(0)
    images = [(torch.randn(7, 4, 2, 2), torch.randint(0, 3, (7,))) for _ in range(3)]
    data = Data.of(train=images, val=images, num_classes=3)
    made = exported(Pooled(), IMAGES, tmp_path / "a.npz", data=data, normalisation=([0.5] * 4, [0.25] * 4), source="me",
                    classes=("a", "b", "c"))  # fmt: skip
    record = made.record
    assert record["inputs"] == [{"name": "x", "shape": [1, 4, 2, 2], "dtype": "float32"}]
    assert record["outputs"] == [{"name": "output", "shape": [1, 3], "dtype": "float32"}]
    assert record["normalisation"] == {"of": "pixels in 0..1", "mean": [0.5] * 4, "std": [0.25] * 4}
    assert record["classes"] == {"number": 3, "names": ["a", "b", "c"]}
    assert record["source"] == "me"
    assert record["accuracy"]["images"] == 21
    assert made.figures == record["accuracy"]["file"]
    assert made.figures["accuracy"] == record["accuracy"]["network"]["accuracy"]
    assert (record["macs"], record["parameters"], record["odd_widths"]) == (12, 15, {})
    assert list(record["errors"]) == [f"random inputs (seed {i})" for i in range(3)]


@pytest.mark.parametrize(("batch", "most"), [(None, 1), (3, 3), ("dynamic", 16)])
def test_a_file_is_measured_in_the_batches_that_it_takes(batch, most, monkeypatch, tmp_path):
    class Bounded(Numbers):
        bounded = True
        loader = Numbers.loader.replace("return lambda x: [", f"return lambda x: [0 if len(x) > {most} else ")

    monkeypatch.setitem(FORMATS, "numbers", Bounded())
    torch.manual_seed(0)
    images = [(torch.randn(20, 4, 2, 2), torch.randint(0, 3, (20,)))] * 2
    made = exported(Pooled(), IMAGES, tmp_path / "a.npz", data=Data.of(train=images, val=images), batch=batch)
    accuracy = made.record["accuracy"]
    assert accuracy["images"] == 40
    assert accuracy["file"] == pytest.approx(accuracy["network"], abs=1e-6)


def test_data_that_the_file_does_not_take_are_not_measured(numbers, tmp_path):
    images, told = [(torch.zeros(2, 4, 2, 2), torch.tensor([0, 1]))], []
    data = Data.of(train=images, val=images)
    made = exported(Pooled(), IMAGES, tmp_path / "a.npz", data=data, image=4, say=told.append)
    assert made.figures is None
    assert told[0] == "Not measured on validation data: the file takes 4x4x4, the data are 4x2x2"


def test_a_file_that_is_worse_on_data_is_refused(numbers, tmp_path):
    """It agrees on small inputs, and goes wrong on large ones."""

    class Saturating(Numbers):
        loader = Numbers.loader.replace('file["bias"]', 'file["bias"] * (1 if abs(x).max() < 50 else -1)')

    FORMATS["numbers"] = Saturating()
    images = [(torch.randn(8, 4, 2, 2) * 100, torch.ones(8, dtype=torch.int64))]
    net = Pooled()
    net.linear.weight.data.zero_()
    net.linear.bias.data = torch.tensor([0.0, 1.0, 0.0])
    with pytest.raises(ExportError, match=r"validation accuracy of 0\.00%, the network 100\.00%, on the same 8"):
        exported(net, IMAGES, tmp_path / "a.npz", data=Data.of(train=images, val=images, num_classes=3))
    assert not list(tmp_path.iterdir())


def test_odd_widths_are_named(numbers, tmp_path):
    net = nn.Sequential(nn.Conv2d(4, 17, 1), nn.Conv2d(17, 18, 1), nn.Conv2d(18, 20, 1), nn.Conv2d(20, 3, 1))
    assert facts_of(net, IMAGES, None)["odd_widths"] == {"0": 17, "1": 18}


def test_data_know_the_names_of_their_classes(data):
    assert data.class_names == tuple("0123456789")


# -- free sizes


def test_free_sizes_are_proven_and_named(numbers, tmp_path):
    record = exported(Pooled(), IMAGES, tmp_path / "a.npz", batch="dynamic", image="dynamic").record
    assert record["inputs"][0]["shape"] == ["batch", 4, "height", "width"]
    assert record["outputs"][0]["shape"] == ["batch", 3]
    assert list(record["errors"])[3:] == [
        "a batch of 1", "a batch of 3", "images of 4x4", "a batch of 3 with images of 4x4"
    ]  # fmt: skip


def test_fixed_sizes_other_than_the_examples(numbers, tmp_path):
    record = exported(Pooled(), IMAGES, tmp_path / "a.npz", batch=8, image=(4, 6)).record
    assert record["inputs"][0]["shape"] == [8, 4, 4, 6]


@pytest.mark.parametrize(
    ("network", "asked", "names", "works"),
    [
        (Flat, {"image": "dynamic"}, "the network itself does not take images of 4x4", "With fixed sizes it can"),
        (Flat, {"image": "dynamic", "batch": "dynamic"}, "itself does not take images", "With batch='dynamic' it can"),
        (OneByOne, {"batch": "dynamic"}, "torch.export refuses", "With fixed sizes it can: leave batch out"),
        (OneByOne, {"batch": "dynamic", "image": "dynamic"}, "torch.export", "With image='dynamic' it can"),
    ],
)
def test_what_cannot_be_free_is_refused_for_that_alone(network, asked, names, works, numbers, tmp_path):
    with pytest.raises(ExportError) as refused:
        exported(network(), IMAGES, tmp_path / "a.npz", **asked)
    assert names in str(refused.value)
    assert works in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not list(tmp_path.iterdir())
    assert exported(network(), IMAGES, tmp_path / "a.npz").max_error <= 1e-5


def test_another_size_halves_as_often_and_is_not_square():
    for size, wanted in ((224, (256, 288)), (8, (16, 16)), (28, (32, 36)), (300, (304, 308))):
        names = [name for name, _ in others([torch.zeros(2, 3, size, size)], Axes(image=True))]
        assert names == [f"images of {wanted[0]}x{wanted[1]}"]


def test_sizes_that_make_no_sense_are_refused():
    for tensors, batch, image in (([IMAGES], 0, None), ([IMAGES], None, -3), ([torch.zeros(2, 3)], None, 8)):
        with pytest.raises(ExportError):
            based(tensors, batch, image)


# -- what is wrong is not handed over


def test_a_file_that_computes_something_else_is_refused_with_the_figure(numbers, tmp_path):
    numbers(1.001)
    with pytest.raises(ExportError, match=r"differ by 0\.001 \(relative\) where at most 1e-05 is rounding"):
        exported(Pooled(), IMAGES, tmp_path / "a.npz")
    assert not list(tmp_path.iterdir())


def test_the_networks_own_rounding_is_told_and_a_tolerance_accepts(numbers, tmp_path):
    numbers(1.001)
    with pytest.raises(ExportError, match=r"the network itself is \d\.?\d?e-0[89] off .* in float64 \(a larger `toler"):
        exported(Pooled(), IMAGES, tmp_path / "a.npz")
    assert exported(Pooled(), IMAGES, tmp_path / "a.npz", tolerance=0.01).max_error == pytest.approx(0.001, rel=0.01)


def test_the_old_file_stays_where_a_new_one_is_refused(numbers, tmp_path):
    first = exported(Pooled(), IMAGES, tmp_path / "a.npz")
    files = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    numbers(2.0)
    with pytest.raises(ExportError):
        exported(Pooled(), IMAGES, tmp_path / "a.npz")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == files
    assert first.path.is_file()


@pytest.mark.parametrize("at", ["write", "build"])
@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError("No space left on device")])
def test_nothing_is_left_behind(at, stop, numbers, tmp_path, monkeypatch):
    def stopping(*args, **more):
        raise stop

    monkeypatch.setattr(Numbers, at, stopping)
    with pytest.raises((KeyboardInterrupt, OSError)):
        exported(Pooled(), IMAGES, tmp_path / "new/a.npz")
    assert not list((tmp_path / "new").iterdir())


def test_handing_over_is_all_or_nothing(tmp_path, monkeypatch):
    (tmp_path / "a").write_text("old a")
    with workshop(tmp_path) as place:
        for name in ("a", "b"):
            (place / name).write_text(f"new {name}")
        replace, calls = sys.modules["os"].replace, []

        def third_fails(*args):
            calls.append(args)
            if len(calls) == 3:
                raise KeyboardInterrupt
            replace(*args)

        monkeypatch.setattr("os.replace", third_fails)
        with pytest.raises(KeyboardInterrupt):
            hand_over([place / "a", place / "b"], tmp_path)
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"a": "old a"}


def test_missing_packages_are_named_with_what_installs_them(tmp_path, monkeypatch):
    for format, module, extra in (("onnx", "onnxruntime", "export"), ("openvino", "openvino", "openvino"),
                                  ("executorch", "executorch.exir", "executorch")):  # fmt: skip
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(ExportError, match=rf"format {format} needs \w+, .* pip install 'sentei\[{extra}\]'$"):
            sentei.export(Pooled(), IMAGES, tmp_path / "x", format=format)


def test_unknown_formats_and_wrong_suffixes_are_refused(numbers, tmp_path):
    with pytest.raises(ExportError, match="there is no format 'tflite'; expected one of onnx, pt2, openvino"):
        sentei.export(Pooled(), IMAGES, tmp_path / "a", format="tflite")
    with pytest.raises(ExportError, match=r"a file \.npz, got .*: name it a\.onnx\.npz"):
        exported(Pooled(), IMAGES, tmp_path / "a.onnx")


# -- the process without sentei


def test_sentei_cannot_be_imported_where_files_are_tried(numbers, tmp_path):
    class Curious(Numbers):
        loader = "import sentei\n" + Numbers.loader

    (tmp_path / "a.npz").touch()
    with pytest.raises(ExportError, match="cannot be used without sentei: it does not load: ModuleNotFoundError"):
        Alone(tmp_path / "a.npz", Curious()).__enter__()


def test_a_process_that_dies_is_told(numbers, tmp_path):
    class Dying(Numbers):
        loader = Numbers.loader + "\nimport os\ndef load(path):\n    return lambda x: os._exit(7)\n"

    np.savez(tmp_path / "a.npz", record="{}")
    with Alone(tmp_path / "a.npz", Dying()) as run, pytest.raises(ExportError, match="of 1x4x2x2: .* ended with 7"):
        run([IMAGES])


def test_what_a_library_prints_does_not_come_between(numbers, tmp_path):
    class Talking(Numbers):
        loader = Numbers.loader + "\nprint('hello')\n"

    np.savez(tmp_path / "a.npz", record="{}", weight=np.eye(4), bias=np.zeros(4))
    with Alone(tmp_path / "a.npz", Talking()) as run:
        assert run([torch.ones(1, 4, 2, 2)])[0].tolist() == [[1.0] * 4]


# -- inputs and outputs of any kind


class Segmenter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.classifier, self.unused = nn.Conv2d(4, 3, 1), nn.Linear(9, 9)
        self.aux_classifier = nn.Sequential(nn.Conv2d(4, 5, 1), nn.ReLU(inplace=True), nn.Conv2d(5, 3, 1))

    def forward(self, x, scale=None, twice=False):
        out = {"out": self.classifier(x), "aux": self.aux_classifier(x)}
        return out if scale is None else (out["out"] * scale["by"], out["aux"] * (2 if twice else 1))


def test_auxiliary_outputs_and_unused_weights_are_left_out():
    net = Segmenter().eval()
    plain = Plain(net, IMAGES)
    program = program_of(plain, [IMAGES], Axes())
    assert plain.left_out == ("aux",)
    assert set(program.state_dict) == {"classifier.weight", "classifier.bias"}
    assert parameters_of(program) == 15
    with torch.no_grad():
        assert torch.equal(program.module()(IMAGES + 1)["out"], net(IMAGES + 1)["out"])


def test_outputs_that_are_named_are_kept():
    plain = Plain(Segmenter(), IMAGES, None, ("aux", "out"))
    assert list(plain(IMAGES)) == ["aux", "out"]
    with pytest.raises(ExportError, match="no output middle; it returns out, aux"):
        Plain(Segmenter(), IMAGES, None, ("middle",))(IMAGES)


def test_tuples_and_keywords_are_plain_tensors_in_order():
    net, example = Segmenter(), {"x": IMAGES, "scale": {"by": torch.ones(1)}, "twice": True}
    plain = Plain(net, example)
    assert plain.names == ("x", "scale_0")
    tensors = [IMAGES + 1, torch.full((1,), 3.0)]
    out = plain(*tensors)
    wanted = net(tensors[0], {"by": tensors[1]}, twice=True)
    assert all(map(torch.equal, out, wanted))
    assert list(named_outputs(out)) == ["output_0", "output_1"]
    assert isinstance(like(out, list(out)), tuple)
    assert plain.tensors_of((), {"x": IMAGES, "scale": {"by": torch.ones(1)}, "twice": True})[0] is IMAGES


def test_a_network_without_tensors_is_refused():
    class Silent(nn.Module):
        def forward(self, x):
            return {}

    with pytest.raises(ExportError, match="the network has no output"):
        Plain(Silent(), IMAGES)(IMAGES)


def test_a_part_is_exported_through_its_forward(numbers, tmp_path):
    net = nn.Sequential(Pooled(), nn.ReLU(), nn.Linear(3, 2))
    made = exported(net, IMAGES, tmp_path, forward=lambda model, x: model[0](x))
    assert made.path == tmp_path / "model.npz"
    assert made.record["part"] == "<lambda>"
    assert (made.record["parameters"], made.record["left_out"]["parameters"]) == (15, 8)
    assert made.record["outputs"][0]["shape"] == [1, 3]


def test_detectors_are_exported_as_far_as_no_value_decides(tmp_path):
    detection = torchvision.models.detection
    ssd = detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None)
    with pytest.raises(ExportError, match="a whole SSD cannot be exported.*task='detection'"):
        sentei.export(ssd, torch.zeros(1, 3, 320, 320), tmp_path, format="pt2")
    rcnn = detection.fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None)
    for task in (None, "detection"):
        with pytest.raises(ExportError, match=r"one box after the other.*sentei\.export\(model\.backbone"):
            sentei.export(rcnn, torch.zeros(1, 3, 320, 320), tmp_path, format="pt2", task=task)
    assert not list(tmp_path.iterdir())
