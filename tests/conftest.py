"""Fixtures of all tests: a fixed seed, one thread, the digits data, and a small trained model."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robobench.core.registry import ATTACKS, DEFENSES
from robobench.plugins.discovery import _plugin_files
from tests.helpers.toys import FACTORY

torch.set_num_threads(1)  # more threads are slower for models this small


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Give every test the same random numbers in any order."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def unload_plugin_files() -> Iterator[None]:
    """Remove the plug-in files that a test loaded; built-in plug-ins stay."""
    yield
    _plugin_files.clear()
    for registry in (ATTACKS, DEFENSES):
        for name, cls in list(registry._classes.items()):
            if cls.__module__.startswith("robobench_plugin_"):
                del registry._classes[name]
    for module in [name for name in sys.modules if name.startswith("robobench_plugin_")]:
        del sys.modules[module]


@pytest.fixture(scope="session")
def digits() -> tuple[Tensor, Tensor]:
    """Return the 1,797 digits of scikit-learn: images (N, 3, 8, 8) in [0, 1], labels (N,)."""
    from sklearn.datasets import load_digits

    scans = load_digits()
    images = torch.tensor(scans.images / 16, dtype=torch.float32)[:, None].repeat(1, 3, 1, 1)
    return images, torch.tensor(scans.target)


@pytest.fixture(scope="session")
def digits_net(digits: tuple[Tensor, Tensor]) -> nn.Module:
    """Return a small model trained on the first 1,000 digits, in eval mode, without parameter gradients."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 10),
    )
    images, labels = digits[0][:1000], digits[1][:1000]
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(5):
        for rows in torch.randperm(1000).split(50):
            optimizer.zero_grad()
            F.cross_entropy(net(images[rows]), labels[rows]).backward()
            optimizer.step()
    return net.eval().requires_grad_(False)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Use a temporary folder for caches and data sets."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "cache"))
    monkeypatch.delenv("ROBOBENCH_DATA", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def factory(tmp_path: Path) -> str:
    """Write a file with model factories, some of which fail; return its path, to be followed by `:FUNCTION`."""
    (tmp_path / "mine.py").write_text(FACTORY)
    return f"{tmp_path / 'mine.py'}"
