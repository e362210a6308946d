"""Stopwatch accounts and peak memory."""

from __future__ import annotations

import torch

from robobench.core.memory import release_freed_memory
from robobench.core.timing import Stopwatch, peak_memory, reset_peak_memory
from tests.helpers.toys import FakeClock


def test_only_time_inside_accounts_is_counted():
    clock = FakeClock()
    stopwatch = Stopwatch(wall=clock, cpu=clock)
    clock.now += 5
    with stopwatch.account("train"):
        clock.now += 2
    clock.now += 7
    with stopwatch.account("train"):
        clock.now += 1
    with stopwatch.account("other"):
        clock.now += 10
    assert stopwatch.accounts["train"].seconds == 3
    assert stopwatch.accounts["other"].cpu_seconds == 10


def test_account_closes_after_error():
    clock = FakeClock()
    stopwatch = Stopwatch(wall=clock, cpu=clock)
    try:
        with stopwatch.account("train"):
            clock.now += 4
            raise RuntimeError
    except RuntimeError:
        pass
    assert stopwatch.accounts["train"].seconds == 4


def test_peak_memory_includes_freed_allocation():
    release_freed_memory()  # left by other tests
    reset_peak_memory("cpu")
    before = peak_memory("cpu")
    big = torch.ones(64 * 2**20 // 4)
    del big
    assert peak_memory("cpu") - before > 50 * 2**20
