"""Fixtures for the tests of models."""

import pytest
import torch


@pytest.fixture
def images():
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
