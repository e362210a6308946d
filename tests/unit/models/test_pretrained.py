"""Pretrained weights that are not available."""

import pytest

from robobench.data.info import Resize
from robobench.errors import RequestError
from robobench.models.build import build_model
from robobench.models.pretrained import (
    published_preprocessing,
    with_published_preprocessing,
    with_published_weights,
)
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


def test_preprocessing_is_that_of_the_checkpoint():
    """timm's augreg ViTs want a mean of 0.5, torchvision's weights the central 224 of 256 px."""
    vit = with_published_preprocessing(ModelSpec("timm:vit_tiny_patch16_224", 10), keep_size=False, resolution=32)
    assert (vit.mean, vit.std, vit.image_size, vit.interpolation) == ((0.5,) * 3, (0.5,) * 3, 224, "bicubic")
    found = published_preprocessing("torchvision.models:resnet18")
    assert (found.num_classes, found.resize) == (1000, Resize(224, 224 / 256, "bilinear"))
    assert published_preprocessing("cnn") is None and published_preprocessing("net.py:make") is None


def test_interpolation_changes_only_if_the_model_resizes():
    """Keys of models whose images have the published size stay what they were."""
    spec = ModelSpec("wrn50", 10, image_size=224, stem="imagenet")
    same = with_published_preprocessing(spec, keep_size=False, resolution=224)
    assert same.interpolation == "bilinear" and same.image_size == 224
    assert with_published_preprocessing(spec, keep_size=False, resolution=32).interpolation == "bicubic"
