"""How many processes share the work, and which requests are refused."""

from __future__ import annotations

import importlib.util
import os

import pytest

from robobench.distributed import launch
from robobench.errors import RequestError


def test_missing_extra_names_install_command(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "lightning_fabric" else find(name))
    with pytest.raises(RequestError, match="2 devices need lightning-fabric; in a clone of robobench: uv sync"):
        launch.resolve_device_count(2, "cpu")


def test_devices_flag_must_agree_with_torchrun(monkeypatch):
    for name, value in {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "4"}.items():
        monkeypatch.setitem(os.environ, name, value)
    with pytest.raises(RequestError, match="--devices 2: torchrun started 4 processes; leave the flag out"):
        launch.resolve_device_count(2, "cpu")
