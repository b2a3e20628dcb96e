"""`load` refuses a model of the same parameters that computes something else, and says what differs."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sentei import cut, load, save, trace
from sentei.errors import CheckpointError
from sentei.graph.inputs import Inputs
from sentei.surgery.probe import Probe, Unprobed, differences, probe, uniform
from tests.proof import random_plan
from tests.random_networks import randomise

X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Every setting that changes what is computed, and no parameter."""

    def __init__(
        self,
        stride: int = 1,
        padding: int = 1,
        dilation: int = 1,
        mode: str = "zeros",
        pool: type[nn.Module] = nn.MaxPool2d,
        act: type[nn.Module] = nn.ReLU,
        eps: float = 1e-5,
        first: str = "norm",
        scale: float = 1.0,
        residual: bool = True,
        slope: float = 0.1,
        ceil: bool = False,
        size: int = 1,
    ) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 16, 3, stride, padding, dilation, padding_mode=mode)
        self.norm, self.act = nn.BatchNorm2d(16, eps=eps), act()
        self.pool = pool(3, 2, ceil_mode=ceil)
        self.b, self.c = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 1)
        self.leaky, self.end = nn.LeakyReLU(slope), nn.AdaptiveAvgPool2d(size)
        self.head = nn.Linear(16, 4)
        self.first, self.scale, self.residual = first, scale, residual

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x)
        x = self.act(self.norm(x)) if self.first == "norm" else self.norm(self.act(x))
        x = self.leaky(self.b(self.pool(x))) * self.scale
        y = self.c(x)
        y = x + y if self.residual else x - y
        return self.head(self.end(y).mean((2, 3)))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    torch.manual_seed(0)
    model = randomise(Net()).eval()
    graph = trace(model, X)
    plan = random_plan(graph, 0, 0.5)
    save(cut(model, graph, plan), plan, folder)
    return folder


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "stride": ({"stride": 2}, "MACs in the first"),
    "padding": ({"padding": 0}, "MACs in the first"),
    "padding that keeps the size": ({"padding": 2, "dilation": 2}, r"a was Conv2d\(.*dilation=\(1, 1\)"),
    "padding mode": ({"mode": "reflect"}, r"padding_mode='zeros'.* and is .*padding_mode='reflect'"),
    "replicated padding": ({"mode": "replicate"}, "padding_mode='replicate'"),
    "pooling": ({"pool": nn.AvgPool2d}, "pool was MaxPool2d.* and is AvgPool2d"),
    "ceiling of the pooling": ({"ceil": True}, "MACs in the first"),
    "activation": ({"act": nn.ReLU6}, r"act was ReLU\(.*and is ReLU6"),
    "similar activation": ({"act": nn.SiLU}, "and is SiLU"),
    "slope": ({"slope": 0.1001}, r"negative_slope=0\.1001"),
    "eps": ({"eps": 1.1e-5}, r"norm was BatchNorm2d\(.*eps=1e-05\b.*eps=1\.1e-05"),
    "order": ({"first": "act"}, "not the order of operations"),
    "number in the code": ({"scale": 1.000001}, "a number in its code"),
    "sign in the code": ({"residual": False}, "not the order of operations"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_computation_is_refused_by_name(saved: Path, change: str) -> None:
    settings, text = CHANGES[change]
    with pytest.raises(CheckpointError, match=f"(computes something else|pruned from another model).*{text}"):
        load(Net(**settings), saved)


def test_what_makes_no_difference_is_accepted(saved: Path) -> None:
    model = Net()
    model.norm.momentum = 0.5
    model.act = nn.ReLU(inplace=True)
    model.head = nn.Sequential(nn.Dropout(0.5), model.head)[1]
    load(model, saved)


def test_an_altered_buffer_that_is_not_saved_is_refused(tmp_path: Path) -> None:
    class Table(nn.Module):
        def __init__(self, value: float) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)
            self.register_buffer("gain", torch.full((8, 1, 1), value), persistent=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(self.a(x) * self.gain)

    model = Table(0.5).eval()
    graph = trace(model, X)
    plan = random_plan(graph, 0, 0.5)
    save(cut(model, graph, plan), plan, tmp_path)
    load(Table(0.5), tmp_path)
    with pytest.raises(CheckpointError, match="a buffer that is not saved"):
        load(Table(0.75), tmp_path)


def test_a_layer_that_was_replaced_after_the_cut_is_built_in_or_refused(tmp_path: Path) -> None:
    model = Net().eval()
    graph = trace(model, X)
    plan = random_plan(graph, 0, 0.5)
    small = cut(model, graph, plan)
    small.act = nn.Hardswish()
    save(small, plan, tmp_path)
    with pytest.raises(CheckpointError, match=r"act was Hardswish.* and is ReLU"):
        load(Net(), tmp_path)
    load(Net(act=nn.Hardswish), tmp_path)


# -- the probe itself


EXPECTED = [0.040951309217711666, 1.5604520180035955, -1.2326672603091609]


def asked(model: nn.Module, x: Any = X, macs: int | None = None) -> Probe:
    found = probe(model, Inputs.of(x), macs)
    assert isinstance(found, Probe)
    return found


def test_random_numbers_are_the_same_everywhere() -> None:
    assert uniform(1, 3).tolist() == EXPECTED
    many = uniform(7, 100_000)
    assert abs(many.mean()) < 0.02
    assert abs(many.std() - 1) < 0.01


def test_every_element_of_the_output_counts() -> None:
    class Dot(nn.Module):
        where: tuple[int, ...] | None = None

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out = x.repeat(1, 1, 20, 20)
            if self.where is not None:
                out[self.where] += 1e-3
            return out

    found = asked(Dot())
    assert differences(Dot(), found) is None
    for where in [(0, 0, 0, 0), (1, 2, 319, 319), (0, 1, 100, 7)]:
        other = Dot()
        other.where = where
        assert "outputs that differ by" in (differences(other, found) or "")


def test_float64_is_strict_and_other_precisions_allow_their_rounding() -> None:
    class Net(nn.Module):
        def __init__(self, dtype: torch.dtype | None, fixed: bool = False) -> None:
            super().__init__()
            self.a, self.dtype, self.fixed = nn.Linear(16, 4), dtype, fixed

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.fixed and x.dtype != self.a.weight.dtype or (self.fixed and x.dtype == torch.float64):
                raise RuntimeError("not in float64")
            return self.a(x if self.dtype is None else x.to(self.dtype).to(x.dtype))

    found = {
        "float64": asked(Net(None)),
        "mixed": asked(Net(torch.float32)),
        "half": asked(Net(torch.bfloat16)),
        "own": asked(Net(None, fixed=True)),
    }
    assert {k: (p.precision, p.tolerance) for k, p in found.items()} == {
        "float64": ("float64", 1e-8),
        "mixed": ("float64", 1e-4),
        "half": ("float64", 5e-2),
        "own": ("own", 1e-3),
    }


def test_batches_become_two_images_and_expensive_images_smaller() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1))
    sizes = {macs: asked(net, torch.zeros(8, 3, 256, 256), macs).inputs[0]["list"][0]["tensor"] for macs in (1, 10**12)}
    assert sizes == {1: [2, 3, 256, 256], 10**12: [2, 3, 64, 64]}
    assert asked(net, torch.zeros(1, 3, 9, 9)).inputs[0]["list"][0]["tensor"] == [2, 3, 9, 9]


def test_models_that_need_their_own_sizes_are_asked_with_these() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(3 * 128 * 128, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.a(x.reshape(5, -1))

    assert asked(Fixed(), torch.zeros(5, 3, 128, 128), 10**12).inputs[0]["list"][0]["tensor"] == [5, 3, 128, 128]


def test_branches_behind_a_scale_of_zero_are_seen(tmp_path: Path) -> None:
    class Branch(nn.Module):
        def __init__(self, act: nn.Module) -> None:
            super().__init__()
            self.a, self.b, self.c, self.act = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1), act
            self.norm, self.head = nn.BatchNorm2d(8), nn.Linear(8, 4)
            for weight in (self.norm.weight, self.head.weight, self.head.bias):
                nn.init.zeros_(weight)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.a(x)
            return self.head((x + self.norm(self.c(self.act(self.b(x))))).mean((2, 3)))

    model = Branch(nn.ReLU()).eval()
    graph = trace(model, X)
    plan = random_plan(graph, 0, 0.5)
    save(cut(model, graph, plan), plan, tmp_path)
    load(Branch(nn.ReLU()), tmp_path)
    with pytest.raises(CheckpointError, match=r"act was ReLU.* and is GELU"):
        load(Branch(nn.GELU()), tmp_path)


def test_a_parameter_that_noise_would_break_is_left_alone() -> None:
    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.full((64,), 1e-6))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean((2, 3))[:, :1] * self.scale.sqrt()

    found = asked(Root())
    assert not found.stirred
    assert differences(Root(), found) is None


class Random(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.rand(1)


class Infinite(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x / 0


class Raises(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise KeyError("targets")


class Silent(nn.Module):
    def forward(self, x: torch.Tensor) -> None:
        return None


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Random(), "its outputs are random in eval mode"),
        (Infinite(), "not finite"),
        (Raises(), "does not run on random inputs: KeyError: 'targets'"),
        (nn.Threshold(99.0, 0.0), "all zero"),
        (Silent(), "all zero"),
    ],
)
def test_what_cannot_be_asked_says_why(model: nn.Module, reason: str) -> None:
    found = probe(model, Inputs.of(X))
    assert isinstance(found, Unprobed)
    assert reason in found.reason


def test_a_network_that_cannot_be_asked_is_saved_and_loaded_with_a_warning(tmp_path: Path) -> None:
    class Noisy(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + torch.rand(())

    model = Noisy().eval()
    graph = trace(model, X)
    plan = random_plan(graph, 0, 0.5)
    with pytest.warns(UserWarning, match="is saved, but what the network computes could not be noted: .*random"):
        save(cut(model, graph, plan), plan, tmp_path)
    with pytest.warns(UserWarning, match="is loaded, but .*random"):
        load(Noisy(), tmp_path)
    with pytest.raises(CheckpointError, match="MACs in the first"):
        load(Noisy(stride=2), tmp_path)


# -- precision


def dtypes(model: nn.Module) -> set[torch.dtype]:
    return {t.dtype for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("when", ["before the cut", "after the cut"])
def test_precision_survives_onto_a_float32_model(tmp_path: Path, dtype: torch.dtype, when: str) -> None:
    model = Net().eval().to(dtype if when == "before the cut" else torch.float32)
    graph = trace(model, X.to(next(model.parameters()).dtype))
    plan = random_plan(graph, 0, 0.5)
    small = cut(model, graph, plan).to(dtype)
    save(small, plan, tmp_path)
    for dense in (Net(), Net().to(dtype), Net().double(), Net().to(memory_format=torch.channels_last)):
        before = dtypes(dense)
        loaded = load(dense, tmp_path).eval()
        assert dtypes(loaded) == {dtype}
        assert dtypes(dense) == before
        assert all(torch.equal(t, small.state_dict()[n]) for n, t in loaded.state_dict().items())
        last = loaded.b.weight.is_contiguous(memory_format=torch.channels_last)  # other kernels, other rounding
        assert last or torch.equal(loaded(X.to(dtype)), small(X.to(dtype)))
    assert loaded.b.weight.is_contiguous(memory_format=torch.channels_last)


def test_mixed_precision_and_hidden_buffers_survive(tmp_path: Path) -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.norm, self.b = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)
            self.register_buffer("gain", torch.full((8, 1, 1), 0.5), persistent=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.a(x.to(self.a.weight.dtype)) * self.gain
            return self.b(self.norm(x.to(self.norm.weight.dtype)).to(self.b.weight.dtype))

    model = Mixed().eval()
    graph = trace(model, X)
    plan = random_plan(graph, 0, 0.5)
    small = cut(model, graph, plan).bfloat16()
    small.norm.float()
    save(small, plan, tmp_path)
    loaded = load(Mixed(), tmp_path).eval()
    types = {n: t.dtype for n, t in (*loaded.named_parameters(), *loaded.named_buffers()) if t.is_floating_point()}
    assert types == {
        n: t.dtype for n, t in (*small.named_parameters(), *small.named_buffers()) if t.is_floating_point()
    }
    assert torch.equal(loaded(X), small(X))


# -- files of the first version


def test_folders_of_the_first_version_still_load(tmp_path: Path) -> None:
    from tests.surgery.first_version import save as save_first

    model = Net().eval()
    graph = trace(model, X)
    plan = random_plan(graph, 0, 0.5)
    small = cut(model, graph, plan)
    save_first(small, plan, tmp_path)
    assert json.loads((tmp_path / "plan.json").read_text())["version"] == 1
    with pytest.warns(UserWarning, match="an earlier version of sentei wrote it"):
        loaded = load(Net(), tmp_path).eval()
    assert torch.equal(loaded(X), small(X))
    with warnings.catch_warnings(), pytest.raises(CheckpointError, match="another model"):
        load(nn.Sequential(nn.Conv2d(3, 4, 1)), tmp_path)
