"""Batches of a user's own: counted, moved, repeatable by seed and epoch, and refused in a sentence."""

import random
from collections import UserDict

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler

import sentei
from sentei.data.batches import count_of, mapped, moved, pieces_of, tensors_of
from sentei.data.held import held
from sentei.errors import ConfigError, DataError
from sentei.models import build_model


class Noisy(Dataset):
    """Draws from each source of random numbers that a data set may use."""

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        noise = torch.rand(()) + np.random.rand() + random.random()  # noqa: NPY002
        return {"x": torch.full((3,), float(index)) + noise * 0.1, "y": torch.tensor(index)}


def seen(data: sentei.Data, **options: object) -> Tensor:
    return torch.cat([b["x"] for b in data.train.batches(0, **options)])


def loaders() -> dict[str, object]:
    generator = torch.Generator()
    return {
        "shuffled": DataLoader(Noisy(), 4, shuffle=True),
        "own generator": DataLoader(Noisy(), 4, shuffle=True, generator=generator),
        "own sampler": DataLoader(Noisy(), 4, sampler=RandomSampler(Noisy(), generator=generator)),
        "workers": DataLoader(Noisy(), 4, shuffle=True, num_workers=1),
    }


@pytest.mark.parametrize("kind", loaders())
def test_the_same_seed_and_epoch_give_the_same_batches(kind: str) -> None:
    data = sentei.Data.of(train=loaders()[kind])
    first = seen(data, train=True, seed=1, epoch=2)
    torch.rand(7), random.random()
    assert torch.equal(first, seen(data, train=True, seed=1, epoch=2))
    assert not torch.equal(first, seen(data, train=True, seed=1, epoch=3))
    assert not torch.equal(first, seen(data, train=True, seed=2, epoch=2))
    assert sorted(first[:, 0].round().int().tolist()) != first[:, 0].round().int().tolist()
    assert data.notes == []
    again = sentei.Data.of(train=loaders()[kind])
    assert again.identity == data.identity


def test_fetching_leaves_everybody_elses_random_numbers_alone() -> None:
    data = sentei.Data.of(train=DataLoader(Noisy(), 4, shuffle=True))
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    parts = [torch.rand(1) for _, b in zip(range(3), data.train.batches(0, train=True), strict=False)]
    assert torch.equal(expected, torch.cat(parts))


def test_a_loader_that_no_seed_reaches_is_told() -> None:
    class Hidden(Noisy):
        source = np.random.default_rng()

        def __getitem__(self, index: int) -> dict[str, Tensor]:
            return {"x": torch.from_numpy(self.source.random(3)), "y": torch.tensor(index)}

    data = sentei.Data.of(train=DataLoader(Hidden(), 4))
    assert "do not follow from seed and epoch" in data.notes[0]


def test_counts_limits_and_steps() -> None:
    data = sentei.Data.of(train=DataLoader(Noisy(), 8, drop_last=True), val=DataLoader(Noisy(), 8), test=[])
    assert (len(data.train), len(data.val), len(data.test)) == (16, 20, 0)
    assert [len(b["y"]) for b in data.val.batches(1)] == [8, 8, 4]
    assert [len(b["y"]) for b in data.val.batches(1, limit=9)] == [8, 8]
    assert (data.train.steps(1), data.train.steps(1, 3), data.train.steps(1, 100)) == (2, 1, 2)
    assert data.identity["train"] == 16


def test_samplers_are_told_the_epoch() -> None:
    told: list[int] = []

    class Epochs(RandomSampler):
        def set_epoch(self, epoch: int) -> None:
            told.append(epoch)

    data = sentei.Data.of(train=DataLoader(Noisy(), 4, sampler=Epochs(Noisy())))
    list(data.train.batches(0, train=True, epoch=7))
    assert told[-1] == 7


class Endless:
    def __iter__(self):
        return iter([torch.zeros(1)])


@pytest.mark.parametrize(
    ("loader", "said"),
    [
        (Endless(), "without a length"),
        (iter([torch.zeros(1)]), "can be used up only once"),
        (5, "train is a int; expected something that can be iterated"),
        ([], "train has no batches"),
    ],
)
def test_what_is_no_loader_is_refused(loader: object, said: str) -> None:
    with pytest.raises(DataError, match=said):
        sentei.Data.of(train=loader)


def test_a_bare_loader_is_answered_with_what_to_do() -> None:
    with pytest.raises(ConfigError, match=r"data is a DataLoader; expected .* sentei.Data.of"):
        sentei.prune(build_model("digitsnet"), DataLoader(Noisy(), 4))


def test_batches_of_any_nesting() -> None:
    batch = {"a": [torch.ones(2, 3), (torch.zeros(2), "text")], "b": 3, "c": UserDict(x=torch.ones(2))}
    assert [tuple(t.shape) for t in tensors_of(batch)] == [(2, 3), (2,), (2,)]
    doubled = mapped(batch, lambda t: t * 2)
    assert doubled["a"][0].sum() == 12
    assert doubled["a"][1][1] == "text"
    assert doubled["b"] == 3
    assert all(t.device.type == "meta" for t in tensors_of(moved(batch, torch.device("meta"))))


def test_batches_that_do_not_fit_into_memory_are_drawn_anew() -> None:
    data = sentei.Data.of(train=DataLoader(Noisy(), 4, shuffle=True))
    kept, redrawn = (held(data.train, 4, memory=m, train=True, seed=3) for m in (10**6, 100))
    assert isinstance(kept, list)
    assert not isinstance(redrawn, list)
    for _ in range(2):
        assert all(torch.equal(a["x"], b["x"]) for a, b in zip(kept, redrawn, strict=True))


def test_samples_are_counted_and_split() -> None:
    images = [torch.ones(3, i + 1, 5) for i in range(4)]
    targets = [{"boxes": torch.ones(i, 4)} for i in range(4)]
    assert count_of((images, targets)) == 4
    assert count_of({"x": torch.ones(6, 2)}) == 6
    halves = pieces_of((images, targets), 2)
    assert [len(h[0]) for h in halves] == [2, 2]
    assert halves[1][1][1]["boxes"].shape == (3, 4)
    parts = pieces_of({"x": torch.arange(5), "name": "n", "scale": torch.ones(())}, 2)
    assert [p["x"].tolist() for p in parts] == [[0, 1, 2], [3, 4]]
    assert [p["name"] for p in parts] == ["n", "n"]


@pytest.mark.parametrize("count", [2, 5])
def test_inputs_and_labels_in_a_list_are_no_samples(count: int) -> None:
    batch = [torch.arange(3.0 * count).view(count, 3), torch.arange(count)]
    assert count_of(batch) == count
    halves = pieces_of(batch, 2)
    assert [len(h) for h in halves] == [2, 2]
    assert all(torch.equal(torch.cat([h[i] for h in halves]), batch[i]) for i in range(2))
