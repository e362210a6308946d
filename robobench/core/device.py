"""Devices, their arithmetic, and whether networks are compiled for them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch
from torch import Tensor

from robobench.errors import RequestError

COMPILE_MIN_IMAGES = 200_000  # images seen in training; with fewer, compiling takes longer than it saves


def resolve_device(name: str) -> str:
    """Turn auto, cpu, cuda or cuda:N into an available device; raises RequestError."""
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


def has_bf16(device: str) -> bool:
    """Return whether the device multiplies bfloat16 matrices in hardware."""
    if device.startswith("cuda"):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    flags = Path("/proc/cpuinfo")
    return flags.exists() and not {"amx_bf16", "avx512_bf16"}.isdisjoint(flags.read_text().split())


def resolve_precision(name: str, device: str) -> str:
    """Turn auto, fp32 or bf16 into a precision; auto is bf16 where the device has the hardware for it.

    It holds for training and for the gradient steps of white-box attacks.
    """
    if name not in ("auto", "fp32", "bf16"):
        raise RequestError(f"unknown precision '{name}'; known: auto, fp32, bf16")
    if name == "auto":
        return "bf16" if has_bf16(device) else "fp32"
    return name


def tf32_setting(device: str) -> dict[str, bool]:
    """Return whether float32 convolutions may use TF32, as part of a key; empty on devices without TF32."""
    if not device.startswith("cuda"):
        return {}
    return {"tf32": torch.backends.cudnn.allow_tf32 and os.environ.get("NVIDIA_TF32_OVERRIDE") != "0"}


def has_compiler() -> bool:
    """Return whether the C++ compiler that torch.compile needs is installed."""
    return any(map(shutil.which, (os.environ.get("CXX", "g++"), "g++", "clang++")))


def should_compile(name: str, device: str, images: int) -> bool:
    """Turn auto, on or off into whether networks are compiled for a training that sees `images` images.

    auto compiles long trainings on a CPU, where a gain was measured (docs/scaling.md). On GPUs none was measured yet.
    """
    if name not in ("auto", "on", "off"):
        raise RequestError(f"unknown --compile '{name}'; known: auto, on, off")
    if name == "on" and not has_compiler():
        raise RequestError("--compile on needs a C++ compiler, and neither g++ nor clang++ is on PATH; leave it out")
    return name == "on" or (name == "auto" and device == "cpu" and images >= COMPILE_MIN_IMAGES and has_compiler())


def fork_stream(device: torch.device) -> torch.cuda.Stream | None:
    """Return a CUDA stream that starts after the work queued so far, for `torch.cuda.stream`; None on a CPU."""
    if device.type != "cuda":
        return None
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(device))
    return stream


def join_stream(stream: torch.cuda.Stream | None, result: Tensor) -> Tensor:
    """Let the current stream wait for a forked one, and return the tensor that was made there."""
    if stream is not None:
        current = torch.cuda.current_stream(result.device)
        current.wait_stream(stream)
        result.record_stream(current)
    return result
