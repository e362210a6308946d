"""Measure time, CPU time and peak memory of training stages. The device is synchronized at both ends."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass
class Account:
    """Cost of one stage so far."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0  # of all threads; much less than threads x seconds if other programs use the CPU
    peak_memory_bytes: int = 0


class Stopwatch:
    """Accounts by stage name. Only code inside `account(name)` is counted."""

    def __init__(
        self,
        device: str = "cpu",
        wall: Callable[[], float] = time.perf_counter,
        cpu: Callable[[], float] = time.process_time,
    ) -> None:
        self.device, self._wall, self._cpu = device, wall, cpu
        self.accounts: dict[str, Account] = {}

    def _synchronize(self) -> None:
        if self.device.startswith("cuda"):
            torch.cuda.synchronize(self.device)

    @contextmanager
    def account(self, name: str) -> Iterator[Account]:
        """Add the time of the block to an account. Waits for queued GPU work at both ends."""
        entry = self.accounts.setdefault(name, Account())
        self._synchronize()
        reset_peak_memory(self.device)
        wall, cpu = self._wall(), self._cpu()
        try:
            yield entry
        finally:
            self._synchronize()
            entry.seconds += self._wall() - wall
            entry.cpu_seconds += self._cpu() - cpu
            entry.peak_memory_bytes = max(entry.peak_memory_bytes, peak_memory(self.device))


def reset_peak_memory(device: str) -> None:
    """Start a new measurement of peak memory, where the system allows it (CUDA, Linux)."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
    else:
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            return  # peak_memory then returns the peak since the process started, an upper bound


def peak_memory(device: str) -> int:
    """Return the peak since the last reset, in bytes: allocated on a GPU, resident of the process on a CPU."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
