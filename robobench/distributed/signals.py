"""SIGINT and SIGTERM: the first one finishes the training step and saves a checkpoint, a second one exits immediately.

All processes of a group stop at the same step, whichever of them received the signal.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from robobench.distributed import collectives
from robobench.errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM)

_received: int | None = None  # number of the signal that was received
_deferring = False
_verbose = True


def _handle(signum: int, frame: FrameType | None) -> None:
    global _received
    _received = signum
    for number in SIGNALS if signum in SIGNALS else ():
        signal.signal(number, signal.SIG_DFL)
    if not _deferring:
        raise Interrupted(signum)
    if _verbose:
        os.write(2, b"\nsaving checkpoint; press Ctrl-C again to exit immediately\n")


@contextmanager
def handle_signals(verbose: bool = True, numbers: Sequence[signal.Signals] = SIGNALS) -> Iterator[None]:
    """Handle signals inside the block. Does nothing outside the main thread: only that receives signals."""
    global _received, _verbose
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _received, _verbose = None, verbose
    before = {number: signal.signal(number, _handle) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _received = None


@contextmanager
def forward_signals() -> Iterator[list[int]]:
    """Forward signals to the child processes, as SIGTERM; yields the list of received signals."""
    received: list[int] = []

    def forward(signum: int, frame: FrameType | None) -> None:
        received.append(signum)
        for child in multiprocessing.active_children():
            child.terminate()

    numbers = SIGNALS if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.signal(number, forward) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def defer_signals() -> Iterator[None]:
    """Do not raise at a signal inside the block; the code there calls `raise_if_stop_requested` where it can stop."""
    global _deferring
    before, _deferring = _deferring, True
    try:
        yield
    finally:
        _deferring = before


def stop_requested() -> bool:
    """Return whether this process received a signal."""
    return _received is not None


def raise_if_stop_requested() -> None:
    """Raise Interrupted if this or another process of the group received a signal."""
    signum = int(collectives.all_reduce_max(_received or 0))
    if signum:
        raise Interrupted(signum)
