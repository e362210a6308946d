"""What makes two figures comparable: hardware, versions, commit, precision."""

from __future__ import annotations

import functools
import os
import platform
import shutil
import subprocess
from pathlib import Path

import torch

from robobench.errors import RequestError

WORTH_COMPILING = 200_000  # images seen: with fewer, compiling takes longer than it saves


@functools.cache
def hardware(device: str, devices: int = 1) -> str:
    """Name what did the work: a GPU's name, or the CPU's with its core count; before it how many GPUs or processes."""
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
    """Return the git commit robobench runs from, '+' added where files differ from it; '' outside git."""
    root = Path(__file__).parent.parent
    try:
        run = functools.partial(subprocess.run, cwd=root, capture_output=True, text=True, timeout=10)
        head = run(["git", "rev-parse", "--short=12", "HEAD"])
        if head.returncode or not (root / "pyproject.toml").exists():
            return ""
        dirty = run(["git", "status", "--porcelain", "--untracked-files=no"]).stdout.strip()
        return head.stdout.strip() + ("+" if dirty else "")
    except (OSError, subprocess.TimeoutExpired):
        return ""


def has_bf16(device: str) -> bool:
    """Say whether the device multiplies bfloat16 matrices in hardware."""
    if device.startswith("cuda"):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    flags = Path("/proc/cpuinfo")
    return flags.exists() and not {"amx_bf16", "avx512_bf16"}.isdisjoint(flags.read_text().split())


def arithmetic(device: str) -> dict[str, bool]:
    """Say whether float32 convolutions may round their factors to TF32; nothing where there is no such question."""
    if not device.startswith("cuda"):
        return {}
    return {"tf32": torch.backends.cudnn.allow_tf32 and os.environ.get("NVIDIA_TF32_OVERRIDE") != "0"}


def resolve_device(name: str) -> str:
    """Turn auto|cpu|cuda[:N] into a device that is there; raises RequestError."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name != "cpu" and not name.startswith("cuda"):
        raise RequestError(f"unknown device '{name}'; known: auto, cpu, cuda, cuda:N")
    if name.startswith("cuda"):
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        _, _, number = name.partition(":")
        if count == 0:
            raise RequestError(f"device '{name}' was asked for and no CUDA device is here; use --device cpu")
        if number and (not number.isdigit() or int(number) >= count):
            raise RequestError(f"device '{name}' is not here; there are {count} CUDA devices, from cuda:0")
    return name


def has_compiler() -> bool:
    """Whether the C++ compiler that torch.compile needs is there."""
    return any(map(shutil.which, (os.environ.get("CXX", "g++"), "g++", "clang++")))


def compiles(name: str, device: str, images: int) -> bool:
    """Turn auto|on|off into whether networks are compiled for a training that sees so many images.

    auto compiles long trainings on a CPU: there a gain was measured (docs/scaling.md), on GPUs none yet.
    """
    if name not in ("auto", "on", "off"):
        raise RequestError(f"unknown --compile '{name}'; known: auto, on, off")
    if name == "on" and not has_compiler():
        raise RequestError("--compile on needs a C++ compiler, and neither g++ nor clang++ is on PATH; leave it out")
    return name == "on" or (name == "auto" and device == "cpu" and images >= WORTH_COMPILING and has_compiler())


def resolve_precision(name: str, device: str) -> str:
    """Turn auto|fp32|bf16 into that of training and white-box search; auto is bf16 where the device has the units."""
    if name not in ("auto", "fp32", "bf16"):
        raise RequestError(f"unknown precision '{name}'; known: auto, fp32, bf16")
    if name == "auto":
        return "bf16" if has_bf16(device) else "fp32"
    return name
