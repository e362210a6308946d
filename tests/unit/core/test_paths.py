"""The folder of data sets, and whether a store can be written."""

from __future__ import annotations

import sys

import pytest

from robobench.core.paths import check_writable, data_root
from robobench.errors import RequestError


def test_unwritable_store_is_refused_and_nothing_created(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match="cannot be written"):
        check_writable(tmp_path / "file" / "store")
    check_writable(tmp_path / "new" / "store")
    assert not (tmp_path / "new").exists()


def test_data_root_is_argument_then_variable_then_cache(tmp_path, monkeypatch, cache):
    if sys.platform == "linux":
        assert data_root() == cache / "robobench" / "data"
    monkeypatch.setenv("ROBOBENCH_DATA", str(tmp_path / "named"))
    assert data_root() == tmp_path / "named"
    assert data_root(tmp_path) == tmp_path
    with pytest.raises(RequestError, match="is not a folder; create it"):
        data_root(tmp_path / "nowhere")
