"""The optimizer of a cut network goes on where that of the dense one stopped; one that does not is told of."""

import copy
import gc
import pickle
import weakref

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim import SGD, Adadelta, Adafactor, Adagrad, Adam, Adamax, AdamW, NAdam, RAdam, RMSprop, Rprop
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, OneCycleLR, SequentialLR, StepLR

import sentei
from sentei import carry_optimizer, check_optimizer, cut, trace
from sentei.errors import ConfigError, PlanError, TrainError
from sentei.graph.outputs import output_tensors
from sentei.graph.resize import named_tensors, select
from sentei.surgery import stale
from tests.amount import examples
from tests.proof import random_plan
from tests.random_networks import Block, conv, networks, randomise
from tests.surgery.test_cut import Net, X

KINDS = {
    "sgd": lambda p: SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "adam": lambda p: Adam(p, lr=0.01, betas=(0.8, 0.95), weight_decay=1e-3),
    "adamw": lambda p: AdamW(p, lr=0.01, amsgrad=True, weight_decay=0.1),
    "rmsprop": lambda p: RMSprop(p, lr=0.01, momentum=0.5, centered=True),
    "adagrad": lambda p: Adagrad(p, lr=0.05, initial_accumulator_value=0.1),
    "others": lambda p: NAdam(p, lr=0.01, decoupled_weight_decay=True),
    "adamax": lambda p: Adamax(p),
    "radam": lambda p: RAdam(p),
    "rprop": lambda p: Rprop(p),
    "adadelta": lambda p: Adadelta(p),
}


def step(optimizer, model, inputs):
    optimizer.zero_grad()
    sum(t.square().mean() for t in output_tensors(model(*inputs)) if t.requires_grad).backward()
    optimizer.step()


def places(name, t, cuts):
    """Where the elements that stay lie in a tensor before the cut."""
    kept = [np.arange(n) for n in t.shape]
    for dim, index in cuts.get(name, ()):
        kept[dim] = index
    return tuple(torch.from_numpy(i) for i in np.ix_(*kept)) if kept else ()


def assert_slices(optimizer, carried, model, small, cuts, *, skip=(), tolerance=0.0):
    """Parameters and state of the carried optimizer are the slices of those of the other one."""
    after = dict(small.named_parameters())
    for name, p in model.named_parameters():
        if name in skip:
            continue
        pairs = [(p, after[name])]
        old, new = optimizer.state.get(p, {}), carried.state.get(after[name], {})
        assert old.keys() == new.keys()
        for key, value in old.items():
            if not isinstance(value, torch.Tensor):
                assert new[key] == value
            elif value.shape == p.shape:
                pairs.append((value, new[key]))
            else:
                assert torch.equal(new[key], value)
        for dense, cut_ in pairs:
            torch.testing.assert_close(cut_, select(dense, cuts.get(name, ())), rtol=tolerance, atol=tolerance)
            assert cut_.untyped_storage().data_ptr() != dense.untyped_storage().data_ptr()


@settings(max_examples=examples(6), suppress_health_check=list(HealthCheck), phases=[Phase.generate])
@given(networks(), st.sampled_from(list(KINDS)), st.integers(0, 99))
def test_steps_of_a_carried_optimizer_are_slices_of_the_steps_of_the_dense_one(network, kind, seed):
    """In any network: what the same gradients do to the units that stay, in the following steps too."""
    model, inputs = network.model, network.inputs
    graph = trace(model, inputs)
    plan = random_plan(graph, seed, 0.6)
    cuts = graph.cuts(plan)
    optimizer = KINDS[kind](model.parameters())
    generator = torch.Generator().manual_seed(seed)

    def random_gradients(network):
        for p in network.parameters():
            p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)

    for _ in range(2):
        random_gradients(model)
        optimizer.step()
    small = cut(model, graph, plan)
    carried = carry_optimizer(optimizer, model, small, graph, plan)
    norms = {n.magnitude for n in graph.trace_record.weight_norms}  # a cut scales them
    assert_slices(optimizer, carried, model, small, cuts, skip=norms)
    for _ in range(3):
        random_gradients(small)
        after = dict(small.named_parameters())
        for name, p in model.named_parameters():
            p.grad = torch.zeros_like(p)
            p.grad[places(name, p, cuts)] = after[name].grad
        optimizer.step(), carried.step()
    assert_slices(optimizer, carried, model, small, cuts, skip=norms, tolerance=1e-12)


@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw", "rmsprop"])
def test_training_goes_on_as_that_of_the_network_whose_removed_units_are_masked(kind):
    """Residual sums, grouped and depthwise convolutions, gates, BatchNorm in train mode, a flattened head."""
    model = randomise(Net().double()).train()
    graph = trace(model, X)
    plan = random_plan(graph, 3, 0.5)
    cuts = graph.cuts(plan)
    groups = [{"params": [model.stem.weight, *model.norm.parameters()], "lr": 0.02}]
    seen = {id(p) for p in groups[0]["params"]}
    optimizer = KINDS[kind]([*groups, {"params": [p for p in model.parameters() if id(p) not in seen]}])
    for _ in range(3):
        step(optimizer, model, (X,))
    small = cut(model, graph, plan)
    carried = carry_optimizer(optimizer, model, small, graph, plan)
    masks = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for name, mask in masks.items():
        mask[places(name, mask, cuts)] = 1

    def masked(tensors):
        with torch.no_grad():
            for name, t in tensors.items():
                t.mul_(masks[name])

    for name, p in model.named_parameters():
        p.register_hook(lambda grad, mask=masks[name]: grad * mask)
    for _ in range(5):
        masked(dict(model.named_parameters()))
        step(optimizer, model, (X,))
        step(carried, small, (X,))
    masked(dict(model.named_parameters()))
    assert_slices(optimizer, carried, model, small, cuts, tolerance=1e-9)
    for name, t in named_tensors(model).items():
        if name.startswith("norm.running"):
            torch.testing.assert_close(dict(small.named_buffers())[name], select(t, cuts[name]), rtol=0, atol=1e-12)


def simple(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(conv(3, 8), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 4), nn.Flatten(), nn.Linear(4 * 16, 5))


IMAGES = torch.randn(4, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def cut_simple(model=None):
    model = model or simple()
    graph = trace(model, IMAGES)
    plan = sentei.Plan({"0": [1, 2, 5], "3": [0, 3]}, graph.structure)
    return model, graph, plan, cut(model, graph, plan)


def test_groups_options_and_order_are_kept_and_independent():
    model = simple()
    decayed = [("last", model[5].weight), ("first", model[0].weight)]
    plain = [("bias", model[0].bias), ("norm", model[1].weight)]
    optimizer = AdamW([{"params": decayed, "mine": [1]}, {"params": plain, "weight_decay": 0.0, "lr": 0.5}], lr=0.1)
    StepLR(optimizer, 3)
    model, graph, plan, small = cut_simple(model)
    carried = carry_optimizer(optimizer, model, small, graph, plan)
    assert type(carried) is AdamW
    assert carried.defaults == optimizer.defaults
    assert not carried.state
    expected = [[small[5].weight, small[0].weight], [small[0].bias, small[1].weight]]
    for old, new, params in zip(optimizer.param_groups, carried.param_groups, expected, strict=True):
        assert {k: v for k, v in old.items() if k != "params"} == {k: v for k, v in new.items() if k != "params"}
        assert list(map(id, new["params"])) == list(map(id, params))
    assert carried.param_groups[0]["initial_lr"] == 0.1
    assert carried.param_groups[0]["mine"] is not optimizer.param_groups[0]["mine"]


def test_a_rate_that_is_a_tensor_is_copied():
    model, graph, plan, small = cut_simple()
    optimizer = Adam(model.parameters(), lr=torch.tensor(0.1), foreach=False)
    carried = carry_optimizer(optimizer, model, small, graph, plan)
    carried.param_groups[0]["lr"].fill_(0.5)
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_fused_and_channels_last_state():
    model, graph, plan, small = cut_simple(simple().to(memory_format=torch.channels_last))
    optimizer = Adam(model.parameters(), fused=True)
    step(optimizer, model, (IMAGES,))
    carried = carry_optimizer(optimizer, model, small, graph, plan)
    moment = carried.state[small[3].weight]["exp_avg"]
    assert moment.stride() == small[3].weight.stride()
    assert moment.is_contiguous(memory_format=torch.channels_last)
    assert carried.param_groups[0]["fused"]
    step(carried, small, (IMAGES,))


def test_state_follows_a_network_to_another_precision():
    model, graph, plan, small = cut_simple()
    optimizer = Adam(model.parameters())
    step(optimizer, model, (IMAGES,))
    carried = carry_optimizer(optimizer, model, small.double(), graph, plan)
    state = carried.state[small[0].weight]
    assert (state["exp_avg"].dtype, state["step"].dtype) == (torch.float64, torch.float32)
    step(carried, small, (IMAGES.double(),))


def test_frozen_tied_and_absent_parameters():
    first, second = conv(8, 8), conv(8, 8)
    second.weight = first.weight
    model = Block(
        lambda m, x: m.head(m.b(m.a(m.stem(x)).relu()).mean((2, 3))),
        stem=conv(3, 8), a=first, b=second, head=nn.Linear(8, 5),
    )  # fmt: skip
    model.stem.weight.requires_grad_(False)
    graph = trace(model, IMAGES)
    plan = random_plan(graph, 0, 0.5)
    left_out = {id(p) for p in model.head.parameters()}
    optimizer = SGD([p for p in model.parameters() if id(p) not in left_out], lr=0.1, momentum=0.9)
    step(optimizer, model, (IMAGES,))
    small = cut(model, graph, plan)
    carried = carry_optimizer(optimizer, model, small, graph, plan)
    params = carried.param_groups[0]["params"]
    assert len(params) == len(optimizer.param_groups[0]["params"]) == 5
    assert params[0] is small.stem.weight
    assert small.stem.weight not in carried.state
    assert small.a.weight is small.b.weight
    assert sum(p is small.a.weight for p in params) == 1
    assert carried.state[small.a.weight]["momentum_buffer"].shape == small.a.weight.shape
    with pytest.warns(UserWarning, match=r"does not train 2 of the network's 6 parameters: head\.weight, head\.bias"):
        check_optimizer(carried, small)


SCHEDULES = {
    "cosine": lambda o: CosineAnnealingLR(o, T_max=20),
    "steps": lambda o: StepLR(o, 4, 0.5),
    "one cycle": lambda o: OneCycleLR(o, 0.3, total_steps=30),
    "warm-up": lambda o: SequentialLR(o, [LinearLR(o, 0.1, total_iters=5), CosineAnnealingLR(o, 15)], [5]),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_goes_on_as_the_docstring_says(name):
    model, graph, plan, small = cut_simple()
    old = SGD([{"params": model[0].parameters()}, {"params": model[3].parameters(), "lr": 0.02}], lr=0.1, momentum=0.9)
    schedule = SCHEDULES[name](old)
    for _ in range(7):
        step(old, model, (IMAGES,))
        schedule.step()
    optimizer = carry_optimizer(old, model, small, graph, plan)
    state = optimizer.state_dict()
    new = SCHEDULES[name](optimizer)
    new.load_state_dict(schedule.state_dict())
    optimizer.load_state_dict(state)
    for _ in range(8):
        for one, two in zip(old.param_groups, optimizer.param_groups, strict=True):
            assert {k: v for k, v in one.items() if k != "params"} == {k: v for k, v in two.items() if k != "params"}
        step(old, model, (IMAGES,)), step(optimizer, small, (IMAGES,))
        schedule.step(), new.step()


def test_factored_moments_start_afresh_with_one_warning():
    model, graph, plan, small = cut_simple()
    optimizer = Adafactor(model.parameters())
    step(optimizer, model, (IMAGES,))
    with pytest.warns(UserWarning, match=r"Adafactor keeps .* \(col_var, row_var\), .*: 3 parameters start") as told:
        carried = carry_optimizer(optimizer, model, small, graph, plan)
    assert len(told) == 1
    assert small[0].weight not in carried.state
    assert carried.state[small[0].bias]["variance"].shape == (3,)
    step(carried, small, (IMAGES,))


class Square(torch.optim.Optimizer):
    """Keeps a matrix for the first dimension of each parameter: of the same shape where that is square."""

    def __init__(self, params, **settings):
        super().__init__(params, {"lr": 0.1, **settings})

    def step(self):
        for p in (p for group in self.param_groups for p in group["params"]):
            self.state[p] = {"factor": torch.eye(len(p)), "note": "kept"}


def test_what_has_the_shape_of_a_parameter_by_chance_is_not_cut():
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 5))
    x = torch.randn(2, 6)
    graph = trace(model, x)
    plan = sentei.Plan({"0": [0, 1]})
    optimizer = Square(model.parameters(), mine=3)
    optimizer.step()
    small = cut(model, graph, plan)
    with pytest.warns(UserWarning, match=r"\(factor\).*: 4 parameters"):
        carried = carry_optimizer(optimizer, model, small, graph, plan)
    assert not carried.state
    assert carried.defaults == {"lr": 0.1, "mine": 3}


class Demanding(SGD):
    def __init__(self, params, schedule):
        super().__init__(params, lr=schedule(0))


def test_what_cannot_be_carried_is_refused():
    model, graph, plan, small = cut_simple()
    extra = nn.Parameter(torch.zeros(2, 7))
    optimizer = SGD([{"params": model.parameters()}, {"params": [("margin", extra)]}][:1], lr=0.1)
    optimizer.add_param_group({"params": [extra]})
    with pytest.raises(PlanError, match=r"parameter 0 of group 1 of this SGD \(shape 2x7\) is not .* of its own"):
        carry_optimizer(optimizer, model, small, graph, plan)
    with pytest.raises(PlanError, match=r"parameter 0 'x' of group 0 of this SGD .*not a copy"):
        carry_optimizer(SGD([("x", copy.deepcopy(model)[0].weight)], lr=0.1), model, small, graph, plan)
    optimizer = SGD(model.parameters(), lr=0.1)
    with pytest.raises(PlanError, match="trains that already"):
        carry_optimizer(SGD(small.parameters(), lr=0.1), model, small, graph, plan)
    with pytest.raises(PlanError, match="keeps other units"):
        carry_optimizer(optimizer, model, small, graph, sentei.Plan({"0": [0, 1, 2], "3": [0, 3]}))
    with pytest.raises(ConfigError, match=r"expected a torch\.optim\.Optimizer, got dict"):
        carry_optimizer({}, model, small, graph, plan)
    with pytest.raises(ConfigError, match=r"cannot build another Demanding .*yourself"):
        carry_optimizer(Demanding(model.parameters(), lambda _: 0.1), model, small, graph, plan)
    small[5] = nn.Linear(32, 2)
    with pytest.raises(PlanError, match=r"parameter 5.weight is of shape 2x32 in the small .* leaves 5x32"):
        carry_optimizer(optimizer, model, small, graph, plan)
    small[5] = nn.Identity()
    with pytest.raises(PlanError, match=r"parameter 5.weight is absent in the small"):
        carry_optimizer(optimizer, model, small, graph, plan)


def test_two_cuts_are_carried_one_by_one_or_with_the_plan_of_both():
    model, graph, plan, small = cut_simple()
    optimizer = KINDS["adam"](model.parameters())
    step(optimizer, model, (IMAGES,))
    middle = carry_optimizer(optimizer, model, small, graph, plan)
    small_graph = trace(small, IMAGES)
    small_plan = sentei.Plan({"0": [0, 2]}, small_graph.structure)
    twice = cut(small, small_graph, small_plan)
    both = sentei.compose(graph, plan, small_graph, small_plan)
    a = carry_optimizer(middle, small, twice, small_graph, small_plan)
    b = carry_optimizer(optimizer, model, nn.DataParallel(twice), graph, both)
    for p in twice.parameters():
        assert torch.equal(a.state[p]["exp_avg"], b.state[p]["exp_avg"])


# -- optimizers that train nothing


def test_an_optimizer_is_checked_against_a_network():
    model, _, _, small = cut_simple()
    optimizer = SGD(model.parameters(), lr=0.1)
    check_optimizer(optimizer, model)
    with pytest.raises(TrainError, match=r"\(SGD\) trains none of the 8 parameters .*carry_optimizer"):
        check_optimizer(optimizer, small)
    with pytest.warns(UserWarning, match=r"not train 6 .*: 1\.weight, 1\.bias, 3\.weight and 3 more"):
        check_optimizer(SGD(small[0].parameters(), lr=0.1), small)
    check_optimizer([SGD(small[:3].parameters(), lr=0.1), Adam(small[3:].parameters())], small)
    check_optimizer(optimizer, small.requires_grad_(False))


def test_going_on_with_the_old_optimizer_is_told_once():
    model = simple()
    optimizer = KINDS["sgd"](model.parameters())
    step(optimizer, model, (IMAGES,))
    graph = trace(model, IMAGES)
    model = cut(model, graph, sentei.Plan({"0": [1, 2]}))  # the dense network is gone, its parameters are not
    step(optimizer, model, (IMAGES,))
    with pytest.warns(UserWarning, match=r"this SGD still holds .*carry_optimizer") as told:
        step(optimizer, model, (IMAGES,))
    assert told[0].filename == __file__
    for _ in range(3):
        step(optimizer, model, (IMAGES,))


def test_normal_use_is_not_told_of():
    model, graph, plan, small = cut_simple()
    others = [cut(model, graph, plan) for _ in range(3)]
    dense, new = KINDS["sgd"](model.parameters()), KINDS["sgd"](small.parameters())
    for _ in range(3):  # both are trained, or one of them, whatever comes first
        step(dense, model, (IMAGES,)), step(new, small, (IMAGES,))
    dense.zero_grad()
    for _ in range(3):
        step(new, small, (IMAGES,))
        dense.step()
    for _ in range(3):  # gradients gather for a while: another optimizer holds them
        F.mse_loss(small(IMAGES), torch.zeros(4, 5)).backward()
        dense.step()
    both = SGD([*model.parameters(), *others[0].parameters()], lr=0.1)
    by_hand = Adam(model.parameters())
    for _ in range(3):
        step(both, others[0], (IMAGES,))
        for p in others[1].parameters():
            p.grad = torch.ones_like(p)
            p.data, p.grad = p.data - p.grad, None
        F.mse_loss(others[2](IMAGES), torch.zeros(4, 5)).backward()
        with torch.no_grad():
            for p in others[2].parameters():
                p -= 0.1 * p.grad
        by_hand.step()


def test_nothing_is_kept_alive_and_networks_stay_as_they_were():
    gc.collect()
    model, graph, plan, small = cut_simple()
    before = len(stale._cuts)
    assert pickle.loads(pickle.dumps(small))[0].weight.equal(small[0].weight)
    assert not any(vars(p) for p in model.parameters())
    copy.deepcopy(small)
    for _ in range(50):
        cut(model, graph, plan)
    gc.collect()
    assert len(stale._cuts) == before
    watched = [weakref.ref(small), weakref.ref(model), weakref.ref(model[0].weight)]
    del small, model
    gc.collect()
    assert [r() for r in watched] == [None] * 3
    assert len(stale._cuts) == before - 1
