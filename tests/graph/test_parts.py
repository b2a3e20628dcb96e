"""Parts of models: everything that runs the model for a graph runs the part, and a cut is one of the whole model."""

import copy
import functools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import sentei
from sentei.errors import CheckpointError, PlanError, SurgeryError, TraceError
from sentei.graph.outputs import output_tensors
from sentei.supernet.stages import find_stages
from sentei.surgery import fold
from sentei.surgery.scales import rescale, unsilenced
from tests.amount import examples
from tests.proof import alike, outputs, random_plan, relative_error, same_bits, state
from tests.random_networks import Drawn, conv, networks, randomise

SEEDS = st.integers(0, 2**16)
FEW = settings(max_examples=examples(8))
X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Finder(nn.Module):
    """Scores places, sorts those above the mean, and makes something of them with weights of its own."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(3, width), nn.BatchNorm2d(width), nn.ReLU(), conv(width, 6), nn.ReLU())
        self.down = nn.Sequential(nn.MaxPool2d(2), conv(6, 12), nn.BatchNorm2d(12), nn.ReLU())
        self.scores, self.boxes = nn.Conv2d(12, 2, 1), nn.Conv2d(12, 4, 1)
        self.words = nn.Linear(4, 7)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        scores, boxes = output_tensors(part(self, x))
        found = []
        for s, b in zip(scores.flatten(2)[:, 0], boxes.flatten(2), strict=True):
            places = (s > s.mean().item()).nonzero()[:, 0]
            found.append(self.words(b[:, places[s[places].argsort(descending=True)]].T))
        return found


def part(model: nn.Module, x: torch.Tensor) -> dict[str, object]:
    y = model.down(model.body(x))
    return {"scores": model.scores(y), "rest": [(model.boxes(y),)]}


def keywords(model: nn.Module, *, image: torch.Tensor, twice: bool) -> tuple[torch.Tensor, ...]:
    return tuple(output_tensors([part(model, image)] + [part(model, image + 1)] * twice))


def finder() -> Finder:
    return randomise(Finder()).double().eval()


def cut_finder(seed: int = 0, ratio: float | None = 0.5):
    model = finder()
    graph = sentei.trace(model, X, forward=part)
    plan = random_plan(graph, seed, ratio)
    return model, graph, plan, sentei.cut(model, graph, plan)


def silenced(model: nn.Module, graph: sentei.ChannelGraph, plan: sentei.Plan) -> nn.Module:
    """By hand: convolutions do not read what the plan removes."""
    new = copy.deepcopy(model)
    with torch.no_grad():
        for name, kept in plan.keep.items():
            group = graph.group(name)
            gone = np.setdiff1d(np.arange(group.width), kept)
            for m in group.members:
                if m.dim == 1:
                    new.get_parameter(m.param)[:, torch.from_numpy(m.indices[gone].ravel())] = 0
    return new


# -- the graph


@settings(max_examples=examples(2))
@given(networks(), SEEDS)
def test_a_part_that_is_the_whole_changes_nothing(network: Drawn, seed: int):
    model, inputs = network.model, network.inputs
    plain = sentei.trace(model, inputs)
    for forward in (type(model).forward, lambda model, *x: [model(*x)]):
        graph = sentei.trace(model, inputs, forward=forward)
        assert replace(graph.structure, forward=None) == plain.structure
        assert [(g.name, g.why) for g in graph.groups] == [(g.name, g.why) for g in plain.groups]
        plan = random_plan(graph, seed)
        small = sentei.cut(model, graph, plan)
        errors = [sentei.check(model, small, g, plan, inputs).max_error for g in (plain, graph)]
        assert errors[0] == errors[1]


def test_the_part_is_traced_and_the_rest_stays_whole():
    model = finder()
    before = state(model)
    with pytest.raises(TraceError, match="depends on values"):
        sentei.trace(model, X)
    graph = sentei.trace(model, X, forward=part)
    assert graph.forward is part
    assert sentei.trace(nn.Sequential(conv(3, 4)), torch.zeros(1, 3, 4, 4)).forward is None
    frozen = {g.name: g.why for g in graph.groups if g.frozen}
    assert frozen == dict.fromkeys(("scores", "boxes"), "reaches the network output")
    assert not any(m.param.startswith("words") for g in graph.groups for m in g.members)
    assert graph.unread == ()
    assert graph.cost().params == sum(p.numel() for p in model.parameters())
    alone = sentei.trace(nn.Sequential(model.body, model.down, conv(12, 6, 1).double()), X)
    assert graph.cost().macs == alone.cost().macs
    assert alike(state(model), before)


@FEW
@given(SEEDS)
def test_any_plan_is_an_exact_cut_of_the_whole_model(seed: int):
    model, graph, plan, small = cut_finder(seed, None)
    assert type(small) is Finder
    assert sentei.check(model, small, graph, plan, X).max_error < 1e-9
    sentei.retrace(small, graph, plan)
    expected = outputs(small, (X,))
    assert relative_error(expected, outputs(silenced(model, graph, plan), (X,))) < 1e-9
    with sentei.slim(model, graph, plan) as subnet:
        assert same_bits(outputs(subnet, (X,)), expected)
    assert small.words.weight.equal(model.words.weight)


@FEW
@given(SEEDS)
def test_permuting_units_leaves_the_whole_model(seed: int):
    model, graph, _, _ = cut_finder()
    rng = np.random.default_rng(seed)
    order = {g.name: rng.permutation(g.width) for g in graph.groups if not g.frozen}
    shuffled = sentei.permute(model, graph, order)
    assert relative_error(outputs(shuffled, (X,)), outputs(model, (X,))) < 1e-9


def test_inputs_by_keyword_and_functions_of_any_kind():
    model = finder()
    bound = functools.partial(keywords, twice=True)
    graph = sentei.trace(model, {"image": X}, forward=bound)
    plan = random_plan(graph, 0)
    sentei.check(model, sentei.cut(model, graph, plan), graph, plan, {"image": X})
    assert graph.cost().macs == 2 * sentei.trace(model, X, forward=part).cost().macs
    assert graph.structure.forward == "keywords"


def test_a_wrong_cut_of_the_part_is_found():
    model, graph, plan, small = cut_finder()
    other = sentei.cut(model, graph, random_plan(graph, 1, 0.5))
    with pytest.raises(SurgeryError):
        sentei.check(model, other, graph, plan, X)
    small.scores.weight.data[:, 0] += 1
    with pytest.raises(SurgeryError, match="differs from the reference"):
        sentei.check(model, small, graph, plan, X)


def test_what_only_training_reads_is_seen_in_training():
    def forward(model, x):
        y = model[0](x)
        return [model[1](y), model[2](y)] if model.training else model[1](y)

    model = nn.Sequential(conv(3, 8), conv(8, 2), conv(8, 2))
    graph = sentei.trace(model, torch.zeros(1, 3, 4, 4), forward=forward)
    assert {"1.weight", "2.weight"} <= {m.param for m in graph.group("0").members}


# -- folding, scales, stages


def test_constant_channels_are_folded_in_a_part():
    model, graph, _, _ = cut_finder()
    with torch.no_grad():
        model.body[1].weight[:3] = 0
        model.body[1].bias[:3] = torch.tensor([-1.0, 0.5, 1.0])
    found = fold(model, graph, X)
    assert found.report.zero == 1
    assert len(found.plan.keep["body.0"]) in (5, 6)  # one may stay as the carrier of the other
    small = sentei.cut(found.model, graph, found.plan)
    assert relative_error(outputs(small, (X,)), outputs(model, (X,))) < 1e-9


def test_scales_of_a_part():
    model, graph, _, _ = cut_finder()
    assert unsilenced(model, graph, ["body.0", "down.1"], X) == {}
    done = rescale(model, graph, ["body.0", "down.1"], 0.1, X)
    assert done.refused == {}
    scaled = copy.deepcopy(model)
    done.apply(scaled)
    assert relative_error(outputs(scaled, (X,)), outputs(model, (X,))) < 1e-9


def test_stages_of_a_part():
    model, graph, _, _ = cut_finder()
    stages = find_stages(model, graph)
    assert stages.names == ("body", "output")
    for cost in ("macs", "params"):
        assert stages.costs(graph, cost, graph.widths()).sum() == getattr(graph.cost(), cost)


# -- files


def test_a_part_comes_back_from_its_files(tmp_path):
    _, graph, plan, small = cut_finder()
    sentei.save(small, plan, tmp_path, forward=part)
    assert json.loads((tmp_path / "plan.json").read_text())["plan"]["structure"]["forward"] == "part"
    back = sentei.load(Finder(), tmp_path, forward=part)
    assert same_bits(outputs(back.eval(), (X,)), outputs(small, (X,)))
    assert sentei.Plan.from_json(plan.to_json()).structure == graph.structure


def test_loading_a_part_needs_its_forward(tmp_path):
    _, _, plan, small = cut_finder()
    sentei.save(small, plan, tmp_path, forward=part)
    with pytest.raises(CheckpointError, match=r"traced through a forward of its own, 'part'; pass load\(\.\.\., forw"):
        sentei.load(Finder(), tmp_path)
    with pytest.raises(CheckpointError, match="'part'; this one is 'less'"):
        sentei.load(Finder(), tmp_path, forward=less)


def less(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return model.scores(model.down(model.body(x)))


def test_another_activation_after_the_wiring_is_told_by_the_answers_of_the_part(tmp_path):
    _, _, plan, small = cut_finder()
    sentei.save(small, plan, tmp_path, forward=part)
    other = Finder()
    other.body[2] = nn.GELU()
    with pytest.raises(CheckpointError, match="computes something else"):
        sentei.load(other, tmp_path, forward=part)


def test_nothing_is_saved_with_another_forward_than_was_traced(tmp_path):
    _, _, plan, small = cut_finder()
    with pytest.raises(PlanError, match=r"pass save\(\.\.\., forward=\.\.\.\)"):
        sentei.save(small, plan, tmp_path / "a")
    model = nn.Sequential(conv(3, 8), conv(8, 2))
    graph = sentei.trace(model, torch.zeros(1, 3, 4, 4))
    plan = random_plan(graph, 0, 0.5)
    with pytest.raises(PlanError, match="was traced by its own forward"):
        sentei.save(sentei.cut(model, graph, plan), plan, tmp_path / "b", forward=part)
    assert list(tmp_path.iterdir()) == []


def test_files_of_whole_models_are_as_they_were_and_load_through_a_forward_that_fits(tmp_path):
    model = nn.Sequential(conv(3, 8), conv(8, 2)).eval()
    x = torch.randn(1, 3, 4, 4)
    graph = sentei.trace(model, x)
    plan = random_plan(graph, 0, 0.5)
    small = sentei.cut(model, graph, plan)
    sentei.save(small, plan, tmp_path)
    assert "forward" not in json.loads((tmp_path / "plan.json").read_text())["plan"]["structure"]
    fresh = nn.Sequential(conv(3, 8), conv(8, 2))
    back = sentei.load(fresh, tmp_path, forward=lambda m, x: m(x))
    assert same_bits(outputs(back.eval(), (x,)), outputs(small, (x,)))
    with pytest.raises(CheckpointError, match="traced by its own forward: leave forward=first out"):
        sentei.load(fresh, tmp_path, forward=first)


def first(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return model[0](x)


# -- what is refused


def nothing(model, x):
    part(model, x)


def broken(model, x):
    raise ValueError("no such thing")


def decides(model, x):
    scores = less(model, x)
    return scores if scores.max() > 0 else -scores


OTHER = conv(3, 4).double()
REFUSED = [
    ("part", r"forward is 'part'; expected a function .* forward\(model, \*inputs\)"),
    (finder(), r"forward is a module \(Finder\); expected a function"),
    (finder().forward, r"the method 'forward' of one network.*give the function of the class, Finder\.forward"),
    (nothing, "the output of the given forward 'nothing' holds no tensor"),
    (broken, "the given forward 'broken' failed on the example inputs .*ValueError: no such thing"),
    (decides, "the part of the model that 'decides' runs cannot be traced.*depends on values"),
    (lambda model, x: OTHER(x), "nothing to prune: the given forward '<lambda>' reads no channels of the model"),
    (lambda model, x: x + 1, "nothing to prune: the given forward '<lambda>' runs no convolution"),
]


def test_a_forward_that_runs_the_model_from_outside_is_told():
    model = finder()
    for forward, what in (
        (lambda _, x: model.scores(model.down(model.body(x))), "module 'body' of the model"),
        (lambda m, x: model.scores(m.down(m.body(x))), "module 'scores' of the model"),
        (lambda m, x: type(m).forward(model, x)[0], "module 'body' of the model"),
    ):
        with pytest.raises(TraceError, match=f"runs {what} that was given to trace: it has to use its first argument"):
            sentei.trace(model, X, forward=forward)


@pytest.mark.parametrize(("forward", "why"), REFUSED)
def test_a_forward_that_cannot_be_traced_is_named(forward, why):
    with pytest.raises(TraceError, match=f"(?s){why}"):
        sentei.trace(finder(), X, forward=forward)


def test_a_forward_that_is_none_is_refused_where_files_are_made_and_read(tmp_path):
    _, _, plan, small = cut_finder()
    for call in (
        lambda: sentei.save(small, plan, tmp_path, forward=3),
        lambda: sentei.load(small, tmp_path, forward=3),
    ):
        with pytest.raises(TraceError, match="forward is 3; expected a function"):
            call()


def test_a_check_on_inputs_that_the_part_does_not_take_is_refused():
    model, graph, plan, small = cut_finder()
    with pytest.raises(SurgeryError, match="not wired like the original"):
        sentei.check(model, small, graph, plan, torch.zeros(1, 5, 8, 8, dtype=torch.float64))
