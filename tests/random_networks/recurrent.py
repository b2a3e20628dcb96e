"""Recurrent layers over positions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.random_networks.blocks import Block, Pick, block


@block()
def recurrent(pick: Pick, c: int, n: int) -> nn.Module:
    kind, hidden, layers = pick((nn.LSTM, nn.GRU, nn.RNN)), pick((4, 6)), pick((1, 2))
    both, first = pick((False, True)), pick((True, False))
    options = {"proj_size": 3} if kind is nn.LSTM and pick((False, True)) else {}

    def forward(m: Block, x: Tensor) -> Tensor:
        t = x.flatten(2).transpose(1, 2) if first else x.flatten(2).permute(2, 0, 1)
        y = m.cell(t)[0]
        return (y.transpose(1, 2) if first else y.permute(1, 2, 0)).unflatten(2, x.shape[2:])

    return Block(forward, cell=kind(c, hidden, layers, batch_first=first, bidirectional=both, **options))


@block()
def stepwise(pick: Pick, c: int, n: int) -> nn.Module:
    """A cell that is called at every row, with a state made in the size of what it keeps."""
    kind, hidden = pick((nn.GRUCell, nn.LSTMCell, nn.RNNCell)), pick((4, 6))
    how = pick(("none", "attribute", "weight"))

    def forward(m: Block, x: Tensor) -> Tensor:
        rows = x.mean(3)
        size = m.cell.hidden_size if how == "attribute" else m.cell.weight_hh.shape[1]
        zero = rows.new_zeros(x.shape[0], size)
        state = None if how == "none" else (zero, zero) if kind is nn.LSTMCell else zero
        out = []
        for i in range(n):
            state = m.cell(rows[:, :, i], state)
            out.append(state[0] if kind is nn.LSTMCell else state)
        return torch.stack(out, 2)[..., None].expand(-1, -1, -1, n)

    return Block(forward, cell=kind(c, hidden))
