"""Saves of unfinished work."""

import pytest

from robobench.store.artifacts import Store
from robobench.store.partial import PartialResults


def save(states, number, *, keep=False):
    with states.saving(number, keep=keep) as work:
        (work / "state.json").write_text(str(number))


@pytest.fixture
def states(tmp_path):
    return PartialResults(Store(tmp_path), "checkpoints/one")


def test_newest_save_replaces_earlier_ones(states):
    assert states.newest() is None and states.last == -1
    for number in (0, 1):
        save(states, number)
    assert states.last == 1 and states.find(0) is None
    assert (states.newest() / "state.json").read_text() == "1"


def test_damaged_newest_save_is_skipped(states):
    for number in (0, 16):
        save(states, number, keep=True)
    (states.find(16) / "state.json").write_text("other")
    assert (states.newest() / "state.json").read_text() == "0"


def test_clear_removes_all_saves(states):
    for number in (0, 16):
        save(states, number, keep=True)
    states.clear()
    assert states.newest() is None and states.last == -1
