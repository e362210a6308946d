"""Means over corruptions and their interval, which counts images."""

import math

import pytest
import torch
from torch import nn

from robobench.data.corruptions import CorruptedSplit
from robobench.data.split import Split
from robobench.errors import RequestError
from robobench.evaluation.corruptions import CorruptionAccuracy, clustered_interval, evaluate_corruptions


def test_two_images_two_corruptions_by_hand():
    """Image 0 is right under both, image 1 under one: means 1 and 0.5, so 0.75 with standard error 0.25."""
    outcomes = {("fog", 1): torch.tensor([True, True]), ("snow", 1): torch.tensor([True, False])}
    found = CorruptionAccuracy(outcomes)
    assert (found.accuracy, found.mean_of("fog"), found.mean_of("snow")) == (0.75, 1.0, 0.5)
    assert found.interval == pytest.approx((0.75 - 1.959964 * 0.25, 1.0))  # 1.24 is above 1
    assert found.mean_of(severity=1) == 0.75


def test_repeated_outcomes_narrow_nothing():
    """75 copies of an image's outcome are one observation."""
    one = (torch.rand(200, 1, generator=torch.Generator().manual_seed(0)) < 0.3).double()
    assert clustered_interval(one.expand(200, 75)) == pytest.approx(clustered_interval(one))
    assert math.isnan(clustered_interval(one[:1])[0])


def test_clustered_interval_matches_bootstrap():
    """Of whole images; the outcomes of an image are correlated by its own difficulty."""
    generator = torch.Generator().manual_seed(0)
    ease = torch.rand(400, 1, generator=generator)
    outcomes = (torch.rand(400, 75, generator=generator) < ease).double()
    drawn = torch.randint(0, 400, (4000, 400), generator=generator)
    means = outcomes.mean(1)[drawn].mean(1)
    low, high = clustered_interval(outcomes)
    assert means.quantile(0.025).item() == pytest.approx(low, abs=0.003)
    assert means.quantile(0.975).item() == pytest.approx(high, abs=0.003)
    independent = 1.96 * math.sqrt(0.25 / outcomes.numel())
    assert (high - low) / 2 > 4 * independent


class Bright(nn.Module):
    """Predicts class 1 for bright images."""

    def forward(self, images):
        level = images.mean((1, 2, 3)) - 0.5
        return torch.stack((-level, level), 1)


def split(levels, labels):
    pixels = torch.tensor(levels)[:, None, None, None].expand(-1, 3, 2, 2)
    return Split(lambda index: pixels[index], torch.tensor(labels), "x", is_uint8_exact=False)


def test_evaluation_keeps_images_aligned():
    parts = [
        CorruptedSplit("fog", 1, split([0.9, 0.1, 0.2], [1, 1, 0])),
        CorruptedSplit("fog", 2, split([0.1] * 3, [1, 1, 0])),
    ]
    found = evaluate_corruptions(Bright(), parts, batch_size=2)
    assert {key: o.tolist() for key, o in found.outcomes.items()} == {
        ("fog", 1): [True, False, True],
        ("fog", 2): [False, False, True],
    }
    assert evaluate_corruptions(Bright(), parts, examples=2).accuracy == 0.25
    with pytest.raises(RequestError, match="holds other images"):
        evaluate_corruptions(Bright(), [parts[0], CorruptedSplit("snow", 1, split([0.1] * 3, [0, 1, 0]))])
