"""Recurrent layers are one operation each, and input size, hidden size and projections follow cuts."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from sentei import check, cut, trace
from tests.proof import outputs, prove, random_plan, relative_error, zeroed_consumers


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Reader(nn.Module):
    """Convolution, recurrent layer, classifier of every step or of the last states."""

    def __init__(self, layer: nn.RNNBase, states: bool) -> None:
        super().__init__()
        self.conv, self.rnn, self.states = nn.Conv1d(4, 10, 3, padding=1), layer, states
        width = layer.proj_size or layer.hidden_size
        self.head = nn.Linear(width * (1 if states else 1 + layer.bidirectional), 3)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.conv(x))
        out, h = self.rnn(y.transpose(1, 2) if self.rnn.batch_first else y.permute(2, 0, 1))
        if self.states:
            return self.head(h[0] if isinstance(h, tuple) else h).mean(0)
        return self.head(out)


def prove_all(model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Every random plan is exact, also against weights silenced by hand."""
    model = model.double().eval()
    graph = trace(model, inputs)
    for seed in range(2):
        plan = random_plan(graph, seed)
        small, report = prove(model, graph, plan, inputs)
        assert report.max_error < 1e-9
        silenced = zeroed_consumers(model, graph, plan)
        assert relative_error(outputs(small, inputs), outputs(silenced, inputs)) < 1e-9


KINDS = [nn.LSTM, nn.GRU, nn.RNN]


@pytest.mark.parametrize("states", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize(("layers", "both"), [(1, False), (1, True), (3, False), (2, True)])
@pytest.mark.parametrize("kind", KINDS)
def test_layers_and_directions(kind: Any, layers: int, both: bool, batch_first: bool, states: bool) -> None:
    layer = kind(10, 8, layers, bias=not states, batch_first=batch_first, bidirectional=both)
    model = Reader(layer, states).double().eval()
    x = numbers(2, 4, 7)
    graph = trace(model, x)
    assert not graph.group("conv").frozen
    assert not graph.group("rnn").frozen
    assert graph.group("rnn").width == 8
    prove_all(model, (x,))


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("layers", [1, 2])
def test_projections(layers: int, both: bool) -> None:
    layer = nn.LSTM(10, 12, layers, bidirectional=both, proj_size=5)
    model, x = Reader(layer, False).double().eval(), numbers(2, 4, 7)
    graph = trace(model, x)
    widths = {(g.width, g.frozen) for g in graph.groups if g.name.startswith("rnn")}
    assert widths == {(5, False), (6, False), (6, True)}  # hidden_size stays above proj_size
    assert "hidden_size > proj_size" in str(next(g.why for g in graph.groups if g.name.startswith("rnn") and g.frozen))
    prove_all(model, (x,))


def test_relu_and_dropout() -> None:
    prove_all(Reader(nn.RNN(10, 8, 2, nonlinearity="relu", dropout=0.5), False), (numbers(2, 4, 7),))


class Steps(nn.Module):
    """A cell in a loop; its first state is made by the cell or by hand."""

    def __init__(self, cell: nn.RNNCellBase, zeros: bool) -> None:
        super().__init__()
        self.conv, self.cell, self.head, self.zeros = nn.Conv1d(4, 10, 3, padding=1), cell, nn.Linear(8, 3), zeros

    def forward(self, x: Tensor) -> Tensor:
        state: Any = None
        if self.zeros:
            state = x.new_zeros(len(x), self.cell.hidden_size)
            if isinstance(self.cell, nn.LSTMCell):
                state = (state, state.clone())
        for step in F.relu(self.conv(x)).unbind(2):
            state = self.cell(step, state)
        return self.head(state[0] if isinstance(state, tuple) else state)


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_cells(kind: Any, zeros: bool) -> None:
    model = Steps(kind(10, 8), zeros)
    assert not any(g.frozen for g in trace(model, torch.zeros(2, 4, 5)).groups[:-1])
    prove_all(model, (numbers(2, 4, 5),))


class Translator(nn.Module):
    """The states of one layer start another."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(20, 12)
        self.encoder, self.decoder = nn.LSTM(12, 9, 2, batch_first=True), nn.LSTM(12, 9, 2, batch_first=True)
        self.head = nn.Linear(9, 5)

    def forward(self, words: Tensor) -> Tensor:
        _, state = self.encoder(self.words(words))
        return self.head(self.decoder(self.words(words.flip(1)), state)[0])


def test_states_passed_on() -> None:
    words = torch.arange(14).reshape(2, 7)
    graph = trace(Translator(), words)
    assert {m.param.split(".")[0] for m in graph.group("encoder").members} == {"encoder", "decoder", "head"}
    prove_all(Translator(), (words,))


class Started(nn.Module):
    """First states that are learned, or computed from the input."""

    def __init__(self, learned: bool) -> None:
        super().__init__()
        self.first, self.rnn, self.head = nn.Linear(6, 12), nn.GRU(12, 9, 2), nn.Linear(9, 5)
        self.start = nn.Parameter(torch.randn(2, 1, 9)) if learned else None
        self.init = None if learned else nn.Linear(6, 9)

    def forward(self, x: Tensor) -> Tensor:
        if self.init is None:
            start = self.start.expand(-1, x.shape[1], -1).contiguous()
        else:
            start = torch.tanh(self.init(x[0]))[None].repeat(2, 1, 1)
        return self.head(self.rnn(F.relu(self.first(x)), start)[0])


@pytest.mark.parametrize("learned", [True, False])
def test_first_states_follow(learned: bool) -> None:
    graph = trace(Started(learned), torch.zeros(7, 3, 6))
    place = "start" if learned else "init.weight"
    assert any(m.param == place for g in graph.groups if not g.frozen for m in g.members)
    prove_all(Started(learned), (numbers(7, 3, 6),))


class Packed(nn.Module):
    def __init__(self, own: bool, batch_first: bool) -> None:
        super().__init__()
        self.first, self.head, self.own = nn.Linear(6, 12), nn.Linear(18, 5), own
        self.rnn = nn.LSTM(12, 9, 2, bidirectional=True, batch_first=batch_first)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        lengths, first = torch.tensor([7, 5, 2]) if self.own else lengths, self.rnn.batch_first
        packed, _ = self.rnn(pack_padded_sequence(F.relu(self.first(x)), lengths, batch_first=first))
        return self.head(pad_packed_sequence(packed, batch_first=first)[0])


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
def test_packed_sequences(own: bool, batch_first: bool) -> None:
    x = numbers(3, 7, 6) if batch_first else numbers(7, 3, 6)
    inputs = (x,) if own else (x, torch.tensor([7, 5, 2]))
    model = Packed(own, batch_first).double().eval()
    graph = trace(model, inputs)
    assert [g.name for g in graph.groups if g.frozen] == ["head"]
    plan = random_plan(graph, 0)
    small = cut(model, graph, plan)
    assert check(model, small, graph, plan, inputs).max_error < 1e-9
    silenced = zeroed_consumers(model, graph, plan)
    assert relative_error(outputs(small, inputs), outputs(silenced, inputs)) < 1e-9


def test_a_cut_layer_is_a_layer_like_any_other() -> None:
    model, x = Reader(nn.LSTM(10, 8, 2, bidirectional=True), False).eval(), numbers(2, 4, 7).float()
    graph = trace(model, x)
    small = cut(model, graph, random_plan(graph, 0, 0.5))
    rnn = small.rnn
    assert rnn.weight_ih_l0.shape == (4 * rnn.hidden_size, rnn.input_size)
    assert rnn.input_size == small.conv.out_channels < 10
    assert rnn.hidden_size < 8
    assert all(a is b for a, b in zip(rnn._flat_weights, rnn.parameters(), strict=True))
    expected = outputs(small, (x,))
    for other in (copy.deepcopy(small), copy.deepcopy(small).double().float()):
        assert torch.equal(outputs(other, (x,))[0], expected[0])
    fresh = copy.deepcopy(small)
    fresh.rnn.reset_parameters()
    fresh.load_state_dict(small.state_dict())
    assert torch.equal(outputs(fresh, (x,))[0], expected[0])
    small.train()(x).sum().backward()
    assert all(p.grad is not None for p in small.parameters())
    assert all(a is b for a, b in zip(model.rnn._flat_weights, model.rnn.parameters(), strict=True))


def test_removed_hidden_units_are_reported() -> None:
    """The other units of the layer no longer see them: more changes than what reads the layer's output."""
    model, x = Reader(nn.GRU(10, 8), False).eval(), numbers(2, 4, 7).float()
    graph = trace(model, x)
    for name, approximate in (("conv", ()), ("rnn", ("rnn",))):
        plan = random_plan(graph, 0, 0.5)
        plan = type(plan)({name: plan.keep[name]}, graph.structure)
        assert check(model, cut(model, graph, plan), graph, plan, x).approximate == approximate


def test_one_operation_for_a_long_sequence() -> None:
    """A thousand steps are traced as fast as ten, and cost what they cost."""
    model = Reader(nn.LSTM(10, 8), False).eval()
    short, long = trace(model, torch.zeros(1, 4, 10)), trace(model, torch.zeros(1, 4, 1000))
    assert len(long.trace_record.contractions) == len(short.trace_record.contractions)
    assert long.cost().macs == 100 * short.cost().macs
    assert short.cost().macs == 10 * (4 * 10 * 3 + 4 * 8 * (10 + 8) + 8 * 3)
