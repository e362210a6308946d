"""Work that need not wait for other work: a second queue of a GPU. On a CPU everything runs in turn."""

from __future__ import annotations

import torch
from torch import Tensor


def fork(device: torch.device) -> torch.cuda.Stream | None:
    """Return a stream that begins where the current one stands, for `torch.cuda.stream`; None (no stream) on a CPU."""
    if device.type != "cuda":
        return None
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(device))
    return stream


def join(stream: torch.cuda.Stream | None, result: Tensor) -> Tensor:
    """Let the current stream wait for a forked one, and return the tensor that was made there."""
    if stream is not None:
        current = torch.cuda.current_stream(result.device)
        current.wait_stream(stream)
        result.record_stream(current)
    return result
