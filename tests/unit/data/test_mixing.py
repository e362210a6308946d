"""MixUp and CutMix against boxes, shares and losses worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from robobench.core.soft_labels import SoftLabels
from robobench.data.mixing import mix


class Draws:
    """A random number generator whose named children return the given uniform draws."""

    def __init__(self, values):
        self.values = values

    def child(self, name):
        return Draws(torch.tensor(self.values[name]))

    def uniform(self, *shape):
        return self.values.view(-1, *shape)


ZEROS, ONES = torch.zeros(1, 3, 4, 4), torch.ones(1, 3, 4, 4)


@pytest.mark.parametrize(
    ("share", "center", "box", "kept"),
    [
        (0.75, (0.5, 0.5), [[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]], 12 / 16),  # sides 4 sqrt(1/4)
        (0.75, (0.0, 0.5), [[0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]], 14 / 16),  # one row is outside
        (0.75, (0.99, 0.99), [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]], 12 / 16),
        (0.0, (0.5, 0.5), [[1, 1, 1, 1]] * 4, 0.0),
    ],
)
def test_cutmix_box_and_share(share, center, box, kept):
    draws = Draws({"share": [share], "box": [center]})
    mixed, found = mix(ZEROS, ONES, draws, mixup=0.0, cutmix=1.0)
    assert mixed[0, 0].tolist() == box and torch.equal(mixed[0, 0], mixed[0, 2])
    assert found.tolist() == [kept]


def test_mixed_labels_weigh_both_losses():
    """Image 0 keeps 3/4 of its pixels, image 1 a half of its values; labels (0, 2) are mixed with (1, 0)."""
    logits = torch.tensor([[1.0, 2.0, 5.0], [1.0, 1.0, 2.0]]).log().requires_grad_()  # sums 8 and 4
    labels, other, share = torch.tensor([0, 2]), torch.tensor([1, 0]), torch.tensor([0.75, 0.5])
    by_hand = torch.tensor([0.75 * math.log(8) + 0.25 * math.log(4), 0.5 * math.log(2) + 0.5 * math.log(4)])
    mixed = SoftLabels.of(labels, other=other, share=share)
    assert torch.allclose(F.cross_entropy(logits, mixed, reduction="none"), by_hand)
    smooth = torch.tensor([(math.log(8) + math.log(4) + math.log(8 / 5)) / 3, (2 * math.log(4) + math.log(2)) / 3])
    mixed = SoftLabels.of(labels, 0.3, other=other, share=share)
    assert torch.allclose(F.cross_entropy(logits, mixed, reduction="none"), 0.7 * by_hand + 0.3 * smooth)


def test_each_image_gets_mixup_or_cutmix():
    draws = Draws({"share": [0.75, 0.75], "box": [(0.5, 0.5)] * 2, "which": [0.49, 0.5]})
    mixed, share = mix(ZEROS.repeat(2, 1, 1, 1), ONES.repeat(2, 1, 1, 1), draws, mixup=1.0, cutmix=1.0)
    assert set(mixed[0].unique().tolist()) == {0.0, 1.0} and mixed[1].unique().tolist() == [0.25]
    assert share.tolist() == [0.75, 0.75]
