"""Precompute stages: order of the array, memory, and saved parts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from robobench.core.timing import Stopwatch
from robobench.store.tensors import save_array
from robobench.testing import Blobs
from robobench.training import precompute
from robobench.training.base import Batch, Precompute
from robobench.training.precompute import run_precompute
from tests.helpers.training import RUNTIME, checkpoint_in


def double_stage(batch_size: int) -> Precompute:
    return Precompute(name="twice", function=lambda batch: batch.images * 2, batch_size=batch_size)


def test_array_is_aligned_with_training_images():
    data = Blobs()
    record, parts = run_precompute(RUNTIME, double_stage(7), data, Stopwatch())
    assert torch.equal(torch.from_numpy(np.concatenate(parts)), data.images(torch.arange(48)) * 2)
    assert record.images == 48


def test_batches_are_split_when_memory_runs_out():
    def compute(max_images: int) -> list[np.ndarray]:
        def function(batch: Batch) -> torch.Tensor:
            if len(batch.images) > max_images:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return batch.images.amax((1, 2, 3)) + batch.rng.uniform(1)[:, 0]

        stage = Precompute(name="largest", function=function, batch_size=20)
        return run_precompute(RUNTIME, stage, Blobs(), Stopwatch())[1]

    assert np.array_equal(np.concatenate(compute(6)), np.concatenate(compute(20)))


def test_saved_parts_are_reused_and_damaged_ones_recomputed(tmp_path):
    seen: list[int] = []

    def double(batch: Batch) -> torch.Tensor:
        if len(seen) == 5:
            raise ZeroDivisionError
        seen.extend(batch.index[:1].tolist())
        return batch.images * 2

    stage, data = Precompute(name="twice", function=double, batch_size=8), Blobs()
    with pytest.raises(ZeroDivisionError):
        run_precompute(RUNTIME, stage, data, Stopwatch(), checkpoint_in(tmp_path))
    (tmp_path / "artifacts/checkpoints/one/00000016/array.npy").write_bytes(b"\x93NUMPY")
    seen.clear()
    _, parts = run_precompute(RUNTIME, stage, data, Stopwatch(), checkpoint_in(tmp_path))
    assert seen == [16, 24, 32, 40][: len(seen)] and 16 in seen
    np.testing.assert_array_equal(np.concatenate(parts), (data.images(torch.arange(48)) * 2).numpy())


def test_large_array_is_saved_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(precompute, "MAX_UNSAVED_BYTES", 20 * 3 * 32 * 32 * 4)
    stage, data = double_stage(10), Blobs()
    for _ in range(2):  # computed, then resumed
        _, parts = run_precompute(RUNTIME, stage, data, Stopwatch(), checkpoint_in(tmp_path, every=1))
        assert [(len(part), isinstance(part, np.memmap)) for part in parts] == [(20, True), (20, True), (8, False)]
        save_array(parts, tmp_path / "rows.npy")
        np.save(tmp_path / "whole.npy", (data.images(torch.arange(48)) * 2).numpy())
        assert (tmp_path / "rows.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()
