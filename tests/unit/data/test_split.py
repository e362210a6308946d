"""Splits: parts, order, resizing, number of classes."""

from __future__ import annotations

import pytest
import torch

from robobench.data import load_dataset
from robobench.data.split import require_classes
from robobench.errors import RequestError
from tests.helpers.datasets import all_images

pytestmark = pytest.mark.usefixtures("cache")


def test_first_images_have_another_digest():
    data = load_dataset("digits")
    part = data.train.first(100)
    assert len(part) == 100 and torch.equal(all_images(part), data.train.images(torch.arange(100)))
    assert part.digest != data.train.digest and part.digest == load_dataset("digits").train.first(100).digest
    assert data.train.first(5000) is data.train and len(data.train) == 1437


def test_images_follow_index_order():
    test = load_dataset("digits").test
    assert torch.equal(test.images(torch.tensor([5, 2, 5])), all_images(test)[[5, 2, 5]])


def test_resized_images_stay_in_box_with_another_digest():
    small, large = load_dataset("digits", need_train=False), load_dataset("digits", resolution=48, need_train=False)
    images = all_images(large.test)
    assert large.resolution == 48 and images.shape == (360, 3, 48, 48)
    assert images.min() >= 0 and images.max() <= 1
    assert images.mean() == pytest.approx(all_images(small.test).mean().item(), abs=0.01)
    assert large.digest != small.digest
    assert load_dataset("digits", resolution=32, need_train=False).digest == small.digest


def test_training_split_of_one_class_is_refused():
    train = load_dataset("digits").train
    require_classes(train, 2)
    with pytest.raises(RequestError, match="has 1 class in 1 images, training needs 2 or more"):
        require_classes(train.first(1), 2)
