"""The warning about models that classify clean images no better than guessing."""

import pytest
import torch

from robobench.evaluation.near_chance import near_chance_warning

BALANCED, SKEWED = torch.arange(1000) % 10, (torch.arange(1000) < 100).long()


@pytest.mark.parametrize(
    ("accuracy", "labels", "warned"),
    [
        (0.1, BALANCED, True),
        (0.12, BALANCED, True),  # 3 standard deviations of 1000 guesses are 0.028
        (0.13, BALANCED, False),
        (0.9, SKEWED, True),  # guessing class 0 gives 0.9
        (0.95, SKEWED, False),
        (1.0, BALANCED[:3], False),
        (0.0, BALANCED[:0], False),
    ],
)
def test_warning_needs_more_than_guessing(accuracy, labels, warned):
    text = near_chance_warning("net", accuracy, labels, 10, trained=False)
    assert (text is not None) == warned and "\n" not in (text or "")


def test_causes_are_named_in_order():
    text = near_chance_warning("net", 0.1, BALANCED, 10, trained=True)
    causes = ["classes", "normalization", "--image-size", "epochs"]
    assert sorted(causes, key=text.index) == causes
    assert "weights" in near_chance_warning("net", 0.1, BALANCED, 10, trained=False)
