"""`save` writes nothing that `load` could not rebuild: network and plan must belong together."""

import copy
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.optim.swa_utils import AveragedModel

from sentei import Plan, compose, cut, load, save, trace
from sentei.errors import PlanError
from sentei.surgery import load_plan
from tests.proof import outputs, random_plan, same_bits
from tests.random_networks import conv, randomise

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self, width: int = 16, classes: int = 4) -> None:
        super().__init__()
        self.a, self.norm, self.b = conv(3, width), nn.BatchNorm2d(width), conv(width, 12)
        self.head = nn.Linear(12, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.b(self.norm(self.a(x)).relu()).relu().mean((2, 3)))


class Case:
    """A network, its cut, and a second cut of that."""

    def __init__(self) -> None:
        self.model = randomise(Net())
        self.graph = trace(self.model, X)
        self.plan = random_plan(self.graph, 0, 0.75)
        self.small = cut(self.model, self.graph, self.plan)
        self.small_graph = trace(self.small, X)
        self.small_plan = random_plan(self.small_graph, 1, 0.5)
        self.smaller = cut(self.small, self.small_graph, self.small_plan)

    def new_classes(self) -> nn.Module:
        other = copy.deepcopy(self.small)
        other.head = nn.Linear(other.head.in_features, 7)
        return other

    def new_classifier(self) -> nn.Module:
        other = copy.deepcopy(self.small)
        other.head = nn.Sequential(nn.Dropout(0.1), nn.Linear(other.head.in_features, 4))
        return other

    def fused(self) -> nn.Module:
        other = copy.deepcopy(self.small).eval()
        other.a, other.norm = fuse_conv_bn_eval(other.a, other.norm), nn.Identity()
        return other

    def other_architecture(self) -> nn.Module:
        return nn.Sequential(conv(3, 12), nn.ReLU(), conv(12, 4))

    def other_width(self) -> nn.Module:
        return cut(self.model, self.graph, random_plan(self.graph, 3, 0.5))

    def other_units(self) -> nn.Module:
        return cut(self.model, self.graph, random_plan(self.graph, 3, 0.75))

    def without_bias(self) -> nn.Module:
        other = copy.deepcopy(self.small)
        other.head = nn.Linear(other.head.in_features, 4, bias=False)
        return other


@pytest.fixture(scope="module")
def case() -> Case:
    return Case()


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("model", r"parameter a\.weight is of shape 16x3x3x3 .* 12x3x3x3 .*dense network; save what `cut"),
        ("new_classes", r"parameter head\.weight is of shape 7x9 .* 4x9 .*replace it in the dense model first"),
        ("new_classifier", r"parameter head\.weight is absent.*added or taken out"),
        ("without_bias", r"parameter head\.bias is absent in the network"),
        ("fused", r"parameter norm\.weight is absent .*before layers are fused"),
        ("other_architecture", r"parameter a\.weight is absent"),
        ("other_width", r"parameter a\.weight is of shape 8x3x3x3 .*with the plan that cut it"),
        ("other_units", "keeps other units of the same groups"),
        ("smaller", r"It was cut 2 times: .*sentei\.compose"),
    ],
)
def test_what_does_not_fit_the_plan_is_refused_before_anything_is_written(case: Case, tmp_path: Path, kind, text):
    given = getattr(case, kind)
    network = given if isinstance(given, nn.Module) else given()
    with pytest.raises(PlanError, match=f"cannot save: .*does not fit the plan: .*{text}"):
        save(network, case.plan, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_network_cut_twice_needs_the_plan_of_both_cuts(case: Case, tmp_path: Path) -> None:
    for network in (case.smaller, copy.deepcopy(case.smaller), pickle.loads(pickle.dumps(case.smaller))):
        with pytest.raises(PlanError, match=r"cut 2 times and the plan is .* last cut only.*sentei\.compose"):
            save(network, case.small_plan, tmp_path)
    assert list(tmp_path.iterdir()) == []
    both = compose(case.graph, case.plan, case.small_graph, case.small_plan)
    save(case.smaller, both, tmp_path)
    assert same_bits(outputs(load(Net(), tmp_path).eval(), (X,)), outputs(case.smaller.eval(), (X,)))


def test_a_loaded_network_can_be_trained_and_saved_again_or_cut_once_more(case: Case, tmp_path: Path) -> None:
    save(case.small, case.plan, tmp_path / "once")
    loaded, plan = load(Net(), tmp_path / "once"), load_plan(tmp_path / "once")
    with torch.no_grad():
        loaded.head.weight.add_(1)
    save(loaded, plan, tmp_path / "again")
    graph = trace(loaded, X)
    second = random_plan(graph, 5, 0.5)
    smaller = cut(loaded, graph, second)
    with pytest.raises(PlanError, match=r"sentei\.compose"):
        save(smaller, second, tmp_path / "twice")
    save(smaller, compose(case.graph, plan, graph, second), tmp_path / "twice")
    assert same_bits(outputs(load(Net(), tmp_path / "twice").eval(), (X,)), outputs(smaller.eval(), (X,)))


def test_groups_that_stay_whole_may_be_named_or_not(case: Case, tmp_path: Path) -> None:
    short = Plan({"a": range(8)}, case.graph.structure)
    long = Plan({"a": range(8), "b": range(12)}, case.graph.structure)
    save(cut(case.model, case.graph, short), long, tmp_path)
    save(cut(case.model, case.graph, long), short, tmp_path)


def test_plans_and_networks_without_a_history_are_held_against_shapes(case: Case, tmp_path: Path) -> None:
    """A network that was built by hand, and a plan that went through its text."""
    built = Net()
    built.a, built.norm, built.b = conv(3, 12), nn.BatchNorm2d(12), conv(12, 9)
    built.head = nn.Linear(9, 4)
    again = Plan.from_json(case.plan.to_json())
    save(built, again, tmp_path)
    assert same_bits(outputs(load(Net(), tmp_path).eval(), (X,)), outputs(built.eval(), (X,)))
    with pytest.raises(PlanError, match=r"7x9 in the network and of shape 4x9"):
        save(case.new_classes(), again, tmp_path)


WRAPPERS = {
    "DataParallel": nn.DataParallel,
    "compiled": torch.compile,
    "average": AveragedModel,
    "compiled DataParallel": lambda m: torch.compile(nn.DataParallel(m)),
}


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_wrappers_are_taken_off(case: Case, tmp_path: Path, wrap: str) -> None:
    save(WRAPPERS[wrap](case.small), case.plan, tmp_path)
    loaded = load(WRAPPERS[wrap](Net()), tmp_path).eval()
    assert type(loaded) is Net
    assert same_bits(outputs(loaded, (X,)), outputs(case.small.eval(), (X,)))


def test_a_distributed_wrapper_is_taken_off(case: Case, tmp_path: Path) -> None:
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(copy.deepcopy(case.small))
        save(wrapped, case.plan, tmp_path / "small")
    finally:
        torch.distributed.destroy_process_group()
    assert same_bits(outputs(load(Net(), tmp_path / "small").eval(), (X,)), outputs(case.small.eval(), (X,)))


def test_a_part_that_is_compiled_is_saved_by_its_own_name(case: Case, tmp_path: Path) -> None:
    partly = copy.deepcopy(case.small)
    partly.b = torch.compile(partly.b)
    save(partly, case.plan, tmp_path)
    assert same_bits(outputs(load(Net(), tmp_path).eval(), (X,)), outputs(case.small.eval(), (X,)))


def test_the_network_is_left_as_it_was(case: Case, tmp_path: Path) -> None:
    network = copy.deepcopy(case.small).train()
    network.norm.eval()
    before, modes = copy.deepcopy(network.state_dict()), [m.training for m in network.modules()]
    dense, state = Net(), torch.get_rng_state()
    save(network, case.plan, tmp_path)
    load(dense, tmp_path)
    assert all(torch.equal(t, before[n]) for n, t in network.state_dict().items())
    assert [m.training for m in network.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
