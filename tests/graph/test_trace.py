"""What trace accepts, what it refuses, and that it leaves the model alone."""

import copy
from collections import OrderedDict

import pytest
import torch
from torch import nn

from sentei import cut, retrace, trace
from sentei.errors import PlanError, SenteiError, SurgeryError, TraceError
from sentei.graph import ChannelGraph
from tests.proof import outputs, prove, random_plan
from tests.random_networks import Answer, Block, conv, randomise


def small_net() -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            stem=conv(3, 8),
            norm=nn.BatchNorm2d(8),
            act=nn.ReLU(inplace=True),
            body=conv(8, 6),
            drop=nn.Dropout(),
            pool=nn.AdaptiveAvgPool2d(1),
            flat=nn.Flatten(),
            head=nn.Linear(6, 4),
        )
    )


IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


# -- the model is left as it was


@pytest.mark.parametrize("training", [True, False])
def test_model_is_untouched(training: bool) -> None:
    model = small_net().train(training)
    model.drop.train(not training)
    calls = []
    model.body.register_forward_hook(lambda *_: calls.append("hook"))
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    before = {n: (id(t), t.detach().clone(), t._version, t.requires_grad) for n, t in tensors.items()}
    flags = {n: m.training for n, m in model.named_modules()}
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    random_state = torch.get_rng_state()

    graph = trace(model, IMAGE)
    retrace(cut(model, graph, random_plan(graph, 0)), graph, random_plan(graph, 0))

    after = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    assert {n: (id(t), t._version, t.requires_grad) for n, t in after.items()} == {
        n: (i, v, r) for n, (i, _, v, r) in before.items()
    }
    assert all(torch.equal(after[n], before[n][1]) for n in before)
    assert int(model.norm.num_batches_tracked) == 0
    assert {n: m.training for n, m in model.named_modules()} == flags
    assert [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()] == hooks
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(p.grad is None for p in model.parameters())
    assert nn.modules.module._global_forward_hooks == {}


def test_model_is_untouched_after_an_error() -> None:
    model = small_net().train()
    with pytest.raises(TraceError):
        trace(model, torch.zeros(1, 5, 8, 8))
    assert all(m.training for m in model.modules())
    assert not any(p.is_meta for p in model.parameters())
    assert nn.modules.module._global_forward_hooks == nn.modules.module._global_forward_pre_hooks == {}


def test_trace_is_repeatable() -> None:
    a, b = trace(small_net(), IMAGE), trace(small_net(), IMAGE)
    assert a.structure == b.structure
    assert a.structure.difference(b.structure) is None
    assert repr(a) == repr(b)


def test_trace_does_not_need_memory_or_compute() -> None:
    """Meta inputs: a batch that no machine could hold."""
    graph = trace(small_net(), torch.empty(2**20, 3, 512, 512, device="meta"))
    assert graph.cost().macs > 10**14


def test_frozen_parameters_and_no_grad_are_kept() -> None:
    model = small_net()
    model.stem.weight.requires_grad_(False)
    graph = trace(model, IMAGE)
    with torch.inference_mode():
        small = cut(model, graph, random_plan(graph, 0))
    assert not small.stem.weight.requires_grad
    assert small.body.weight.requires_grad


# -- example inputs


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 6), conv(1, 6), conv(6, 2)

    def forward(self, image: torch.Tensor, mask: torch.Tensor | None = None, scale: float = 1.0) -> torch.Tensor:
        x = self.a(image)
        return self.head(x if mask is None else x + scale * self.b(mask))


MASK = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "inputs",
    [(IMAGE, MASK), [IMAGE, MASK], (IMAGE, MASK, 2.0), {"image": IMAGE, "mask": MASK}, {"mask": MASK, "image": IMAGE}],
)
def test_kinds_of_example_inputs(inputs) -> None:
    graph = trace(TwoInputs(), inputs)
    group = graph.group("a")
    assert not group.frozen
    assert {"a.weight", "b.weight"} <= {m.param for m in group.members}


def test_one_tensor_and_one_tuple_are_the_same() -> None:
    assert trace(small_net(), IMAGE).structure == trace(small_net(), (IMAGE,)).structure


def test_unused_parameters_are_no_trouble() -> None:
    graph = trace(TwoInputs(), IMAGE)
    assert not graph.group("a").frozen
    assert "b.weight" in graph.params
    model = randomise(TwoInputs().double())
    graph = trace(model, IMAGE.double())
    small = cut(model, graph, random_plan(graph, 0, 0.5))
    assert small.a.out_channels == 3
    assert outputs(small, (IMAGE.double(),))[0].shape == (2, 2, 8, 8)


@pytest.mark.parametrize("inputs", ["image", 3, None])
def test_inputs_of_a_wrong_kind(inputs) -> None:
    with pytest.raises(TraceError, match="example_inputs is a .*give a tensor"):
        trace(small_net(), inputs)


def test_inputs_of_a_wrong_shape_show_the_models_own_error() -> None:
    with pytest.raises(TraceError, match=r"(?s)forward failed.*2x5x8x8.*to have 3 channels, but got 5") as error:
        trace(small_net(), torch.zeros(2, 5, 8, 8))
    assert isinstance(error.value.__cause__, RuntimeError)


def test_missing_argument_shows_pythons_own_error() -> None:
    with pytest.raises(TraceError, match=r"missing 1 required positional argument: 'image'"):
        trace(TwoInputs(), {"mask": MASK})


def test_error_in_the_models_forward_is_shown() -> None:
    def forward(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        raise KeyError("no such stage: 'stage7'")

    model = nn.Sequential(OrderedDict(stem=conv(3, 4), neck=Block(forward)))
    with pytest.raises(TraceError, match=r"forward failed.*KeyError.*no such stage: 'stage7'") as error:
        trace(model, IMAGE)
    assert isinstance(error.value.__cause__, KeyError)


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: x if x.sum() > 0 else -x,
        lambda x: x * float(x.mean()),
        lambda x: x[x > 0].mean() * x,
        lambda x: x.repeat(int(x.abs().max()), 1, 1, 1),
    ],
)
def test_control_flow_on_values_is_a_trace_error(fn) -> None:
    model = nn.Sequential(conv(3, 6), Block(lambda m, x: fn(x)), conv(6, 2))
    with pytest.raises(TraceError, match="values of the input"):
        trace(model, IMAGE)


def test_control_flow_on_shapes_is_followed() -> None:
    def forward(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        y = m.a(x)
        for _ in range(x.shape[0]):
            y = m.b(y) if y.shape[-1] > 2 else y
        return m.out(y)

    graph = trace(Block(forward, a=conv(3, 6), b=conv(6, 6, stride=2), out=conv(6, 2)), IMAGE)
    assert {("b.weight", 0), ("b.weight", 1)} < {(m.param, m.dim) for m in graph.group("a").members}


# -- outputs


@pytest.mark.parametrize(
    "wrap",
    [
        lambda a, b: (a, b),
        lambda a, b: {"x": a, "y": [b]},
        lambda a, b: Answer(a, b),
        lambda a, b: [a, {"more": (b, None, 3, "text")}],
    ],
)
def test_every_output_is_kept_whole(wrap) -> None:
    model = Block(
        lambda m, x: wrap(m.head(y := m.stem(x)), m.aux(m.mid(y))),
        stem=conv(3, 8),
        head=conv(8, 2),
        mid=conv(8, 6),
        aux=conv(6, 3),
    )
    randomise(model.double())
    graph = trace(model, IMAGE.double())
    assert {g.name: g.frozen for g in graph.groups} == {"stem": False, "head": True, "mid": False, "aux": True}
    prove(model, graph, random_plan(graph, 0, 0.5), (IMAGE.double(),))


def test_a_feature_map_among_the_outputs_is_frozen() -> None:
    graph = trace(Block(lambda m, x: (m.head(y := m.stem(x)), y), stem=conv(3, 8), head=conv(8, 2)), IMAGE)
    assert all(g.frozen and "output" in g.why for g in graph.groups)


class Auxiliary(nn.Module):
    """A second head that runs only in training, as in GoogLeNet."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.body, self.head = conv(3, 8), nn.BatchNorm2d(8), conv(8, 6), nn.Linear(6, 4)
        self.aux_conv, self.aux_head = conv(8, 5), nn.Linear(5, 4)

    def forward(self, x: torch.Tensor):
        x = self.norm(self.stem(x)).relu()
        y = self.head(self.body(x).mean((2, 3)))
        return (y, self.aux_head(self.aux_conv(x).mean((2, 3)))) if self.training else y


def test_auxiliary_head_is_cut_too() -> None:
    model = randomise(Auxiliary().double())
    graph = trace(model, IMAGE.double())
    assert {"aux_conv.weight", "body.weight"} < {m.param for m in graph.group("stem").members}
    assert not graph.group("aux_conv").frozen
    assert graph.group("aux_head").frozen
    small, _ = prove(model.eval(), graph, random_plan(graph, 0, 0.5), (IMAGE.double(),))
    main, aux = small.train()(IMAGE.double())
    assert main.shape == aux.shape == (2, 4)
    assert small.aux_conv.in_channels == 4


# -- again and again


def test_a_cut_model_can_be_cut_again() -> None:
    model = randomise(small_net().double().eval())
    twice = model
    for seed in range(3):
        graph = trace(twice, IMAGE.double())
        twice, _ = prove(twice, graph, random_plan(graph, seed, 0.7), (IMAGE.double(),))
    assert twice.stem.out_channels == 3
    direct = trace(model, IMAGE.double()).group("stem")
    assert trace(twice, IMAGE.double()).group("stem").members[0].param == direct.members[0].param


def test_batch_size_changes_only_macs() -> None:
    one, four = (trace(small_net(), torch.zeros(n, 3, 8, 8)) for n in (1, 4))
    assert four.cost().macs == 4 * one.cost().macs
    assert four.cost().params == one.cost().params


def test_half_precision_inputs() -> None:
    model = small_net().bfloat16()
    graph = trace(model, IMAGE.bfloat16())
    small = cut(model, graph, random_plan(graph, 0, 0.5))
    assert small.stem.weight.dtype == torch.bfloat16
    assert graph.cost().activation_bytes * 2 == trace(small_net(), IMAGE).cost().activation_bytes


# -- plans that do not fit


@pytest.fixture
def graph() -> ChannelGraph:
    return trace(small_net(), IMAGE)


class Keep:
    def __init__(self, **keep) -> None:
        self.keep = keep


@pytest.mark.parametrize("use", [lambda g, p: g.cost(p), lambda g, p: cut(small_net(), g, p)])
def test_unknown_group_suggests_the_nearest(graph: ChannelGraph, use) -> None:
    with pytest.raises(PlanError, match="no group named 'stam'.*did you mean .*stem"):
        use(graph, Keep(stam=[0]))


@pytest.mark.parametrize(
    ("keep", "text"),
    [
        ({"head": [0, 1]}, "head cannot be cut: .*output"),
        ({"stem": []}, "stem: no unit is kept"),
        ({"stem": [0, 8]}, r"units 0\.\.7"),
        ({"stem": [-1, 2]}, r"units 0\.\.7"),
        ({"stem": [1, 1]}, "twice"),
    ],
)
def test_plan_that_cannot_be_cut(graph: ChannelGraph, keep, text) -> None:
    with pytest.raises(PlanError, match=text):
        cut(small_net(), graph, Keep(**keep))


def test_graph_of_another_model(graph: ChannelGraph) -> None:
    other = small_net()
    other.body = conv(8, 7)
    with pytest.raises(PlanError, match=r"another model: parameter body.weight is \(6, 8, 3, 3\).*\(7, 8, 3, 3\)"):
        cut(other, graph, Keep(stem=[0]))
    with pytest.raises(PlanError, match="parameter stem.weight .*absent"):
        cut(nn.Sequential(conv(3, 8)), graph, Keep(stem=[0]))


def test_plan_of_another_model(graph: ChannelGraph) -> None:
    other = small_net()
    other.body, other.head = conv(8, 7), nn.Linear(7, 4)
    with pytest.raises(PlanError, match=r"(?s)another model.*body.weight"):
        random_plan(trace(other, IMAGE), 0).check_fits(graph)


def test_model_that_cannot_be_copied() -> None:
    model = small_net()
    graph = trace(model, IMAGE)
    model.lock = (x for x in ())
    with pytest.raises(SurgeryError, match="deep-copied.*generator"):
        cut(model, graph, random_plan(graph, 0))
    with pytest.raises(TraceError, match="deep-copied.*generator"):
        trace(model, IMAGE)


def test_every_error_is_of_the_family() -> None:
    assert issubclass(TraceError, SenteiError)
    assert issubclass(PlanError, SenteiError)
    assert copy.copy(PlanError("text")).args == ("text",)


class Spare(nn.Module):
    """One layer is never used, another only in training."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.aux, self.spare = conv(3, 8), conv(8, 4), conv(8, 2), nn.Linear(8, 8)
        self.scale, self.table = nn.Parameter(torch.ones(())), nn.Parameter(torch.arange(3), requires_grad=False)

    def forward(self, x: torch.Tensor) -> object:
        y = self.a(x) * self.scale
        return (self.b(y), self.aux(y)) if self.training else self.b(y)


def test_unread_parameters_are_listed() -> None:
    assert trace(Spare(), IMAGE).unread == ("spare.weight", "spare.bias")
    assert trace(small_net(), IMAGE).unread == ()
