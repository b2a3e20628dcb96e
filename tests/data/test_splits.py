"""Batches in memory: what is shown, in which order, and how it is augmented."""

import pytest
import torch

from sentei.data.splits import Augment, TensorSplit, training_batches


def split_of(count: int = 40, side: int = 8, channels: int = 3, augment: Augment | None = None) -> TensorSplit:
    images = torch.randint(0, 256, (count, side, side, channels), generator=torch.Generator().manual_seed(1))
    mean, std = (0.4, 0.5, 0.6)[:channels], (0.2, 0.3, 0.4)[:channels]
    return TensorSplit(images.to(torch.uint8), torch.arange(count), mean, std, augment or Augment())


def raw(split: TensorSplit) -> torch.Tensor:
    """The stored images as the model should see them, computed the plain way."""
    x = split.images.permute(0, 3, 1, 2).float() / 255
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.4])
    return (x - mean.view(1, -1, 1, 1)) / std.view(1, -1, 1, 1)


def test_evaluation_shows_every_image_once_in_order_normalised() -> None:
    split = split_of()
    x, y = (torch.cat(parts) for parts in zip(*split.batches(16), strict=True))
    assert torch.equal(y, torch.arange(40))
    torch.testing.assert_close(x, raw(split), rtol=1e-5, atol=1e-5)


def test_batches_are_channels_last() -> None:
    for train in (False, True):
        x, _ = next(split_of(augment=Augment(flip=True, crop=2)).batches(8, train=train))
        assert x.is_contiguous(memory_format=torch.channels_last)


def test_training_shuffles_and_drops_the_incomplete_batch() -> None:
    labels = [y for _, y in split_of().batches(16, train=True)]
    assert [len(y) for y in labels] == [16, 16]
    seen = torch.cat(labels)
    assert len(seen.unique()) == 32
    assert not torch.equal(seen, seen.sort().values)


def test_fewer_images_than_a_batch_still_make_one() -> None:
    assert [len(y) for _, y in split_of(5).batches(16, train=True)] == [5]
    assert (training_batches(0, 4), training_batches(3, 4), training_batches(9, 4)) == (0, 1, 2)


def test_same_seed_and_epoch_give_the_same_batches_and_others_do_not() -> None:
    split = split_of(augment=Augment(flip=True, crop=2, cutout=3))

    def epoch(seed: int, epoch: int) -> torch.Tensor:
        return torch.cat([x for x, _ in split.batches(8, train=True, seed=seed, epoch=epoch)])

    assert torch.equal(epoch(1, 2), epoch(1, 2))
    assert not torch.equal(epoch(1, 2), epoch(1, 3))
    assert not torch.equal(epoch(1, 2), epoch(2, 2))


def test_flip_mirrors_each_image_in_exactly_one_of_two_epochs() -> None:
    split = split_of(augment=Augment(flip=True))
    plain = raw(split)
    mirrored = torch.zeros(2, 40, dtype=torch.bool)
    for epoch in range(2):
        for x, y in split.batches(8, train=True, epoch=epoch):
            same = (x - plain[y]).abs().amax(dim=(1, 2, 3)) < 1e-4
            turned = (x - plain[y].flip(3)).abs().amax(dim=(1, 2, 3)) < 1e-4
            assert bool((same ^ turned).all())
            mirrored[epoch, y] = turned
    assert bool((mirrored[0] ^ mirrored[1]).all())
    assert 5 < int(mirrored[0].sum()) < 35


def test_crop_is_a_shift_filled_with_black() -> None:
    split = split_of(augment=Augment(crop=2))
    padded = torch.nn.functional.pad(split.images.permute(0, 3, 1, 2).float(), (2, 2, 2, 2))
    shifts = set()
    for x, y in split.batches(8, train=True):
        pixels = (
            x * torch.tensor([0.2, 0.3, 0.4]).view(1, 3, 1, 1) + torch.tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1)
        ) * 255
        for image, index in zip(pixels, y.tolist(), strict=True):
            found = [
                (top, left)
                for top in range(5)
                for left in range(5)
                if (padded[index, :, top : top + 8, left : left + 8] - image).abs().max() < 1e-2
            ]
            assert len(found) == 1
            shifts.add(found[0])
    assert len(shifts) > 10


def test_cutout_hides_a_square_of_mean_colour() -> None:
    split = split_of(augment=Augment(cutout=4))
    for x, _ in split.batches(8, train=True):
        hidden = (x == 0).all(dim=1)
        area = hidden.sum(dim=(1, 2))
        assert bool((area >= 4).all())
        assert bool((area <= 16).all())
        rows, cols = hidden.any(dim=2).sum(dim=1), hidden.any(dim=1).sum(dim=1)
        assert torch.equal(area, rows * cols)


def test_limit_takes_a_new_sample_each_training_epoch_and_an_even_one_otherwise() -> None:
    split = split_of()
    first, second = (
        {*torch.cat([y for _, y in split.batches(4, train=True, epoch=e, limit=8)]).tolist()} for e in (0, 1)
    )
    assert len(first) == len(second) == 8
    assert first != second
    even = torch.cat([y for _, y in split.batches(4, limit=5)])
    assert even.tolist() == [0, 10, 20, 29, 39]


@pytest.mark.parametrize("crop", [0, 3])
def test_float_images_keep_their_scale(crop: int) -> None:
    images = torch.randn(6, 4, 4, 1)
    split = TensorSplit(images, torch.arange(6), (0.0,), (1.0,), Augment(crop=crop))
    x = torch.cat([x for x, _ in split.batches(6)])
    torch.testing.assert_close(x, images.permute(0, 3, 1, 2))
