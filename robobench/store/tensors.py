"""Write tensors and arrays to files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import save_file
from torch import Tensor

Array = np.ndarray[Any, Any]


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write a state dict as safetensors. Tensors are copied, since safetensors refuses shared memory."""
    save_file({name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}, path)


def save_array(parts: Sequence[Array], path: Path) -> None:
    """Write arrays, concatenated along their first axis, as one .npy file; they are not concatenated in memory."""
    shape = (sum(map(len, parts)), *parts[0].shape[1:])
    header = {"descr": np.lib.format.dtype_to_descr(parts[0].dtype), "fortran_order": False, "shape": shape}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for part in parts:
            file.write(np.ascontiguousarray(part).data)
