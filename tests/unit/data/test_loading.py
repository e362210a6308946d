"""`load_dataset` and `placeholder_dataset`: names, wrong values, sizes."""

from __future__ import annotations

import pytest
import torch

from robobench.data import load_dataset, placeholder_dataset
from tests.helpers.datasets import load_error

pytestmark = pytest.mark.usefixtures("cache")


def test_wrong_name_or_resolution_is_refused():
    assert "unknown data set 'cifar'; did you mean 'cifar10'? known: cifar10, cifar100, digits" in load_error("cifar")
    assert load_error("npz:") == "data set 'npz:' has no path; write npz:FILE"
    assert load_error("imagefolder:").endswith("write imagefolder:PATH")
    assert "resolution must be 1 or more, got 0" in load_error("digits", resolution=0)


def test_placeholder_has_size_of_data_set():
    placeholder = placeholder_dataset("cifar100", 64)
    assert (len(placeholder.train), len(placeholder.test), placeholder.num_classes) == (50_000, 10_000, 100)
    assert placeholder.test.images(torch.arange(3)).shape == (3, 3, 64, 64)
    assert placeholder_dataset("npz:mine.npz") is None


def test_placeholder_agrees_with_loaded_data():
    placeholder, data = placeholder_dataset("digits"), load_dataset("digits")
    assert (len(placeholder.train), len(placeholder.test)) == (len(data.train), len(data.test))
    assert (placeholder.num_classes, placeholder.resolution) == (data.num_classes, data.resolution)
