"""One seed, one thread, and a small trained network that several files attack."""

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

torch.set_num_threads(1)  # on networks this small, more threads only wait for each other


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Give every test the same draws, whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def no_strangers() -> Iterator[None]:
    """A user's plug-in that a test loaded is gone after it; our own stay."""
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
    """The 1,797 scanned digits at 8 px: images (N, 3, 8, 8) in [0, 1], labels (N,)."""
    from sklearn.datasets import load_digits

    scans = load_digits()
    images = torch.tensor(scans.images / 16, dtype=torch.float32)[:, None].repeat(1, 3, 1, 1)
    return images, torch.tensor(scans.target)


@pytest.fixture(scope="session")
def digits_net(digits: tuple[Tensor, Tensor]) -> nn.Module:
    """A small network trained on the first 1,000 digits; eval mode, no parameter gradients."""
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
    """Put caches and data roots into a folder of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "cache"))
    monkeypatch.delenv("ROBOBENCH_DATA", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def factory(tmp_path: Path) -> str:
    """A file of a user's with functions that make networks, or fail to: its path, before `:FUNCTION`."""
    (tmp_path / "mine.py").write_text(FACTORY)
    return f"{tmp_path / 'mine.py'}"
