"""Extra training images, such as images of a generative model, read from disk as they are needed.

The keys are those of the public generated sets (github.com/wzekai99/DM-Improves-AT): `image` (N, H, W, 3) uint8 and
`label` (N,).
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from robobench.data.split import Split
from robobench.errors import RequestError

KEYS = ("image", "label")
ALLOWED = "give an .npz with image (N, H, W, 3) uint8 and label (N,), or a folder with image.npy and label.npy"
LOCAL_HEADER_BYTES = 30  # of a member of a zip file, before its name


def load_extra(path: Path, *, num_classes: int, resolution: int, device: Any = "cpu") -> Split:
    """Return extra training images as a split. The images stay on disk.

    Args:
        resolution: side of the real images in pixels; other sizes are resized to it.

    Raises:
        RequestError: the file is missing, compressed or damaged, or its images or labels do not fit.
    """
    if not path.exists():
        raise RequestError(f"--extra: no file '{path}'; {ALLOWED}")
    try:
        images, labels = _map_folder(path) if path.is_dir() else _map_archive(path)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, struct.error) as err:
        raise RequestError(f"--extra '{path}' cannot be read ({' '.join(str(err).split())[:120]}); {ALLOWED}") from err
    _check(path, images, labels, num_classes)
    return Split(
        _Reader(images),
        torch.from_numpy(np.asarray(labels).astype(np.int64)),
        _digest(path),
        is_uint8_exact=True,
        resolution=None if images.shape[1:3] == (resolution, resolution) else resolution,
        device=device,
    )


def _map_folder(path: Path) -> tuple[Any, Any]:
    images, labels = (np.load(path / f"{key}.npy", mmap_mode="r", allow_pickle=False) for key in KEYS)
    return images, labels


def _map_archive(path: Path) -> tuple[Any, Any]:
    """Map `image` of an uncompressed .npz, which starts at a fixed place in the file; load `label`."""
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        member = archive.getinfo("image.npy")
        if member.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"it is compressed; unpack it: unzip '{path}' -d FOLDER, then --extra FOLDER")
        file.seek(member.header_offset)
        name_bytes, field_bytes = struct.unpack_from("<HH", file.read(LOCAL_HEADER_BYTES), 26)
        file.seek(name_bytes + field_bytes, 1)
        version = np.lib.format.read_magic(file)
        read: Any = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
        if dtype.hasobject or fortran:
            raise ValueError("image is not a plain array in C order")
        images = np.memmap(path, dtype, "r", file.tell(), shape)
        with archive.open("label.npy") as stream:
            labels = np.lib.format.read_array(cast(Any, stream), allow_pickle=False)
    return images, labels


def _check(path: Path, images: Any, labels: Any, num_classes: int) -> None:
    if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8 or len(images) == 0:
        raise RequestError(f"--extra '{path}': image is {images.dtype} of shape {images.shape}; {ALLOWED}")
    if labels.shape != (len(images),) or labels.dtype.kind not in "iu":
        raise RequestError(
            f"--extra '{path}': label is {labels.dtype} of shape {labels.shape} for {len(images)} images; {ALLOWED}"
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        raise RequestError(
            f"--extra '{path}': labels must be 0 to {num_classes - 1}, got {low} to {high}; give images of the same "
            "classes"
        )


def _digest(path: Path) -> str:
    """Return the first 16 digits of the SHA-256 of the files. It is kept beside them until they change."""
    files = [path / f"{key}.npy" for key in KEYS] if path.is_dir() else [path]
    state = [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    cache = (path if path.is_dir() else path.parent) / f".{path.name}.digest.json"
    with suppress(OSError, ValueError, KeyError, TypeError):
        stored = json.loads(cache.read_text())
        if stored["files"] == state:
            return str(stored["sha256"])[:16]
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(2**22):
                digest.update(block)
    with suppress(OSError):  # a read-only folder: computed again in the next run
        cache.write_text(json.dumps({"files": state, "sha256": digest.hexdigest()}))
    return digest.hexdigest()[:16]


class _Reader:
    """Reads single images of an array (N, H, W, 3) from its file.

    The array is not read through its mapping: pages of a mapping count as memory of this process, and random reads
    would touch all of them.
    """

    def __init__(self, images: Any) -> None:
        self.path, self.begin = Path(images.filename), int(images.offset)
        self.shape, self.bytes = images.shape[1:], int(images[0].nbytes)

    def __call__(self, index: Tensor) -> Tensor:
        """Return images (B, 3, H, W) uint8 for an index (B,) int64."""
        pixels = np.empty((len(index), *self.shape), np.uint8)
        with self.path.open("rb", buffering=0) as file:
            for row, number in zip(pixels, index.tolist(), strict=True):
                data = os.pread(file.fileno(), self.bytes, self.begin + number * self.bytes)
                row[...] = np.frombuffer(data, np.uint8).reshape(self.shape)
        return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
