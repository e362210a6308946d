"""Building models by name: published sizes, timm's features, seeds, stems."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from robobench.errors import RequestError
from robobench.models.build import build_model
from robobench.models.checks import missing_attributes
from robobench.models.spec import ModelSpec
from tests.helpers.models import MEAN, STD, cnn_spec


@pytest.mark.parametrize(
    ("name", "millions"),  # parameters with 10 classes, as published
    [("cnn", 0.13), ("resnet20", 0.27), ("resnet18", 11.17), ("preactresnet18", 11.17), ("wrn-28-10", 36.48)],
)
def test_models_have_published_size_and_features(name, millions, images):
    model = build_model(ModelSpec(name, 10, stem="cifar", mean=MEAN, std=STD)).eval()
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.01)
    assert missing_attributes(model, ("features", "head")) == []
    if name != "wrn-28-10":  # 5 G multiplications per image
        with torch.no_grad():
            logits, features = model(images), model.features(images)
        assert logits.shape == (2, 10) and logits.dtype == features.dtype == torch.float32
        assert torch.equal(logits, model.head(features))


@pytest.mark.parametrize("name", ["timm:vit_tiny_patch16_224", "timm:convnext_atto"])
def test_features_equal_timm_pre_logits(name, images):
    import timm

    model = build_model(ModelSpec(name, 7, image_size=64, seed=3)).eval()
    options = {"img_size": 64} if "vit" in name else {}
    theirs = timm.create_model(name.removeprefix("timm:"), num_classes=7, **options).eval()
    theirs.load_state_dict(
        {k.replace("head.", f"{model.head_name}.", 1) if k.startswith("head.") else k.removeprefix("net."): v
         for k, v in model.state_dict().items()}
    )  # fmt: skip
    with torch.no_grad():
        larger = F.interpolate(images, (64, 64), mode="bilinear", align_corners=False)
        expected = theirs.forward_head(theirs.forward_features(larger), pre_logits=True)
        torch.testing.assert_close(model.features(images), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(model(images), theirs(larger), rtol=1e-4, atol=1e-5)


def test_seed_fixes_weights_and_keeps_global_generator():
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first, again, other = build_model(cnn_spec(seed=1)), build_model(cnn_spec(seed=1)), build_model(cnn_spec(seed=2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.head.weight, other.head.weight)


@pytest.mark.parametrize(("stem", "side"), [("cifar", 32), ("imagenet", 8)])
def test_stem_sets_feature_map_size(stem, side):
    net = build_model(ModelSpec("resnet18", 10, stem=stem)).net
    assert net.maxpool(net.act1(net.bn1(net.conv1(torch.rand(1, 3, 32, 32))))).shape[-1] == side


def test_unknown_timm_name_suggests_similar():
    with pytest.raises(RequestError, match=r"unknown timm model 'resnet_18'; did you mean .*resnet18"):
        build_model(ModelSpec("timm:resnet_18", 10))
