"""Helpers for tests of data sets."""

from __future__ import annotations

import pytest
import torch

from robobench.data import load_dataset
from robobench.errors import RequestError


def all_images(split):
    return split.images(torch.arange(len(split)))


def load_error(name, **options):
    """Load a data set that must raise RequestError; return the message, one line."""
    with pytest.raises(RequestError) as caught:
        load_dataset(name, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)
