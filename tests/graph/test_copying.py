"""Copies of models: what a trace runs on and a cut returns holds on to nothing of the model it was made from."""

import copy
from collections import deque
from types import MethodType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from sentei import SenteiError, check, cut, retrace, trace
from tests.proof import outputs, random_plan, same_bits
from tests.random_networks import Block, conv

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def plain(model: nn.Module) -> dict[str, Any]:
    """Everything that the modules keep beside parameters, buffers and children; tensors by their values."""

    def told(v: Any) -> Any:
        if isinstance(v, Tensor):
            return v.device.type, v.tolist() if not v.is_meta else None
        if isinstance(v, (list, tuple, deque)):
            return [told(x) for x in v]
        if isinstance(v, dict):
            return {k: told(x) for k, x in v.items()}
        return v if isinstance(v, (int, float, str, bool, type(None))) else type(v).__name__

    own = {*vars(nn.Module()), "_sentei_cuts"}
    return {f"{n}.{k}": told(v) for n, m in model.named_modules() for k, v in vars(m).items() if k not in own}


class Keeper(nn.Module):
    """Keeps what it sees: a grid made on first use, the last features, a history, a count, a running tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(3, 8), conv(8, 4)
        self.grid, self.cells, self.last = [None], {}, None
        self.history, self.calls = deque(maxlen=3), 0
        self.running = torch.zeros(8)
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.a(x))
        if self.grid[0] is None:
            self.grid[0] = torch.arange(y.shape[-1]).float()
            self.cells[y.shape[-1]] = y.new_ones(1)
        self.calls += 1
        self.seen += 1
        self.history.append(y.mean())
        self.last = y.detach()
        self.running = 0.9 * self.running + 0.1 if self.running.shape[0] != y.shape[1] else self.running.mul_(0.5)
        return self.b(y) + self.grid[0]


@pytest.mark.parametrize("used", [False, True])
def test_what_the_forward_keeps_is_kept_by_copies(used: bool) -> None:
    model = Keeper().eval()
    twin = copy.deepcopy(model)
    for m in (model, twin) if used else ():
        m(X)  # with gradients, so that what it keeps is no leaf
    before = plain(model)
    graph = trace(model, X)
    plan = random_plan(graph, 0, 0.5)
    small = cut(model, graph, plan)
    assert plain(small).keys() == before.keys()
    kept = plain(small)
    check(model, small, graph, plan, X)
    retrace(small, graph, plan)
    assert plain(model) == before
    assert plain(small) == kept
    assert int(model.seen) == int(used)
    assert same_bits(outputs(model, (X,)), outputs(twin, (X,)))


def test_a_detector_runs_after_a_refused_trace() -> None:
    model = torchvision.models.detection.fcos_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=3, min_size=96, max_size=96
    ).eval()
    before = plain(model)
    with pytest.raises(SenteiError) as refusal:
        trace(model, ([torch.rand(3, 64, 64)],))
    assert "own forward failed" not in str(refusal.value)
    assert plain(model) == before
    assert set(model([torch.rand(3, 64, 64)])[0]) == {"boxes", "scores", "labels"}


def test_hooks_and_functions_are_those_of_the_copy() -> None:
    model = Block(lambda m, x: m.o(m.a(x)), a=conv(3, 8), o=conv(8, 2)).eval()
    model.found = []
    model.a.register_forward_hook(lambda module, args, out: model.found.append(out.shape[1]))
    first = model.o.forward
    model.o.forward = lambda x: 2 * first(x)  # patched from outside
    model.a.forward = MethodType(lambda self, x: F.conv2d(x, self.weight, self.bias, padding=1) + 1, model.a)
    graph = trace(model, X)
    assert model.found == []
    plan = random_plan(graph, 0, 0.5)
    small = cut(model, graph, plan)
    check(model, small, graph, plan, X)
    small(X)
    assert small.found == [4]
    assert model.found == []
    model(X)
    assert model.found == [8]


def test_copies_are_the_same_after_something_was_compiled() -> None:
    """torch.compile patches nn.Module from then on."""
    torch.compile(conv(3, 4), backend="eager")(X)
    test_hooks_and_functions_are_those_of_the_copy()


def test_inputs_that_the_model_writes_into_stay_as_they_are() -> None:
    model = nn.Sequential(nn.ReLU(inplace=True), conv(3, 8), nn.ReLU(inplace=True), conv(8, 2)).eval()
    x = X.clone()
    graph = trace(model, x)
    plan = random_plan(graph, 0, 0.5)
    check(model, cut(model, graph, plan), graph, plan, x)
    assert torch.equal(x, X)
