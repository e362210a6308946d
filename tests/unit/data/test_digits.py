"""The digits: pixels, labels and split, compared with scikit-learn."""

from __future__ import annotations

import pytest
import torch

from robobench.data import load_dataset
from tests.helpers.datasets import all_images

pytestmark = pytest.mark.usefixtures("cache")


def test_digits_are_enlarged_scans_with_equal_channels():
    from sklearn.datasets import load_digits

    data = load_dataset("digits")
    assert (len(data.train), len(data.test), data.num_classes, data.resolution) == (1437, 360, 10, 32)
    images = torch.cat([all_images(data.train), all_images(data.test)])
    assert images.shape == (1797, 3, 32, 32) and images.dtype == torch.float32
    small = images[:, :, ::4, ::4]
    assert torch.equal(small.repeat_interleave(4, 2).repeat_interleave(4, 3), images)
    assert torch.equal(images[:, 0], images[:, 1]) and torch.equal(images[:, 0], images[:, 2])
    labels = torch.cat([data.train.labels, data.test.labels])
    bunch = load_digits()
    ours = sorted(zip((small[:, 0] * 16).flatten(1).int().tolist(), labels.tolist(), strict=True))
    theirs = sorted(zip(bunch.data.astype(int).tolist(), bunch.target.tolist(), strict=True))
    assert ours == theirs  # every scan once, with its label
    assert not data.train.is_uint8_exact  # multiples of 1/16 are not multiples of 1/255


def test_digits_split_is_fixed_and_balanced():
    data = load_dataset("digits")
    assert data.digest == load_dataset("digits").digest
    assert data.test.labels[:10].tolist() == load_dataset("digits", need_train=False).test.labels[:10].tolist()
    for count in (50, 200, 1437):
        per_class = data.train.first(count).labels.bincount(minlength=10)
        assert per_class.min() >= count // 10 - 4 and per_class.max() <= count // 10 + 4
    assert data.test.labels.bincount().min() >= 34


def test_digits_file_equals_scikit_learn():
    from sklearn.datasets import load_digits

    from robobench.data.digits import _read_scans

    pixels, labels = _read_scans()
    bunch = load_digits()
    assert (pixels == bunch.images).all() and (labels == bunch.target).all()
