"""SIGINT and SIGTERM: the first one lets a training step end and saves, a second one leaves at once.

Processes that work in step leave at the same step, whichever of them the signal reached.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from robobench.errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM)

_asked: int | None = None  # the signal that came

_deferring = False

_speaks = True


def _handle(signum: int, frame: FrameType | None) -> None:
    global _asked
    _asked = signum
    for each in SIGNALS:
        signal.signal(each, signal.SIG_DFL)
    if not _deferring:
        raise Interrupted(signum)
    if _speaks:
        os.write(2, b"\nfinishing this step and saving; once more leaves at once\n")


@contextmanager
def handle_signals(speaks: bool = True) -> Iterator[None]:
    """Answer signals as above inside the block; only a process's main thread can."""
    global _asked, _speaks
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _asked, _speaks = None, speaks
    before = {each: signal.signal(each, _handle) for each in SIGNALS}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
        _asked = None


@contextmanager
def forward_signals() -> Iterator[list[int]]:
    """Pass signals on to the child processes inside the block, as SIGTERM; yields the list of those that came."""
    came: list[int] = []

    def pass_on(signum: int, frame: FrameType | None) -> None:
        came.append(signum)
        for child in multiprocessing.active_children():
            child.terminate()

    here = SIGNALS if threading.current_thread() is threading.main_thread() else ()
    before = {each: signal.signal(each, pass_on) for each in here}
    try:
        yield came
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


@contextmanager
def defer_signals() -> Iterator[None]:
    """Hold a signal back inside the block, which asks for it at its own good moments."""
    global _deferring
    before, _deferring = _deferring, True
    try:
        yield
    finally:
        _deferring = before


def stop_requested() -> bool:
    """Say whether a signal has come to this process."""
    return _asked is not None


def raise_if_stop_requested() -> None:
    """Raise Interrupted if a signal has come; to one of the processes in step is to all."""
    from robobench.distributed import collectives

    signum = int(collectives.all_reduce_max(_asked or 0))
    if signum:
        raise Interrupted(signum)
