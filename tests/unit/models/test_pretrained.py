"""Pretrained weights that are not available."""

import pytest

from robobench.errors import RequestError
from robobench.models.build import build_model
from robobench.models.pretrained import with_published_weights
from robobench.models.spec import ModelSpec
from tests.helpers.models import cnn_spec


def test_unavailable_pretrained_weights_raise(monkeypatch):
    """The model is never built with random weights instead."""
    import timm

    def offline(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(
        RequestError, match=r"pretrained weights for 'resnet18' cannot be downloaded .*--set run.pretrained=false"
    ):
        build_model(ModelSpec("resnet18", 10, pretrained=True))
    with pytest.raises(RequestError, match="'cnn' has no pretrained weights"):
        build_model(cnn_spec(pretrained=True))


def test_published_weights_need_matching_classes():
    with pytest.raises(RequestError, match="have 1000 classes, the data set has 10"):
        with_published_weights(ModelSpec("timm:convnext_atto", 10))
