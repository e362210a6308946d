"""When models are compiled."""

import shutil

import pytest

from robobench.core.device import COMPILE_MIN_IMAGES, should_compile
from robobench.errors import RequestError


def test_auto_compiles_long_trainings_on_cpu(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/g++" if name == "g++" else None)
    assert not should_compile("auto", "cpu", COMPILE_MIN_IMAGES - 1)
    assert should_compile("auto", "cpu", COMPILE_MIN_IMAGES)
    assert not should_compile("auto", "cuda", 10**9) and should_compile("on", "cuda", 1)
    assert not should_compile("off", "cpu", 10**9)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert not should_compile("auto", "cpu", 10**9)
    with pytest.raises(RequestError, match=r"needs a C\+\+ compiler"):
        should_compile("on", "cpu", 1)
