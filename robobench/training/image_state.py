"""Values per training image that a method updates in every epoch, kept in files beside the checkpoints."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robobench.distributed import collectives
from robobench.store.artifacts import wrap_write_errors

MAX_FILES = 4  # at once: the two of the newest checkpoint, the one that an epoch reads, and the one that it writes


class ImageState:
    """Float32 values of shape `shape` for every training image. What an epoch writes is read by the next one.

    There is one file per epoch. So a repeated step reads the same values: the second pass of a weight perturbation, a
    batch that is split when memory runs out, or a step after resuming. Checkpoints hold none of the values. The two
    files that the newest checkpoint needs are kept, and older ones are removed.

    It is not an nn.Module. A copy of it, as in the warm-up of an objective, reads zeros and writes nothing.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape, self.bytes = shape, 4 * int(np.prod(shape))
        self.folder: Path | None = None
        self._files: dict[int, int] = {}  # by the epoch that reads them: file descriptors
        self._kept: set[int] = set()
        self._temporary: TemporaryDirectory[str] | None = None  # of rank 0; removed with this object at the latest

    def __deepcopy__(self, memo: dict[int, Any]) -> ImageState:
        return ImageState(self.shape)

    def open(self, folder: Path | None) -> None:
        """Use a folder, which several processes share; None means a temporary one."""
        if folder is None and collectives.is_rank_zero():
            self._temporary = TemporaryDirectory()
        temporary = self._temporary
        self.folder = folder or Path(collectives.on_rank_zero(lambda: temporary.name if temporary else ""))

    def read(self, index: Tensor, epoch: int) -> Tensor:
        """Return what epoch - 1 wrote for the images at `index` (B,): (B, *shape); zeros where it wrote nothing."""
        if self.folder is None or not self._path(epoch).exists():
            return torch.zeros(len(index), *self.shape, device=index.device)
        file, rows = self._file(epoch), []
        for i in index.tolist():
            found = os.pread(file, self.bytes, i * self.bytes)
            rows.append(np.frombuffer(found.ljust(self.bytes, b"\0"), np.float32))
        return torch.from_numpy(np.stack(rows).reshape(-1, *self.shape)).to(index.device)

    def write(self, index: Tensor, epoch: int, values: Tensor) -> None:
        """Store values (B, *shape) of the images at `index` (B,) for the next epoch.

        Raises:
            StorageError: the disk is full.
        """
        if self.folder is None:
            return
        rows = values.detach().to("cpu", torch.float32).contiguous().numpy().reshape(len(index), -1)
        file = self._file(epoch + 1)
        with wrap_write_errors(self._path(epoch + 1)):
            for i, row in zip(index.tolist(), rows, strict=True):
                if os.pwrite(file, row.tobytes(), i * self.bytes) < self.bytes:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def flush(self, epoch: int) -> None:
        """Write what a checkpoint in this epoch needs to disk."""
        for number in {epoch, epoch + 1} & self._files.keys():
            os.fsync(self._files[number])

    def keep(self, epoch: int) -> None:
        """Keep the files that a run which resumes in this epoch needs, and no others that are older."""
        self._kept = {epoch, epoch + 1}

    def is_complete(self, epoch: int) -> bool:
        """Return whether a run can resume in this epoch."""
        return epoch == 0 or self._path(epoch).exists()

    def close(self) -> None:
        """Close all files; remove them if their folder is a temporary one."""
        for file in self._files.values():
            os.close(file)
        self._files = {}
        if self._temporary:
            self._temporary.cleanup()

    def _path(self, epoch: int) -> Path:
        assert self.folder is not None
        return self.folder / f"epoch-{epoch}"

    def _file(self, epoch: int) -> int:
        """Return the file that an epoch reads, open; remove files that no epoch needs any more."""
        if epoch not in self._files:
            assert self.folder is not None
            with wrap_write_errors(self._path(epoch)):
                self.folder.mkdir(parents=True, exist_ok=True)
                self._files[epoch] = os.open(self._path(epoch), os.O_RDWR | os.O_CREAT, 0o644)
            for number in [n for n in self._files if n < epoch - 1 and n not in self._kept]:
                os.close(self._files.pop(number))
                if collectives.is_rank_zero():
                    self._path(number).unlink(missing_ok=True)
        return self._files[epoch]
