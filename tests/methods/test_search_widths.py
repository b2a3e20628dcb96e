"""Searching widths with a function of one's own: optimum, cache, resume, workers, failures, refusals."""

import functools
import json

import numpy as np
import pytest
import torch
from torch import nn

import sentei
from sentei.errors import BudgetError, ConfigError, PlanError, SearchError
from sentei.plan import Constraints

FREE = Constraints(round_to=1, max_ratio=0.9)
HALF = sentei.Budget(macs=0.5)
X = torch.zeros(1, 1, 8, 8)


class Net(nn.Sequential):
    def __init__(self):
        layers = [nn.Conv2d(1, 48, 3, padding=1), nn.ReLU(), nn.Conv2d(48, 80, 3, padding=1), nn.ReLU()]
        layers += [nn.Conv2d(80, 64, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 4)]
        super().__init__(*layers)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture(scope="module")
def graph(model):
    return sentei.trace(model, X)


def first_width(small):
    """Best with 40 channels in the first layer."""
    return -abs(small[0].out_channels - 40)


def search(model, graph, evaluate=first_width, budget=HALF, **options):
    given = {"constraints": FREE, "evaluations": 12, **options}
    return sentei.search_widths(model, graph, budget, evaluate, **given)


@pytest.mark.parametrize("method", ["abc", "evolution", "random_search"])
def test_a_known_optimum_is_found_within_the_budget(model, graph, method):
    plan = search(model, graph, method=method, evaluations=24)
    assert abs(graph.widths(plan)[0] - 40) <= 3
    assert graph.cost(plan).macs <= 0.5 * graph.cost().macs
    small = sentei.cut(model, graph, plan)
    assert sentei.check(model, small, graph, plan, torch.randn(2, 1, 8, 8)).max_error < 1e-5
    assert plan == search(model, graph, method=method, evaluations=24)


def test_every_structure_is_measured_once_as_a_network_of_its_own(model, graph):
    before, seen, modes = {n: t.clone() for n, t in model.state_dict().items()}, [], []

    def spoils(small):
        seen.append(tuple(small[i].out_channels for i in (0, 2, 4)))
        modes.append(small.training)
        with torch.no_grad():
            for p in small.parameters():
                p.zero_()
        return torch.tensor([float(small[0].out_channels)], requires_grad=True)

    search(model, graph, spoils)
    assert len(seen) == len(set(seen)) == 12
    assert not any(modes)
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())


def test_units_are_inherited_and_odd_widths_are_noted(model, graph):
    kept = []
    plan = search(model, graph, lambda small: kept.append(small[0].weight.detach().clone()) or 0.0, evaluations=1)
    rows = {tuple(row.flatten().tolist()) for row in model[0].weight.detach()}
    assert all(tuple(row.flatten().tolist()) in rows for row in kept[0])
    assert "odd widths" in plan.note


def test_lower_is_better(model, graph):
    said = []
    plan = search(model, graph, lambda small: float(small[2].out_channels), lower_is_better=True, say=said.append)
    other = search(model, graph, lambda small: -float(small[2].out_channels))
    assert plan == other
    assert f"Best of 12 structures: {graph.widths(plan)[1]}" in said


def randomly(small):
    return torch.randn(()).item()


def test_random_numbers_follow_from_the_structure(model, graph):
    torch.manual_seed(0)
    state = torch.random.get_rng_state()
    plan = search(model, graph, randomly, evaluations=6)
    assert torch.equal(state, torch.random.get_rng_state())
    torch.manual_seed(1)
    assert plan == search(model, graph, randomly, evaluations=6)


def test_a_search_that_was_stopped_goes_on(model, graph, tmp_path):
    calls = []

    def counted(small, stop=None):
        if len(calls) == stop:
            raise KeyboardInterrupt
        calls.append(1)
        return first_width(small) + torch.rand(()).item()

    whole = search(model, graph, counted)
    calls.clear()
    with pytest.raises(KeyboardInterrupt):
        search(model, graph, functools.partial(counted, stop=7), run_dir=tmp_path)
    with pytest.raises(ConfigError, match=r"other settings: guide is 1\.5 there, 0\.5 now"):
        search(model, graph, counted, run_dir=tmp_path, guide=0.5)
    with pytest.raises(ConfigError, match="function is '.*counted' there, 'first_width' now"):
        search(model, graph, run_dir=tmp_path)
    torch.manual_seed(5)
    with pytest.raises(ConfigError, match="The network has other weights"):
        search(Net().eval(), graph, counted, run_dir=tmp_path)
    journal = (tmp_path / "journal.jsonl").read_bytes()
    (tmp_path / "journal.jsonl").write_bytes(journal + b'{"event": "evalu')  # killed while it wrote
    assert search(model, graph, counted, run_dir=tmp_path) == whole
    assert len(calls) == 12
    assert search(model, graph, counted, run_dir=tmp_path, progress=False) == whole  # at once
    assert len(calls) == 12
    records = [json.loads(line) for line in (tmp_path / "journal.jsonl").read_text().splitlines()]
    assert len({tuple(r["widths"]) for r in records}) == len(records) == 12
    search(model, graph, run_dir=tmp_path, overwrite=True)


def test_worker_processes_find_the_same(model, graph):
    offset = np.float64(0.5)

    def noisy(small):  # a closure that no module has
        return first_width(small) + offset + torch.rand(())

    here = search(model, graph, noisy, evaluations=12)
    assert here == search(model, graph, noisy, evaluations=12, executor="process", processes=1)


def test_a_structure_that_fails_is_passed_over(model, graph):
    def picky(small):
        if small[0].out_channels > 32:
            raise ValueError("too wide")
        return None if small[0].out_channels % 2 else first_width(small)

    said = []
    assert graph.widths(search(model, graph, picky, warm=False, say=said.append))[0] in range(0, 33, 2)
    assert any(" failed: " in line for line in said)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (None, "evaluate returned None"),
        (float("nan"), "evaluate returned nan"),
        (torch.zeros(3), r"evaluate returned a Tensor of shape \(3,\)"),
        ("good", "evaluate returned a str"),
        ({"accuracy": 1.0}, "evaluate returned a dict"),
    ],
)
def test_if_everything_fails_the_first_reason_is_named(model, graph, answer, why):
    with pytest.raises(SearchError, match=f"none of the first .* failed with: {why}"):
        search(model, graph, lambda small: answer)


def test_an_exception_of_the_function_is_named(model, graph, tmp_path):
    with pytest.raises(SearchError, match="ZeroDivisionError: division by zero"):
        search(model, graph, lambda small: 1 / 0, run_dir=tmp_path)
    search(model, graph, lambda small: 1, run_dir=tmp_path)  # tried again, since another attempt may succeed


@pytest.mark.parametrize(
    ("options", "error", "why"),
    [
        ({"method": "l1"}, ConfigError, "no width search 'l1'; there are abc, evolution, random_search"),
        ({"evaluations": 0}, ConfigError, "evaluations is 0"),
        ({"genes": "some"}, ConfigError, "genes is 'some'"),
        ({"inherit": "best"}, ConfigError, "inherit is 'best'"),
        ({"executor": "there"}, ConfigError, "executor is 'there'"),
        ({"processes": 2}, ConfigError, "processes is 2, but structures are measured in this process"),
        ({"bees": 3}, ConfigError, "method abc has no option 'bees'"),
        ({"population": 3}, ConfigError, "method abc has no option 'population'"),
        ({"halving": 2}, ConfigError, "halving has no meaning here"),
        ({"paper": True}, ConfigError, "paper has no meaning here"),
        ({"fitness_epochs": 2}, ConfigError, "fitness_epochs has no meaning here"),
        ({"evaluate": 3}, ConfigError, "evaluate is a int; expected a function"),
        ({"budget": sentei.Budget(macs=0.001)}, BudgetError, "smallest reachable"),
        ({"constraints": Constraints(keep=("*",))}, BudgetError, "What limits it is keep"),
    ],
)
def test_what_cannot_work_is_refused_before_any_work(model, graph, tmp_path, options, error, why):
    with pytest.raises(error, match=why):
        search(model, graph, run_dir=tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_a_graph_of_another_model_is_refused(graph):
    with pytest.raises(PlanError):
        search(nn.Sequential(nn.Conv2d(1, 8, 3), nn.Flatten(), nn.Linear(288, 4)), graph)


@pytest.mark.parametrize("method", ["abc", "evolution", "random_search"])
def test_a_steady_search_replays_its_answers_and_goes_on_with_another_number_out(model, graph, tmp_path, method):
    class Stopped(BaseException):
        pass

    def limited(small):
        count.append(1)
        if len(count) == 9:
            raise Stopped
        return first_width(small)

    given, count = {"method": method, "evaluations": 20, "run_dir": tmp_path / "run"}, []
    with pytest.raises(Stopped):
        search(model, graph, limited, pending=4, **given)
    lines = (tmp_path / "run" / "journal.jsonl").read_text().splitlines()
    assert len(lines) == 8
    with pytest.raises(ConfigError, match="other settings: pending is True there, None now"):
        search(model, graph, limited, **given)
    plan = search(model, graph, limited, pending=6, **given)
    assert len(count) == 9 + 12
    assert (tmp_path / "run" / "journal.jsonl").read_text().splitlines()[:8] == lines
    assert graph.cost(plan).macs <= 0.5 * graph.cost().macs
    assert search(model, graph, limited, pending=6, **given) == plan
    assert len(count) == 9 + 12
