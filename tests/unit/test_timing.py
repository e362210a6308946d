from __future__ import annotations

import torch

from robobench.core.memory import release_freed_memory
from robobench.core.timing import Stopwatch, peak_memory, reset_peak_memory
from tests.helpers.toys import FakeClock


def test_only_what_runs_inside_an_account_is_counted():
    clock = FakeClock()
    watch = Stopwatch(wall=clock, cpu=clock)
    clock.now += 5
    with watch.account("train"):
        clock.now += 2
    clock.now += 7
    with watch.account("train"):
        clock.now += 1
    with watch.account("other"):
        clock.now += 10
    assert watch.accounts["train"].seconds == 3
    assert watch.accounts["other"].cpu_seconds == 10


def test_an_account_is_closed_after_an_error():
    clock = FakeClock()
    watch = Stopwatch(wall=clock, cpu=clock)
    try:
        with watch.account("train"):
            clock.now += 4
            raise RuntimeError
    except RuntimeError:
        pass
    assert watch.accounts["train"].seconds == 4


def test_peak_memory_sees_an_allocation_that_is_gone_again():
    release_freed_memory()  # of other tests
    reset_peak_memory("cpu")
    before = peak_memory("cpu")
    big = torch.ones(64 * 2**20 // 4)
    del big
    assert peak_memory("cpu") - before > 50 * 2**20
