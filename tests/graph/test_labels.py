"""Label layers: stride-0 dimensions, reshapes and how they split a channel dimension."""

import pytest
import torch

from sentei.graph import labels as lab


def channels(n: int, shape: tuple[int, ...], dim: int = 1) -> torch.Tensor:
    return lab.place(torch.arange(n), dim, shape)


def test_place_costs_one_integer_a_channel() -> None:
    layer = channels(6, (2, 6, 5, 5))
    assert layer.shape == (2, 6, 5, 5)
    assert lab.varying(layer) == (1,)
    assert layer.untyped_storage().nbytes() == 6 * 8


def test_tidy_finds_what_is_equal() -> None:
    dense = torch.arange(6).reshape(1, 6, 1).expand(4, 6, 3).contiguous()
    assert lab.varying(dense) == (0, 1, 2)
    tidied = lab.tidy(dense)
    assert lab.varying(tidied) == (1,)
    assert torch.equal(tidied, dense)


def test_tidy_keeps_what_differs() -> None:
    layer = torch.tensor([[0, 1], [0, 2]])
    assert lab.varying(lab.tidy(layer)) == (0, 1)


def test_narrow_keeps_the_named_dimensions() -> None:
    assert lab.narrow(channels(6, (2, 6, 5)), [1]).shape == (1, 6, 1)


@pytest.mark.parametrize(
    ("old", "new", "runs"),
    [
        ((2, 6, 5), (2, 2, 3, 5), [([0], [0]), ([1], [1, 2]), ([2], [3])]),
        ((2, 6, 4), (2, 24), [([0], [0]), ([1, 2], [1])]),
        ((4, 6), (6, 4), [([0, 1], [0, 1])]),
        ((8,), (2, 4), [([0], [0, 1])]),
    ],
)
def test_blocks_are_the_smallest_runs(old, new, runs) -> None:
    assert lab.blocks(old, new) == runs


SIX = [(1, 6), (6, 1), (3, 1, 2), (6,), (1, 2, 3), (2, 1, 3, 1)]
ONE = [(1,), (), (1, 1)]


@pytest.mark.parametrize(("old", "new"), [(a, b) for kind in (SIX, ONE) for a in kind for b in kind])
def test_blocks_cover_every_dimension_once(old, new) -> None:
    runs = lab.blocks(old, new)
    assert [d for a, _ in runs for d in a] == list(range(len(old)))
    assert [d for _, b in runs for d in b] == list(range(len(new)))
    for a, b in runs:
        assert torch.Size([old[d] for d in a]).numel() == torch.Size([new[d] for d in b]).numel()


def test_reshape_reports_a_split_of_channels() -> None:
    moved, splits = lab.reshape(channels(6, (2, 6, 5)), (2, 2, 3, 5))
    assert splits == [[1, 2]]
    assert torch.equal(moved[0, :, :, 0], torch.arange(6).reshape(2, 3))
    assert lab.varying(moved) == (1, 2)


def test_reshape_of_space_is_no_split() -> None:
    moved, splits = lab.reshape(channels(6, (2, 6, 4, 4)), (2, 6, 2, 2, 4))
    assert splits == []
    assert lab.varying(moved) == (1,)


def test_flatten_repeats_each_channel_over_space() -> None:
    moved, splits = lab.reshape(channels(3, (2, 3, 2, 2)), (2, 12))
    assert splits == []
    assert moved[0].tolist() == [0] * 4 + [1] * 4 + [2] * 4
    back, splits = lab.reshape(moved, (2, 3, 4))
    assert lab.varying(back) == (1,)
    assert splits == []


@pytest.mark.parametrize("shape", [(2, 3, 2, 2), (2, 12), (2, 3, 4), (6, 4), (2, 2, 6)])
def test_reshape_moves_labels_like_values(shape) -> None:
    layer = channels(3, (2, 3, 2, 2))
    assert torch.equal(lab.reshape(layer, shape)[0], layer.reshape(shape))


def test_overlapping_dimension_sets_fall_together() -> None:
    assert sorted(map(sorted, lab.overlap_clusters([(1,), (2,), (1, 3), (3,), (4,)]))) == [[0, 2, 3], [1], [4]]
