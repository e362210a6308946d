"""Hardware, robobench version and git commit, which are stored with every result."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as package_version
from pathlib import Path


def version() -> str:
    """Return robobench's version, "0+unknown" if it is not installed."""
    try:
        return package_version("robobench")
    except PackageNotFoundError:
        return "0+unknown"


@functools.cache
def hardware(device: str, devices: int = 1) -> str:
    """Return the name of the GPU, or of the CPU with its core count, preceded by the number of GPUs or processes."""
    import torch

    if device.startswith("cuda"):
        several = f"{devices} x " if devices > 1 else ""
        return several + torch.cuda.get_device_name(torch.device(device))
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = names[0].split(":", 1)[1].strip() if names else model
    isa = torch.backends.cpu.get_cpu_capability()
    several = f"{devices} processes on " if devices > 1 else ""
    return f"{several}{model}, {os.cpu_count()} cores, {isa}"


@functools.cache
def commit() -> str:
    """Return robobench's git commit, with '+' if tracked files were changed; '' outside a clone."""
    root = Path(__file__).parents[2]
    try:
        run = functools.partial(subprocess.run, cwd=root, capture_output=True, text=True, timeout=10)
        head = run(["git", "rev-parse", "--short=12", "HEAD"])
        if head.returncode or not (root / "pyproject.toml").exists():
            return ""
        dirty = run(["git", "status", "--porcelain", "--untracked-files=no"]).stdout.strip()
        return head.stdout.strip() + ("+" if dirty else "")
    except (OSError, subprocess.TimeoutExpired):
        return ""
