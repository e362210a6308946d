"""Choose the device, the precision and whether to compile."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch
from torch import Tensor

from robobench.errors import RequestError

COMPILE_MIN_IMAGES = 200_000  # images seen in training; with fewer, compiling costs more time than it saves


def resolve_device(name: str) -> str:
    """Return the device for auto, cpu, cuda or cuda:N; raises RequestError if it is not available."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name != "cpu" and not name.startswith("cuda"):
        raise RequestError(f"unknown device '{name}'; known: auto, cpu, cuda, cuda:N")
    if name.startswith("cuda"):
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        _, _, number = name.partition(":")
        if count == 0:
            raise RequestError(f"device '{name}' is not available: no CUDA device found; use --device cpu")
        if number and (not number.isdigit() or int(number) >= count):
            raise RequestError(f"device '{name}' is not available; there are {count} CUDA devices, from cuda:0")
    return name


def has_bf16(device: str) -> bool:
    """Return whether the device supports bfloat16 matrix products in hardware."""
    if device.startswith("cuda"):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    flags = Path("/proc/cpuinfo")
    return flags.exists() and not {"amx_bf16", "avx512_bf16"}.isdisjoint(flags.read_text().split())


def resolve_precision(name: str, device: str) -> str:
    """Return the precision for auto, fp32 or bf16; auto is bf16 if the device supports it in hardware.

    It applies to training and to the gradient steps of white-box attacks.
    """
    if name not in ("auto", "fp32", "bf16"):
        raise RequestError(f"unknown precision '{name}'; known: auto, fp32, bf16")
    if name == "auto":
        return "bf16" if has_bf16(device) else "fp32"
    return name


def tf32_setting(device: str) -> dict[str, bool]:
    """Return whether float32 convolutions may use TF32, for artifact keys; empty on a CPU."""
    if not device.startswith("cuda"):
        return {}
    return {"tf32": torch.backends.cudnn.allow_tf32 and os.environ.get("NVIDIA_TF32_OVERRIDE") != "0"}


def has_compiler() -> bool:
    """Return whether the C++ compiler that torch.compile needs is installed."""
    return any(map(shutil.which, (os.environ.get("CXX", "g++"), "g++", "clang++")))


def should_compile(name: str, device: str, images: int) -> bool:
    """Return whether to compile the model for a training that sees `images` images.

    Args:
        name: auto, on or off. auto compiles long trainings on a CPU, where it was measured to be faster
            (docs/scaling.md). On GPUs it has not been measured.
    """
    if name not in ("auto", "on", "off"):
        raise RequestError(f"unknown --compile '{name}'; known: auto, on, off")
    if name == "on" and not has_compiler():
        raise RequestError(
            "--compile on needs a C++ compiler, but neither g++ nor clang++ is on PATH; use --compile off"
        )
    return name == "on" or (name == "auto" and device == "cpu" and images >= COMPILE_MIN_IMAGES and has_compiler())


def fork_stream(device: torch.device) -> torch.cuda.Stream | None:
    """Return a CUDA stream that waits for the work queued so far, for `torch.cuda.stream`; None on a CPU."""
    if device.type != "cuda":
        return None
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(device))
    return stream


def join_stream(stream: torch.cuda.Stream | None, result: Tensor) -> Tensor:
    """Make the current stream wait for a forked one, and return the tensor computed there."""
    if stream is not None:
        current = torch.cuda.current_stream(result.device)
        current.wait_stream(stream)
        result.record_stream(current)
    return result
