"""`sentei.Supernet` in a loop of one's own: gradients, search, the cut network, states, refusals."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sentei
from sentei.errors import BudgetError, ConfigError, DataError
from sentei.plan import Constraints
from sentei.supernet.training import SupernetLoss
from sentei.train.evaluate import evaluate
from tests.methods.networks import Three

HALF = sentei.Budget(macs=0.5)
FREE = Constraints(round_to=1, max_ratio=0.9)
QUICK = {"evaluations": 12, "rounds": 2, "candidates": 3, "table_images": 60, "calibration_images": 128}


@pytest.fixture(scope="module")
def batches(data):
    return list(data.train.batches(64, train=True)), list(data.val.batches(60))


def made(model=None, budget=HALF, **options):
    torch.manual_seed(0)
    model = Three() if model is None else model
    size = torch.zeros(1, 1, 8, 8, dtype=next(model.parameters()).dtype)
    return sentei.Supernet(model, sentei.trace(model, size), budget, **{"constraints": FREE, "levels": 6, **options})


def trained(supernet, batches, steps):
    optimizer = torch.optim.SGD(supernet.parameters(), 0.05, momentum=0.9)
    supernet.train()
    for batch in batches[:steps]:
        optimizer.zero_grad()
        supernet.loss(batch).backward()
        optimizer.step()
    return supernet


@pytest.fixture(scope="module")
def ready(batches):
    return trained(made(), batches[0] * 3, 60)


@pytest.mark.parametrize("rule", ["stagewise", "sandwich", "random-path"])
@pytest.mark.parametrize("interfaces", ["whole", "searched"])
def test_gradients_after_all_contexts_equal_those_of_one_network_at_a_time(rule, interfaces):
    supernet = made(Three().double(), rule=rule, interfaces=interfaces, subnets=2)
    generator = torch.Generator().manual_seed(1)
    batch = torch.randn(16, 1, 8, 8, dtype=torch.float64, generator=generator), torch.arange(16) % 10
    net, model = copy.deepcopy((supernet._net, supernet.model))
    torch.manual_seed(5)
    loss = supernet.loss(batch)
    loss.backward()
    torch.manual_seed(5)
    objective = SupernetLoss(net, rule, subnets=2)
    shown = objective(net.model, batch)
    for (name, a), b in zip(supernet.model.named_parameters(), net.model.parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, rtol=1e-6, atol=1e-12), name
    assert all(map(torch.equal, supernet.model.buffers(), net.model.buffers()))
    told = objective.measured()
    for kind, losses in supernet.losses.items():
        expected = [float(shown)] if kind == "full" else told[f"{kind}_losses"]
        assert losses.tolist() == pytest.approx(expected, abs=2e-5)
    counts = {"full": 1, "tiny": 1, "random": 4 if rule == "random-path" else 2}
    assert float(loss.detach()) == pytest.approx(sum(counts[k] * float(v.sum()) for k, v in supernet.losses.items()))


def test_a_scaled_loss_and_accumulated_batches_are_like_those_of_any_module(batches):
    supernet = made()
    found = []
    for factors in ((3.0,), (1.0, 2.0)):
        supernet.zero_grad()
        for factor in factors:
            torch.manual_seed(2)
            (factor * supernet.eval()(batches[0][0])).backward()
        found.append([p.grad.clone() for p in supernet.parameters()])
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(*found, strict=True))


def test_the_given_model_is_untouched(batches):
    model = Three()
    before = copy.deepcopy(model.state_dict())
    trained(made(model), batches[0], 2)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


@pytest.mark.parametrize("budget", [HALF, sentei.Budget(params=0.4)])
def test_plan_and_network_are_within_the_budget_and_work(budget, ready, batches, data):
    train, val = batches
    plan = ready.plan(budget, batches=val, calibration=train, **QUICK)
    ((cost, limit),) = budget.resolve(ready.graph).items()
    assert 0.6 * limit < getattr(ready.graph.cost(plan), cost) <= limit
    assert len(ready.searched["candidates"]) == 3
    small = ready.network(plan)
    whole = Three()
    assert type(small) is Three
    again = sentei.trace(small, torch.zeros(1, 1, 8, 8))
    assert again.cost() == ready.graph.cost(plan)
    report = sentei.check(whole, sentei.cut(whole, ready.graph, plan), ready.graph, plan, torch.randn(2, 1, 8, 8))
    assert report.max_error < 1e-4
    best = ready.searched["candidates"][ready.searched["picked"]]
    accuracy = evaluate(small, data.val).value
    assert accuracy > 0.3
    assert accuracy == pytest.approx(best["val_accuracy"], abs=0.15)
    assert ready.plan(budget, batches=val, calibration=train, **QUICK) == plan


def test_the_network_has_the_weights_of_the_supernet(ready, batches):
    plan = sentei.uniform(ready.graph, HALF)
    with pytest.raises(ConfigError, match="calibration"):
        made().network(plan)
    prefix = ready._net.plan(ready._net.tiny)
    small = ready.network(prefix, batches[0])
    x = batches[1][0][0]
    with torch.no_grad(), ready._net.narrow(ready._net.tiny) as subnet:
        sentei.train.recalibrate(subnet, batches[0])
        expected = subnet.eval()(x)
    ready.train()
    assert torch.allclose(small.eval()(x), expected, rtol=1e-3, atol=1e-4)


def test_a_state_brings_weights_and_order(ready, batches, tmp_path):
    train, val = batches
    torch.save(ready.state_dict(), tmp_path / "supernet.pt")
    torch.manual_seed(7)
    other = made(sort_by="random", seed=3)
    assert not torch.equal(other.order, ready.order)
    other.load_state_dict(torch.load(tmp_path / "supernet.pt", weights_only=True))
    other.seed = ready.seed
    plan = ready.plan(HALF, batches=val, calibration=train, **QUICK)
    assert other.plan(HALF, batches=val, calibration=train, **QUICK) == plan
    a, b = ready.network(plan).state_dict(), other.network(plan).state_dict()
    assert all(torch.equal(t, b[n]) for n, t in a.items())


def test_training_goes_on_from_a_state_to_the_same_bits(batches):
    train, _ = batches
    torch.manual_seed(1)
    whole = trained(made(), train, 4)
    torch.manual_seed(1)
    first = trained(made(), train, 2)
    numbers = torch.get_rng_state()
    second = made()
    second.load_state_dict(first.state_dict())
    torch.set_rng_state(numbers)
    plain = torch.optim.SGD(second.parameters(), 0.05)
    assert len(plain.param_groups[0]["params"]) == len(list(whole.model.parameters()))
    torch.manual_seed(9)
    a = first.train().loss(train[2])
    torch.manual_seed(9)
    b = second.train().loss(train[2])
    assert torch.equal(a, b)


def test_a_plain_loss_and_a_task_that_does_not_imitate(batches):
    train, val = batches
    supernet = trained(made(loss=F.cross_entropy), train, 3)
    assert supernet.losses["tiny"].shape == (3,)
    plan = supernet.plan(batches=val, calibration=train, **QUICK)
    tried = supernet.searched["candidates"]
    assert tried[supernet.searched["picked"]]["val_loss"] == min(c["val_loss"] for c in tried)
    assert supernet.network(plan)(val[0][0]).shape == (60, 10)
    supernet = trained(made(task=Named()), [{"x": x, "y": y} for x, y in train], 3)
    assert supernet.graph.cost(supernet.plan(batches=named(val), calibration=named(train), **QUICK)).macs > 0


def named(batches):
    return [{"x": x, "y": y} for x, y in batches]


class Named(sentei.tasks.Task):
    """Without `imitate`."""

    metric = "right"

    def inputs(self, batch):
        return (batch["x"],)

    def loss(self, output, batch):
        return F.cross_entropy(output, batch["y"])

    def measure(self, model, batches):
        return {"right": float(np.mean([float((model(b["x"]).argmax(1) == b["y"]).float().mean()) for b in batches]))}


@pytest.mark.parametrize(
    ("budget", "options", "error", "text"),
    [
        (sentei.Budget(macs=0.05), {}, BudgetError, "narrowest network of the supernet has .*interfaces='searched'"),
        (sentei.Budget(macs=0.4, params=0.5), {}, ConfigError, "knows one limit, not macs and params; give one$"),
        (HALF, {"stages": ("nope",)}, ConfigError, "no module 'nope'"),
        (HALF, {"stages": "a"}, ConfigError, "expected several names"),
        (HALF, {"rule": "fair"}, ConfigError, "rule is 'fair'"),
        (HALF, {"interfaces": "all"}, ConfigError, "interfaces is 'all'"),
        (HALF, {"subnets": 0}, ConfigError, "subnets is 0"),
        (HALF, {"loss": F.mse_loss, "task": Named()}, ConfigError, "task and loss are both given"),
    ],
)
def test_what_does_not_fit_is_refused_before_training(budget, options, error, text):
    with pytest.raises(error, match=text):
        made(budget=budget, **options)


def test_what_plan_cannot_use_is_refused(batches):
    train, val = batches
    supernet = made(budget=None)
    for budget, val_batches, options, error, text in [
        (None, val, {}, ConfigError, "plan needs a budget"),
        (sentei.Budget(macs=0.05), val, {}, BudgetError, "narrowest network"),
        (HALF, [], {}, DataError, "no validation batches"),
        (HALF, [(x[:4], y[:4]) for x, y in val[:1]], {}, DataError, "has 4 images"),
        (HALF, iter(val), {}, DataError, "can be iterated once an epoch"),
        (HALF, val, {"rounds": 0}, ConfigError, "rounds is 0"),
    ]:
        with pytest.raises(error, match=text):
            supernet.plan(budget, batches=val_batches, calibration=train, **{**QUICK, **options})
    with pytest.raises(DataError, match="train has no batches"):
        supernet.plan(HALF, batches=val, calibration=[], **QUICK)


def test_a_state_of_other_genes_is_refused(ready):
    with pytest.raises(RuntimeError, match="order"):
        made(interfaces="searched").load_state_dict(ready.state_dict())


def test_it_is_a_module(ready):
    assert isinstance(ready, nn.Module)
    assert ready.stages == ("a", "b", "output")
    assert copy.deepcopy(ready).double().model.linear.weight.dtype == torch.float64
