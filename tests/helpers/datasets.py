"""What tests of data sets share."""

from __future__ import annotations

import pytest
import torch

from robobench.data import load_dataset
from robobench.errors import RequestError


def everything(split):
    return split.images(torch.arange(len(split)))


def refusal(name, **options):
    """Load what must be refused; return the one line."""
    with pytest.raises(RequestError) as caught:
        load_dataset(name, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)
