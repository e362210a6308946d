"""Augmentation, compared with shifts worked out by hand."""

import pytest
import torch

from robobench.core.rng import KeyedRng
from robobench.data.augment import augment, crop, flip


class FixedRng:
    """A random number generator that returns the given uniform draws."""

    def __init__(self, *values):
        self.values = torch.tensor(values)

    def uniform(self, *shape):
        return self.values.view(len(self.values), *shape)


GRID = torch.arange(1.0, 10.0).view(1, 1, 3, 3)  # 1 2 3 / 4 5 6 / 7 8 9


@pytest.mark.parametrize(
    ("draw", "expected"),
    [
        ((0.5, 0.5), [[1, 2, 3], [4, 5, 6], [7, 8, 9]]),  # the middle of three offsets: no shift
        ((0.0, 0.5), [[0, 0, 0], [1, 2, 3], [4, 5, 6]]),  # rows from one above
        ((0.5, 0.99), [[2, 3, 0], [5, 6, 0], [8, 9, 0]]),  # columns from one to the right
        ((0.99, 0.0), [[0, 4, 5], [0, 7, 8], [0, 0, 0]]),
    ],
)
def test_crop_shifts_and_fills_with_zeros(draw, expected):
    assert crop(GRID, FixedRng(draw), padding=1)[0, 0].tolist() == expected


def test_shift_is_per_image_and_shared_by_channels():
    images = torch.cat((GRID, 10 * GRID), dim=1).repeat(2, 1, 1, 1)
    shifted = crop(images, FixedRng((0.5, 0.5), (0.0, 0.5)), padding=1)
    assert torch.equal(shifted[0], images[0])
    assert torch.equal(shifted[1, 1], 10 * shifted[1, 0])
    assert shifted[1, 0].tolist() == [[0, 0, 0], [1, 2, 3], [4, 5, 6]]


def test_flip_is_horizontal_below_one_half():
    flipped = flip(GRID.repeat(2, 1, 1, 1), FixedRng(0.49, 0.5))
    assert flipped[0, 0].tolist() == [[3, 2, 1], [6, 5, 4], [9, 8, 7]]
    assert torch.equal(flipped[1], GRID[0])


def test_crop_offsets_are_uniform():
    count, padding = 9000, 1
    images = torch.zeros(count, 1, 3, 3)
    images[:, 0, 1, 1] = 1.0
    shifted = crop(images, KeyedRng.of(torch.arange(count), "crop"), padding)
    places = shifted.flatten(1).sum(0)
    assert places.sum() == count
    assert ((places - count / 9).abs() < 5 * (count * 8 / 81) ** 0.5).all()


def test_mode_chooses_augmentation():
    images, rng = torch.rand(64, 3, 16, 16), KeyedRng.of(torch.arange(64), "augment")
    assert torch.equal(augment(images, rng, "none"), images)
    flipped = augment(images, rng, "flip")
    is_flipped = (flipped == images.flip(3)).flatten(1).all(1)
    assert ((flipped == images).flatten(1).all(1) ^ is_flipped).all() and 16 < is_flipped.sum() < 48
    both = augment(images, rng, "crop-flip")
    assert both.shape == images.shape and not torch.equal(both, flipped)
    assert torch.equal(augment(images[5:6], rng[torch.tensor([5])], "crop-flip"), both[5:6])
