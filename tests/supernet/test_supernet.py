"""Supernets: losses against cut networks, every unit taught in every step, stages that do not see each other."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sentei
from sentei.data import load_data
from sentei.models import build_model
from sentei.plan import CRITERIA, Constraints
from sentei.supernet.proxies import StageDistances, SubnetMetric, batch_statistics, even_batches
from sentei.supernet.shares import shares
from sentei.supernet.stages import find_stages
from sentei.supernet.training import SortedNet, SupernetLoss, full_pass, stage_losses
from sentei.surgery import cut
from sentei.tasks import Classification, distillation_loss
from sentei.train import Recipe, evaluate, fit, recalibrate
from sentei.train.memory import training_bytes
from tests.methods.networks import Three

FREE = Constraints(round_to=1, max_ratio=0.9)


def supernet(model, inputs, interfaces=False):
    graph = sentei.trace(model, inputs)
    stages = find_stages(model, graph)
    free = np.concatenate([*stages.inside, *(stages.between if interfaces else ())])
    space = shares(graph, [graph.groups[g].name for g in free], FREE)
    return SortedNet.of(model, graph, stages, space, CRITERIA["l1"](model, graph))


@pytest.fixture
def net():
    torch.manual_seed(0)
    return supernet(Three().double(), torch.zeros(1, 1, 8, 8, dtype=torch.float64))


def images(count=16, dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)
    return torch.randn(count, 1, 8, 8, dtype=dtype, generator=generator), torch.arange(count) % 10


def drawn(net, seed=0):
    return net.space.widths(net.space.random(np.random.default_rng(seed)))


def test_sorting_keeps_the_function_and_unsorting_the_weights(net):
    model = Three().double().eval()
    other = SortedNet.of(model, net.graph, net.stages, net.space, CRITERIA["l1"](model, net.graph))
    x, _ = images()
    assert torch.allclose(other.model(x), model(x), rtol=1e-12)
    assert all(torch.equal(a, b) for a, b in zip(other.unsorted().parameters(), model.parameters(), strict=True))
    scores = CRITERIA["l1"](other.model, net.graph)
    assert all((np.diff(scores[name]) <= 1e-12).all() for name in net.space.names)


def test_the_plan_of_the_dense_network_cuts_what_the_supernet_runs(net):
    widths, (x, _) = drawn(net), images()
    small = cut(net.unsorted(), net.graph, net.plan(widths)).eval()
    net.model.eval()
    with net.narrow(widths) as subnet:
        assert torch.allclose(subnet(x), small(x), rtol=1e-9)


def test_slices_of_the_sorted_network_are_views_or_lie_as_in_a_cut(net):
    whole = dict(net.model.named_parameters())
    with net.narrow(drawn(net)) as subnet:
        parts = {n: p for n, p in subnet.named_parameters() if p.shape != whole[n].shape}
        views = {n for n, p in parts.items() if p.untyped_storage().data_ptr() == whole[n].untyped_storage().data_ptr()}
        assert views >= {n for n, p in parts.items() if p.shape[1:] == whole[n].shape[1:]} != set()
        assert all(p.is_contiguous() for p in parts.values())


@pytest.mark.parametrize("interfaces", [False, True])
def test_losses_equal_those_of_cut_stages(interfaces):
    """Each stage of the cut network, run by hand on the kept channels of the full network's features."""
    torch.manual_seed(1)
    net = supernet(Three().double(), torch.zeros(1, 1, 8, 8, dtype=torch.float64), interfaces)
    model, widths, (x, _) = net.model.eval(), drawn(net, 5), images()
    assert interfaces == any(w < f for w, f in zip(widths[net.stages.between[0]], [8], strict=True))
    small = cut(model, net.graph, net.prefix(widths))
    with torch.no_grad():
        h1 = model.a(x)
        h2 = model.b(h1)
        scores = model.linear(model.c(h2).mean((2, 3)))
        k1, k2 = small.b[0].in_channels, small.c[0].in_channels
        expected = [
            F.mse_loss(small.a(x), h1[:, :k1]) / h1.float().var(),
            F.mse_loss(small.b(h1[:, :k1]), h2[:, :k2]) / h2.float().var(),
            distillation_loss(small.linear(small.c(h2[:, :k2]).mean((2, 3))), scores, 1.0),
        ]
        targets, found = full_pass(model, net, x)
        assert torch.equal(found, scores)
        losses = stage_losses(net, widths, x, targets, scores)
    assert torch.tensor(losses).tolist() == pytest.approx(torch.tensor(expected).tolist(), rel=1e-5)


def test_gradients_equal_those_of_cut_stages(net):
    """One stage's loss, differentiated through a cut stage, lands in the same slices of the full weights."""
    model, widths, (x, _) = net.model.eval(), drawn(net, 2), images()
    targets, scores = full_pass(model, net, x)
    stage_losses(net, widths, x, targets, scores.detach())[1].backward()
    small = cut(model, net.graph, net.prefix(widths))
    h1 = model.a(x).detach()
    h2 = model.b(h1).detach()
    (F.mse_loss(small.b(h1), h2) / h2.var()).backward()
    for whole, part in zip(model.b.parameters(), small.b.parameters(), strict=True):
        slices = tuple(slice(0, n) for n in part.shape)
        assert torch.allclose(whole.grad[slices], part.grad, rtol=1e-5, atol=1e-12)
        rest = whole.grad.clone()
        rest[slices] = 0
        assert not rest.any()
    assert all(p.grad is None or not p.grad.any() for p in [*model.a.parameters(), *model.linear.parameters()])


def test_a_stage_depends_on_its_own_widths_alone(net):
    proxy = StageDistances(net, [images(64)])
    full = net.space.full
    whole, narrow = full.copy(), net.tiny
    whole[net.stages.inside[1]] = narrow[net.stages.inside[1]]
    a, b, c = proxy(whole), proxy(narrow), proxy(full)
    assert a["stage2"] == b["stage2"] > 0
    assert a["stage1"] == c["stage1"] == pytest.approx(0, abs=1e-12)
    assert a["fitness"] == -(a["stage1"] + a["stage2"] + a["stage3"])


def test_distances_take_statistics_of_the_batch_and_leave_the_network_alone(net):
    before = copy.deepcopy(net.model.state_dict())
    (x, y), widths = images(64), drawn(net)
    limited, kept = StageDistances(net, [(x, y)], memory=0), StageDistances(net, [(x, y)])
    assert limited(widths) == kept(widths) == kept(widths)
    assert (len(limited.kept), len(kept.kept)) == (0, 1)
    assert all(torch.equal(t, before[n]) for n, t in net.model.state_dict().items())
    small = cut(net.model, net.graph, net.prefix(widths))
    recalibrate(small, [x])
    with torch.no_grad(), batch_statistics(net.model):
        stage = small.eval().a(x)
        h1 = net.model.a(x)
    # Unbiased variance in the running statistics: 64 * 64 pixels make it 1 + 1/4095 of the batch's own.
    assert kept(widths)["stage1"] == pytest.approx(float(F.mse_loss(stage, h1) / h1.var()), rel=5e-3)


def test_accuracy_is_that_of_the_recalibrated_cut(net):
    data = load_data("digits")
    model = Three()
    net = SortedNet.of(model, net.graph, net.stages, net.space, CRITERIA["l1"](model, net.graph))
    proxy, widths = SubnetMetric.of(net, data, images=180, recalibrate=200), drawn(net)
    small = cut(net.unsorted(), net.graph, net.plan(widths))
    recalibrate(small, proxy.calibration)
    assert proxy(widths)["val_accuracy"] == pytest.approx(evaluate(small, data.val).value, abs=0.02)
    assert proxy(widths) == proxy(widths)


@pytest.mark.parametrize("rule", ["stagewise", "sandwich", "random-path"])
def test_every_unit_is_taught_in_every_step_where_the_full_network_is(rule):
    """Fairness: gradients reach each unit of each group in every step; random paths alone leave some out."""
    torch.manual_seed(0)
    model = smooth(Three().double())
    net = supernet(model, torch.zeros(1, 1, 8, 8, dtype=torch.float64))
    objective, left_out = SupernetLoss(net, rule), 0
    for step in range(8):
        torch.manual_seed(step)
        net.model.train().zero_grad()
        objective(net.model, images())
        parameters = dict(net.model.named_parameters())
        for group in net.graph.groups:
            taught = torch.zeros(group.width, dtype=torch.bool)
            for m in (m for m in group.members if m.param in parameters):
                grad = parameters[m.param].grad
                if grad is not None:
                    taught |= grad.movedim(m.dim, 0)[m.indices.ravel()].reshape(group.width, -1).any(1)
            left_out += int((~taught).sum())
    assert (left_out > 0) == (rule == "random-path")


def smooth(model):
    """Without dead units, which get no gradient whatever the rule."""
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU):
                setattr(module, name, nn.Softplus())
    return model


@pytest.mark.parametrize("rule", ["stagewise", "sandwich", "random-path"])
def test_split_batches_give_the_same_gradients(rule):
    torch.manual_seed(0)
    net = supernet(Three().double().eval(), torch.zeros(1, 1, 8, 8, dtype=torch.float64))
    found = []
    for chunk in (16, 4):
        torch.manual_seed(1)
        net.model.zero_grad()
        objective = SupernetLoss(net, rule, chunk=chunk)
        loss = objective(net.model, images())
        found.append((float(loss), [p.grad.clone() for p in net.model.parameters()], objective.measured()))
    (loss_a, grads_a, told_a), (loss_b, grads_b, told_b) = found
    assert loss_a == pytest.approx(loss_b)
    assert told_a.keys() == told_b.keys()
    if rule != "stagewise":  # a stage's error is relative to the variance of the piece
        assert all(torch.allclose(a, b, rtol=1e-6, atol=1e-9) for a, b in zip(grads_a, grads_b, strict=True))


def test_full_network_statistics_are_those_of_its_own_pass(net):
    """Subnets run on copies of the buffers: after a step the statistics equal those of a plain step."""
    x, y = images()
    plain = copy.deepcopy(net.model).train()
    plain(x)
    net.model.train()
    SupernetLoss(net)(net.model, (x, y))
    found = net.model.state_dict()
    assert all(torch.equal(t, found[n]) for n, t in plain.state_dict().items() if "running" in n or "tracked" in n)


def test_training_makes_narrow_networks_work():
    data, model = load_data("digits"), Three()
    fit(model, data, Recipe(epochs=4, batch_size=64, lr=0.1), progress=False)
    net = supernet(model, torch.zeros(1, *data.input_shape))
    accuracy = SubnetMetric.of(net, data, images=180, recalibrate=500)
    widths = [net.tiny, *(drawn(net, i) for i in range(2))]
    distance = StageDistances.of(net, data, 180)
    before = [(accuracy(w)["val_accuracy"], distance(w)) for w in widths]
    result = fit(net.model, data, Recipe(epochs=3, batch_size=64, lr=0.05), objective=SupernetLoss(net), progress=False)
    distance = StageDistances.of(net, data, 180)
    now = [(accuracy(w)["val_accuracy"], distance(w)) for w in widths]
    assert all(a > b + 0.05 for (a, _), (b, _) in zip(now, before, strict=True))
    for i in (1, 2, 3):
        assert sum(far[f"stage{i}"] for _, far in now) < 0.8 * sum(far[f"stage{i}"] for _, far in before)
    first, last = result.history[0], result.history[-1]
    assert len(first["tiny_losses"]) == len(first["random_losses"]) == 3
    assert sum(last["random_losses"]) < sum(first["random_losses"])


ZOO = ["resnet56", "vgg16", "mobilenetv2", "densenet40", "googlenet", "torchvision:resnet50",
       "torchvision:mobilenet_v2"]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_networks_of_the_zoo_learn_as_supernets(name):
    """Unmodified: losses of a short training fall, and narrow networks beat their untrained selves."""
    torch.manual_seed(0)
    model = build_model(name)
    size = 64 if ":" in name else 32
    net = supernet(model, torch.zeros(1, 3, size, size))
    x = torch.randn(8, 3, size, size)
    y = torch.arange(8) % 4
    x += F.interpolate(F.one_hot(y, 4).float().reshape(8, 1, 2, 2), size=size)  # something to learn
    widths = [net.tiny, drawn(net)]
    objective, optimizer = SupernetLoss(net), torch.optim.SGD(net.model.parameters(), 0.01, momentum=0.9)
    losses, before = [], [label_loss(net, w, x, y) for w in widths]
    for step in range(8):
        torch.manual_seed(step)
        net.model.train()
        optimizer.zero_grad()
        losses.append(float(objective(net.model, (x, y))))
        told = objective.measured()
        assert len(told["tiny_losses"]) == len(told["random_losses"]) == len(net.stages)
        optimizer.step()
    assert np.mean(losses[-3:]) < losses[0]
    assert all(label_loss(net, w, x, y) < then for w, then in zip(widths, before, strict=True))


def label_loss(net, widths, x, y):
    with torch.no_grad(), batch_statistics(net.model), net.narrow(widths) as subnet:
        return float(F.cross_entropy(subnet(x), y))


def test_memory_of_training_is_what_autograd_keeps():
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 64, 10))
    found = training_bytes(model, torch.zeros(2, 1, 8, 8), Classification())
    assert found == 4 * (64 + 4 * 64)  # the image for the conv, the ReLU's output for itself and for the linear layer


@pytest.mark.parametrize(("images", "sizes"), [(100, [100]), (251, [251]), (501, [251, 250]), (5000, [250] * 20)])
def test_no_batch_is_a_small_rest(images, sizes):
    data = load_data("digits")

    class Many:
        def __len__(self):
            return 6000

        def batches(self, size, *, limit):
            return ((torch.zeros(n), torch.zeros(n)) for n in [len(p) for p in torch.arange(limit).split(size)])

    assert [len(y) for _, y in even_batches(Many(), images)] == sizes
    assert [len(y) for _, y in even_batches(data.val, 500)] == [180]
