"""An interval that holds at every number of images at once, so that an evaluation may stop when it is narrow.

A Wilson interval holds for a number of images that is fixed beforehand. Watched after every batch until it is narrow,
it misses the accuracy more often than it says.
"""

from __future__ import annotations

import math


def confidence_sequence(correct: int, seen: int, population: int, level: float = 0.05) -> tuple[float, float]:
    """Return an interval of the accuracy on all images, from those seen so far in a random order.

    With probability 1 - level, the accuracy lies in the intervals of all numbers of images at once. Once all are seen,
    the interval is the accuracy.

    Args:
        correct: how many of the images seen are correct.
        seen: their number.
        population: number of all images, of which those seen are a random sample without replacement.

    Source: Waudby-Smith and Ramdas, "Confidence sequences for sampling without replacement", NeurIPS 2020,
        arXiv:2006.04347, theorem 2.1: the ratio of prior and posterior of the true count is a martingale. The prior is
        uniform on 0 to `population`; the posterior is beta-binomial.
    """
    left, wrong = population - seen, seen - correct

    def log_beta(a: int, b: int) -> float:
        return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)

    def is_inside(more: int) -> bool:
        """Whether prior / posterior is below 1 / level if `more` of the images left are correct."""
        ways = -math.log(left + 1) - log_beta(more + 1, left - more + 1)
        posterior = ways + log_beta(more + correct + 1, left - more + wrong + 1) - log_beta(correct + 1, wrong + 1)
        return -math.log(population + 1) - posterior < -math.log(level)

    middle = round(left * correct / seen) if seen else left // 2  # the mode
    low, outside = middle, -1
    while low - outside > 1:
        half = (low + outside) // 2
        low, outside = (half, outside) if is_inside(half) else (low, half)
    high, outside = middle, left + 1
    while outside - high > 1:
        half = (high + outside) // 2
        high, outside = (half, outside) if is_inside(half) else (high, half)
    return (correct + low) / population, (correct + high) / population


def is_narrow(correct: int, seen: int, population: int, points: float) -> bool:
    """Return whether the confidence sequence is at most `points` percentage points wide on either side."""
    low, high = confidence_sequence(correct, seen, population)
    return 100 * (high - low) / 2 <= points
