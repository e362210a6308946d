"""The confidence sequence covers the accuracy at every number of images at once."""

import math
import random

import pytest

from robobench.results.confidence_sequence import confidence_sequence, is_narrow
from robobench.results.statistics import wilson_interval


def beta_binomial(more, left, a, b):
    def log_beta(x, y):
        return math.lgamma(x) + math.lgamma(y) - math.lgamma(x + y)

    return math.comb(left, more) * math.exp(log_beta(more + a, left - more + b) - log_beta(a, b))


@pytest.mark.parametrize(
    ("correct", "seen", "population"), [(0, 0, 20), (3, 7, 20), (0, 9, 20), (9, 9, 20), (5, 20, 20)]
)
def test_interval_holds_counts_of_small_ratio(correct, seen, population):
    """By hand: a count stays while prior / posterior is below 20."""
    left = population - seen
    kept = [
        more
        for more in range(left + 1)
        if 1 / (population + 1) < 20 * beta_binomial(more, left, correct + 1, seen - correct + 1)
    ]
    low, high = confidence_sequence(correct, seen, population)
    assert (low, high) == ((correct + kept[0]) / population, (correct + kept[-1]) / population)


@pytest.mark.parametrize("accuracy", [0.03, 0.25, 0.5])
def test_coverage_at_all_times(accuracy):
    """Of 400 orders, at most 5 % leave the sequence at any of 60 looks; a watched Wilson interval misses more often."""
    generator, population, step = random.Random(0), 600, 10
    images = [i < accuracy * population for i in range(population)]
    missed = wilson = 0
    for _ in range(400):
        order = generator.sample(images, population)
        counts = [(sum(order[:n]), n) for n in range(step, population + 1, step)]
        truth = sum(images) / population
        bounds = [confidence_sequence(k, n, population) for k, n in counts]
        missed += any(not low - 1e-12 <= truth <= high + 1e-12 for low, high in bounds)
        wilson += any(not low <= truth <= high for low, high in (wilson_interval(k, n) for k, n in counts))
    assert missed <= 0.05 * 400 < wilson


def test_stopping_needs_fewer_images_than_all():
    """And more than a sample of fixed size: n = m / (1 + m / N) with m = p (1 - p) (1.96 / 0.01)^2."""
    needed = next(n for n in range(4, 10_001, 4) if is_narrow(n // 4, n, 10_000, 1.0))
    fixed = 0.25 * 0.75 * 196**2
    assert fixed / (1 + fixed / 10_000) < needed < 10_000
    assert confidence_sequence(2500, 10_000, 10_000) == (0.25, 0.25)
