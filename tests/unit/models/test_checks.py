"""Checks of a model's `features` and `head`."""

from __future__ import annotations

import pytest
import torch

from robobench.errors import RequestError
from robobench.models.build import build_model
from robobench.models.checks import check_features_and_head, logits_fingerprint, missing_attributes
from robobench.models.spec import ModelSpec
from tests.helpers.toys import FACTORY


def test_missing_attributes_are_named(factory):
    model = build_model(ModelSpec(f"{factory}:bare", 7))
    assert model(torch.rand(2, 3, 4, 4)).shape == (2, 7)
    assert missing_attributes(model, ("features", "head")) == ["features", "head"]
    assert not hasattr(model, "features")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("self.head(self.features(images))", "self.head(self.features(images).relu() - 1)"), "differ by up to "),
        ((".mean((2, 3))", ""), "fails on two images: RuntimeError"),
    ],
)
def test_features_and_head_must_give_logits(tmp_path, factory, images, change, message):
    check_features_and_head(build_model(ModelSpec(f"{factory}:make", 7)), "mine", images)
    (tmp_path / "other.py").write_text(FACTORY.replace(*change))
    with pytest.raises(RequestError) as caught:
        check_features_and_head(build_model(ModelSpec(f"{tmp_path / 'other.py'}:make", 7)), "mine", images)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_fingerprint_ignores_rounding_only():
    logits = torch.linspace(-3, 5, 40).view(4, 10)
    assert logits_fingerprint(logits * (1 + 1e-6)) == logits_fingerprint(logits)
    assert logits_fingerprint(logits.roll(1, 1)) != logits_fingerprint(logits)
    assert logits_fingerprint(1e37 * logits / 5) != logits_fingerprint(1e37 * logits.flip(0) / 5)
