"""The Sparsifier in loops of one's own: equal to the method, exact zeros, budget, resume, what goes wrong."""

import copy
import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sentei
from sentei.errors import BudgetError, CheckpointError, ConfigError
from sentei.methods import prune
from sentei.methods.ista import Ista
from sentei.models import build_model
from sentei.plan import Constraints
from sentei.surgery.check import relative_error
from sentei.train import Recipe, fit, recalibrate

FREE = Constraints(round_to=1, max_ratio=0.9)
HALF = sentei.Budget(macs=0.5)
IMAGES = 640


@pytest.fixture(scope="module")
def dense(data):
    torch.manual_seed(0)
    recipe = Recipe(epochs=4, batch_size=64, lr=0.1, limit=IMAGES)
    return fit(build_model("digitsnet"), data, recipe, progress=False).model


def net():
    torch.manual_seed(1)
    layers = [nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1)]
    layers += [nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)]
    model = nn.Sequential(*layers)
    with torch.no_grad():
        for norm in (model[1], model[4]):
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.uniform_(-0.5, 0.5)
    return model


SMALL = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def small_one(model=None, **options):
    model = net() if model is None else model
    given = {"lr": 0.1, "steps": 10, "constraints": FREE, **options}
    if "rho" not in given:
        given.setdefault("budget", HALF)
    return sentei.Sparsifier(model, sentei.trace(model, SMALL[:1]), SMALL, **given)


def sgd(sparsifier, **options):
    return torch.optim.SGD(sparsifier.parameter_groups(weight_decay=1e-3), lr=0.05, momentum=0.9, **options)


def train(sparsifier, optimizer, steps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    sparsifier.model.train()
    for _ in range(steps):
        batch, target = torch.randn(8, 1, 8, 8, generator=generator), torch.randint(4, (8,), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(sparsifier.model(batch), target).backward()
        optimizer.step()
        sparsifier.step()


def test_a_loop_of_ones_own_ends_in_the_plan_of_the_method(dense, data):
    recipe = Recipe(epochs=0, batch_size=64, lr=0.05, limit=IMAGES, bf16=False, channels_last=False)
    given = {"budget": HALF, "constraints": FREE}
    result = prune(dense, data, method=Ista(growth=2), recipe=recipe, images=256, seed=3, **given)

    model = copy.deepcopy(dense).eval().to(memory_format=torch.contiguous_format)
    graph = sentei.trace(model, torch.zeros(1, 1, 8, 8))
    images = next(iter(data.train.batches(8, limit=8)))[0]
    sparsifier = sentei.Sparsifier(model, graph, images, lr=0.01, steps=IMAGES // 64, growth=2.0, **given)
    for number in range(1, 21):
        optimizer = torch.optim.SGD(
            sparsifier.parameter_groups(recipe.weight_decay), lr=0.01, momentum=recipe.momentum, nesterov=True
        )
        model.train()
        losses = []
        for batch, labels in data.train.batches(64, train=True, seed=3 + 1009 * number, limit=IMAGES):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(batch), labels)
            loss.backward()
            optimizer.step()
            sparsifier.step()
            losses.append(loss.detach())
        recalibrate(model.eval(), data.train.batches(256, train=True, limit=256))
        if sparsifier.next_round(loss=float(sum(losses)) / len(losses)):
            break
    small, plan = sparsifier.finish()
    curve = result.summary["ista"]["curve"]
    assert [r.rho for r in sparsifier.rounds] == [p["rho"] for p in curve]
    assert [(r.macs, r.reached) for r in sparsifier.rounds] == [(p["macs"], p["reached"]) for p in curve]
    assert plan == result.plan
    assert plan.note == result.plan.note
    for name in ("conv1.weight", "conv2.weight", "bn2.weight"):
        assert torch.equal(small.get_parameter(name), result.model.get_parameter(name))


def test_creating_it_changes_numbers_but_not_the_function():
    model = net().eval()
    before, gamma = model(SMALL).detach(), model[1].weight.detach().clone()
    sparsifier = small_one(model, alpha=0.1)
    torch.testing.assert_close(model[1].weight.detach(), gamma * 0.1)
    assert relative_error(model(SMALL).detach(), before) < 1e-5
    assert relative_error(sparsifier.unscaled()(SMALL).detach(), before) < 1e-5


def test_zeros_are_exact_the_budget_is_met_and_the_end_is_proven():
    sparsifier = small_one(growth=3.0)
    model, optimizer = sparsifier.model, sgd(sparsifier)
    for number in range(12):
        train(sparsifier, optimizer, 10, number)
        if sparsifier.next_round(0.9):
            break
    assert sparsifier.met
    assert "budget met" in repr(sparsifier)
    zeros = sum(int((p == 0).sum()) for p in sparsifier.parameters.values())
    assert zeros == sum(sparsifier.rounds[-1].zeros.values()) > 5
    train(sparsifier, optimizer, 3)  # zeros are held
    assert sum(int((p == 0).sum()) for p in sparsifier.parameters.values()) == zeros
    kept = {n: t.clone() for n, t in model.state_dict().items()}
    small, plan = sparsifier.finish()
    assert all(torch.equal(kept[n], t) for n, t in model.state_dict().items())
    assert sparsifier.graph.cost(plan).macs <= 0.5 * sparsifier.graph.cost().macs
    assert sparsifier.closed == 0
    assert sparsifier.report.max_error < 1e-5
    assert not small.training
    with torch.no_grad():
        assert relative_error(small(SMALL), model.eval()(SMALL)) < 1e-5  # folding and cutting changed nothing
    sentei.retrace(small, sparsifier.graph, plan)
    for call in (sparsifier.step, sparsifier.next_round, sparsifier.finish):
        with pytest.raises(ConfigError, match=r"after finish\(\)"):
            call()


def test_finishing_early_closes_the_gap():
    sparsifier = small_one()
    _, plan = sparsifier.finish()
    assert sparsifier.closed > 3
    assert sparsifier.graph.cost(plan).macs <= 0.5 * sparsifier.graph.cost().macs


def test_every_round_leaves_a_network_that_can_be_cut():
    sparsifier = small_one(rho=0.01, alpha=0.1)
    train(sparsifier, sgd(sparsifier), 10)
    assert not sparsifier.next_round()
    folded = sparsifier.passed
    small = sentei.cut(folded.model, sparsifier.graph, folded.plan)
    assert sum(p.numel() for p in small.parameters()) == sparsifier.rounds[0].params
    assert sparsifier.rho == 0.01


def test_gammas_get_a_group_of_their_own():
    sparsifier = small_one()
    *others, gammas = sparsifier.parameter_groups(weight_decay=1e-3, lr=0.5)
    assert (gammas["momentum"], gammas["weight_decay"], gammas["lr"]) == (0.0, 0.0, 0.1)
    assert [(g["weight_decay"], g["lr"], len(g["params"])) for g in others] == [(1e-3, 0.5, 3), (0.0, 0.5, 5)]
    assert {id(p) for p in gammas["params"]} == {id(p) for p in sparsifier.parameters.values()}
    assert list(sparsifier.parameters) == ["1.weight", "4.weight"]


def test_own_steps_are_those_of_plain_sgd():
    one, other = small_one(), small_one(own_steps=True)
    assert len(other.parameter_groups()) == len(one.parameter_groups()) - 1
    for sparsifier in (one, other):
        train(sparsifier, sgd(sparsifier), 5)
    assert all(torch.equal(a, b) for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True))
    assert all(p.grad is None for p in other.parameters.values())
    with pytest.raises(ConfigError, match="no gamma has a gradient"):
        other.step()


def test_a_learning_rate_that_changes_is_told():
    model = net()
    sparsifier = small_one(model, rho=1.0, alpha=1.0, cost="params")
    before = model[1].weight.detach().clone()
    sparsifier.step(0.001)
    torch.testing.assert_close(before - model[1].weight, torch.full((16,), 0.001 * sparsifier.proximal.penalties[0]))


def test_a_round_that_destroys_the_network_is_taken_back():
    sparsifier = small_one(budget=sentei.Budget(macs=0.2), before=0.9)
    model, optimizer = sparsifier.model, sgd(sparsifier)
    for number in range(2):
        kept = {n: t.clone() for n, t in model.state_dict().items()}
        train(sparsifier, optimizer, 3, number)
        assert not sparsifier.next_round([0.8, 0.1][number])
    assert all(torch.equal(kept[n], t) for n, t in model.state_dict().items())
    assert sparsifier.rounds[0].rho < sparsifier.rho < sparsifier.rounds[1].rho


@pytest.mark.parametrize(("lower", "values"), [(True, [0.5, 3.0]), (False, [0.9, 0.4])])
def test_the_first_round_is_the_measure_where_nothing_else_is(lower, values):
    sparsifier = small_one(budget=sentei.Budget(macs=0.2), lower_is_better=lower)
    for value in values:
        train(sparsifier, sgd(sparsifier), 2)
        sparsifier.next_round(value)
    assert [sparsifier.fell(r) for r in sparsifier.rounds] == [False, True]
    assert not small_one(lower_is_better=not lower).fell(sparsifier.rounds[1])


VALUES = (0.9, 0.8, 0.1, 0.8)
"""Of each round; the third one destroys the network."""
COURSE = [part for i, value in enumerate(VALUES) for part in (("train", i), ("train", 10 + i), ("round", value))]


def going(state=None):
    sparsifier = small_one(growth=3.0, before=0.9, budget=sentei.Budget(macs=0.3))
    optimizer = sgd(sparsifier)
    if state is not None:
        sparsifier.model.load_state_dict(state["model"])
        sparsifier.load_state_dict(state["sparsifier"])
        optimizer.load_state_dict(state["optimizer"])
    return sparsifier, optimizer


def go(sparsifier, optimizer, course):
    for what, value in course:
        if what == "train":
            train(sparsifier, optimizer, 4, value)
        else:
            sparsifier.next_round(value, 1.0)


@pytest.fixture(scope="module")
def whole():
    sparsifier, optimizer = going()
    go(sparsifier, optimizer, COURSE)
    assert sparsifier.fell(sparsifier.rounds[2])
    return sparsifier, sparsifier.finish()


@pytest.mark.parametrize("stop", [1, 6, 8])
def test_a_resumed_loop_ends_in_the_same_bits(whole, stop):
    """Stopped in the middle of the first round, before the third one, and in the middle of it."""
    first, optimizer = going()
    go(first, optimizer, COURSE[:stop])
    file = io.BytesIO()
    parts = {"model": first.model, "optimizer": optimizer, "sparsifier": first}
    torch.save({name: part.state_dict() for name, part in parts.items()}, file)
    state = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    assert bool(state["sparsifier"]["kept"]) == bool(stop % 3)  # as large as the model only within a round

    again, optimizer = going(state)
    go(again, optimizer, COURSE[stop:])
    there, (small, plan) = whole
    resumed, same = again.finish()
    assert same == plan
    assert [(r.rho, r.zeros, r.steps) for r in again.rounds] == [(r.rho, r.zeros, r.steps) for r in there.rounds]
    pairs = zip(small.state_dict().values(), resumed.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_held_zeros_are_resumed():
    sparsifier = small_one(growth=30.0)
    while not sparsifier.met:
        train(sparsifier, sgd(sparsifier), 10)
        sparsifier.next_round(0.9)
    again = small_one(growth=30.0)
    again.model.load_state_dict(sparsifier.model.state_dict())
    again.load_state_dict(sparsifier.state_dict())
    zeros = [p == 0 for p in again.parameters.values()]
    with torch.no_grad():
        for p in again.parameters.values():
            p.fill_(0.3)
    again.step()
    assert again.met
    assert all(torch.equal(p == 0, z) for p, z in zip(again.parameters.values(), zeros, strict=True))


def test_a_state_of_another_moment_or_another_sparsifier_is_refused():
    sparsifier = small_one()
    train(sparsifier, sgd(sparsifier), 2)
    state = sparsifier.state_dict()
    with pytest.raises(CheckpointError, match="create the Sparsifier first, then load the model's weights"):
        small_one().load_state_dict(state)
    with pytest.raises(CheckpointError, match=r"growth is 1\.5 there, 2\.0 here"):
        small_one(growth=2.0).load_state_dict(state)
    with pytest.raises(CheckpointError, match="no state of a Sparsifier"):
        small_one().load_state_dict({"rho": 1.0})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), torch.tensor(float("nan")), np.float64("nan")])
def test_a_metric_that_is_no_number_is_refused(value):
    sparsifier = small_one()
    train(sparsifier, sgd(sparsifier), 1)
    with pytest.raises(ConfigError, match="expected a finite number"):
        sparsifier.next_round(value)
    with pytest.raises(ConfigError, match="loss is a list"):
        sparsifier.next_round(0.9, [1.0])
    assert not sparsifier.rounds
    assert not sparsifier.next_round(torch.tensor(0.9), torch.tensor(1.0, requires_grad=True))


def test_a_round_without_steps_is_refused():
    with pytest.raises(ConfigError, match="this round had no step"):
        small_one().next_round(0.9)


@pytest.mark.parametrize(
    ("options", "error", "why"),
    [
        ({"rho": 0.1, "budget": HALF}, ConfigError, "both of budget and rho"),
        ({"budget": None}, ConfigError, "neither of budget and rho"),
        ({"steps": None}, ConfigError, r"give steps=len\(loader\)"),
        ({"steps": 0}, ConfigError, "steps is 0"),
        ({"lr": 0.0}, ConfigError, r"lr is 0\.0"),
        ({"rho": -1.0}, ConfigError, r"rho is -1\.0"),
        ({"growth": 1.0}, ConfigError, r"growth is 1\.0"),
        ({"alpha": 2.0}, ConfigError, r"alpha is 2\.0"),
        ({"cost": "speed"}, ConfigError, "cost is 'speed'"),
        ({"genes": "some"}, ConfigError, "genes is 'some'"),
        ({"fold": "x"}, ConfigError, "fold is 'x'"),
        ({"budget": sentei.Budget(macs=0.001)}, BudgetError, "smallest reachable"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_changes(options, error, why):
    model = net()
    with pytest.raises(error, match=why):
        small_one(model, **options)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), net().parameters(), strict=True))


def test_networks_without_usable_batchnorm_are_refused():
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.GroupNorm(8, 8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                          nn.Linear(8, 4))  # fmt: skip
    with pytest.raises(ConfigError, match="no BatchNorm with a scale"):
        small_one(model)


def test_advice():
    sparsifier = small_one(rho=100.0, alpha=0.1)
    assert sparsifier.advice is None
    train(sparsifier, sgd(sparsifier), 3)
    sparsifier.next_round(0.1)
    assert sparsifier.advice is None or "lower rho" in sparsifier.advice
