"""Memory: settings of the C library's allocator, and smaller batches when memory runs out."""

from __future__ import annotations

import ctypes
import platform
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import torch

A = TypeVar("A")

ON_DEVICE_BYTES = 2**30  # arrays below this size are copied to the GPU; larger ones stay in host memory or on disk
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # parameters of mallopt, from glibc's malloc.h
MAX_THRESHOLD, SAFE_THRESHOLD = 2**30, 2**25  # bytes; older versions of glibc accept at most 32 MiB
OOM_MESSAGES = (  # errors of torch, cuBLAS and cuDNN that have no exception class of their own
    "can't allocate memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


def keep_freed_memory() -> bool:
    """Let glibc keep freed memory for the next training step; return False without glibc.

    Every step allocates the same large tensors again; returning them to the system costs page faults.
    Measured on resnet20, batch size 128: input gradients are 18 % faster, training is 6 % faster.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(TRIM_THRESHOLD, 2**31 - 1)) and bool(
        mallopt(MMAP_THRESHOLD, MAX_THRESHOLD) or mallopt(MMAP_THRESHOLD, SAFE_THRESHOLD)
    )


def release_freed_memory() -> None:
    """Return freed memory to the system (glibc only), so that the next stage's peak does not include it."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def is_out_of_memory(err: Exception) -> bool:
    """Return whether an error means that memory ran out: on a device, in torch's CPU allocator, or in Python."""
    return isinstance(err, (MemoryError, torch.OutOfMemoryError)) or any(text in str(err) for text in OOM_MESSAGES)


def split_on_oom(
    what: str, run: Callable[..., A], *batch: Any, on_split: Callable[[str], None] = warnings.warn
) -> list[A]:
    """Run a function of a batch. If memory runs out, retry with half the images.

    Args:
        what: name of the work for the message.
        run: called with consecutive rows of each argument in `batch`.
        batch: sequences or tensors with one row per image.
        on_split: called with a message each time the size is halved.

    Returns:
        The results of `run`, in order; a single one if memory is sufficient.
    """
    parts: list[A] = []
    begin, size = 0, len(batch[0])
    while begin < len(batch[0]) or not parts:
        try:
            parts.append(run(*(rows[begin : begin + size] for rows in batch)))
            begin += size
            size = min(size, len(batch[0]) - begin)
            continue
        except Exception as err:
            if size < 2 or not is_out_of_memory(err):
                raise
        # Outside the handler, so that the tensors of the failed attempt are free.
        half = (size + 1) // 2
        on_split(f"{what}: out of memory with {size} images; retrying with {half}")
        size = half
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return parts
