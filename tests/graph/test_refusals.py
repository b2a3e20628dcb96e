"""Models that cannot be traced are refused in one sentence that says what to do instead."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.ao import quantization
from torchvision import ops

from sentei import trace
from sentei.errors import TraceError

IMAGE = torch.zeros(1, 3, 16, 16)


def plain() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()


def holder(inner: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Identity(), inner)


def refusal(model: Any, inputs: Any = IMAGE) -> str:
    with pytest.raises(TraceError) as caught:
        trace(model, inputs)
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("make", [torch.jit.script, lambda m: torch.jit.trace(m, IMAGE)], ids=["script", "trace"])
def test_scripted(make: Any) -> None:
    assert re.match("the model is scripted .*Python module", refusal(make(plain())))
    assert refusal(holder(make(plain()))).startswith("the module '1' is scripted")
    frozen = torch.jit.freeze(make(plain()))
    assert refusal(frozen).startswith("the model is scripted")


def test_compiled() -> None:
    assert "is compiled: trace and cut the original" in refusal(torch.compile(plain()))
    assert refusal(holder(torch.compile(plain()))).startswith("the module '1' is compiled")


def test_exported() -> None:
    program = torch.export.export(plain(), (IMAGE,))
    for model in (program, program.module()):
        assert refusal(model).startswith("the model is exported")


@pytest.mark.filterwarnings("ignore")
def test_quantized() -> None:
    qat, ptq = plain().train(), plain()
    qat.qconfig = quantization.get_default_qat_qconfig("fbgemm")
    ptq.qconfig = quantization.get_default_qconfig("fbgemm")
    linear = quantization.quantize_dynamic(nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4)), {nn.Linear})
    models = [quantization.prepare_qat(qat), quantization.prepare(ptq), linear]
    for model in models:
        assert "float model" in refusal(model)


def test_quantization_stubs_alone_change_nothing() -> None:
    model = nn.Sequential(quantization.QuantStub(), *plain(), quantization.DeQuantStub())
    assert not trace(model, IMAGE).groups[0].frozen


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("training", [True, False])
def test_parallel(process_group: None, training: bool) -> None:
    wrapped = nn.parallel.DistributedDataParallel(plain().train(training))
    assert "DistributedDataParallel: trace and cut what it wraps (model.module)" in refusal(wrapped)
    assert "'1' is wrapped" in refusal(holder(wrapped))
    assert "DataParallel" in refusal(nn.DataParallel(plain()))


def test_lazy() -> None:
    assert "run the model once" in refusal(nn.Sequential(nn.LazyConv2d(8, 3)))


@pytest.mark.parametrize("model", [nn.Identity(), nn.BatchNorm2d(3), nn.Sequential(nn.ReLU(), nn.MaxPool2d(2))])
def test_nothing_to_prune(model: nn.Module) -> None:
    assert refusal(model.eval()).startswith("nothing to prune")


class Yields(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)

    def forward(self, x: Tensor) -> Iterator[Tensor]:
        yield self.b(self.a(x))


def test_generator() -> None:
    assert "generator" in refusal(Yields())


class Depends(nn.Module):
    """Its path or its sizes depend on values."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.a, self.b, self.how = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3), how

    def forward(self, x: Tensor) -> Any:
        y = self.a(x)
        if self.how == "branch" and y.mean() > 0:  # the branch
            y = 2 * y
        if self.how == "item":
            y = y * y.amax().item()  # the item
        if self.how == "numpy":
            return torch.from_numpy(y.numpy())  # the numpy
        if self.how == "mask":
            return y[y > 0]  # the mask
        if self.how == "unique":
            return torch.unique(y)  # the unique
        if self.how == "boxes":
            return ops.nms(y[0].reshape(-1, 4), y[0, 0].new_ones(y[0].numel() // 4), 0.5)  # the boxes
        return self.b(y)


@pytest.mark.parametrize("how", ["branch", "item", "numpy", "mask", "unique", "boxes"])
def test_values_name_module_and_line(how: str) -> None:
    text = refusal(nn.Sequential(nn.Identity(), Depends(how)).eval())
    assert "in module '1', at test_refusals.py:" in text
    assert f"# the {how}" in text
    assert "values of the input" in text
