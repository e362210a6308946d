"""Normalization and resizing inside the model."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import nn

from robobench.models.build import build_model
from tests.helpers.models import MEAN, STD, cnn_spec


def test_model_normalizes_and_saves_no_constants(images):
    model, plain = build_model(cnn_spec()).eval(), build_model(cnn_spec(mean=(0.0,) * 3, std=(1.0,) * 3)).eval()
    by_hand = (images - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    torch.testing.assert_close(model(images), plain(by_hand))
    assert {key.split(".")[0] for key in model.state_dict()} == {"net", "head"}


def test_model_resizes_images_differentiably():
    model = build_model(cnn_spec(image_size=16)).eval()
    large = torch.rand(2, 3, 32, 32).requires_grad_()
    smaller = F.interpolate(large, (16, 16), mode="bilinear", align_corners=False, antialias=True)
    torch.testing.assert_close(model(large), model(smaller))
    model(large).sum().backward()
    assert large.grad.abs().amax((1, 2, 3)).min() > 0


def test_copied_model_is_equal_and_independent(images):
    model = build_model(cnn_spec()).eval()
    copied = copy.deepcopy(model)
    assert torch.equal(model(images), copied(images))
    nn.init.zeros_(copied.head.weight)
    assert not torch.equal(model(images), copied(images))
