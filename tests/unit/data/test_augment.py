"""Augmentation, compared with shifts worked out by hand."""

import pytest
import torch

from robobench.core.rng import KeyedRng
from robobench.data.augment import POLICIES, augment, crop, flip, parse_augmentation


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


def test_crop_alone_does_not_flip():
    rng = KeyedRng.of(torch.arange(64), "augment")
    images = torch.rand(64, 3, 16, 16)
    cropped, both = augment(images, rng, "crop"), augment(images, rng, "crop-flip")
    same = (both == cropped).flatten(1).all(1)
    assert (same ^ (both == cropped.flip(3)).flatten(1).all(1)).all() and 16 < same.sum() < 48


@pytest.mark.parametrize("policy", POLICIES)
def test_policy_depends_on_key_of_image_only(policy):
    """The same image gets the same pixels in another batch and after other draws, and others in another epoch."""
    images, index, mode = torch.rand(16, 3, 16, 16), torch.arange(16), f"none+{policy}"
    rng = KeyedRng.of(index, "epoch", 0)
    before = torch.get_rng_state()
    expected = augment(images, rng, mode)
    assert torch.equal(torch.get_rng_state(), before)
    assert expected.min() >= 0 and expected.max() <= 1 and expected.shape == images.shape
    torch.rand(7)
    some = torch.tensor([11, 2, 5])
    assert torch.equal(augment(images[some], rng[some], mode), expected[some])
    assert not torch.equal(augment(images, KeyedRng.of(index, "epoch", 1), mode), expected)


def test_erasing_removes_a_rectangle_of_a_quarter_of_images():
    erased = augment(torch.ones(400, 3, 16, 16), KeyedRng.of(torch.arange(400), "augment"), "none+erasing") == 0
    touched = erased.flatten(1).any(1)
    assert 100 - 4 * 75**0.5 < touched.sum() < 100 + 4 * 75**0.5  # binomial: mean 100, variance 75
    for image in erased[touched]:
        rows, columns = image[0].any(1), image[0].any(0)
        assert torch.equal(image, (rows[:, None] & columns[None, :]).expand(3, 16, 16))


def test_policies_act_in_the_order_given():
    images, rng = torch.rand(8, 3, 16, 16), KeyedRng.of(torch.arange(8), "augment")
    first = augment(augment(images, rng, "flip"), rng, "none+erasing")
    assert torch.equal(augment(images, rng, "flip+erasing"), first)
    for wrong in ("erasing", "none+cutout", "flip+none", "+erasing"):
        with pytest.raises(ValueError, match="augment must be one of crop-flip, crop, flip, none, then any of"):
            parse_augmentation(wrong)
