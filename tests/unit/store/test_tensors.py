"""Files of tensors and arrays."""

import numpy as np
import torch
from safetensors.torch import load_file

from robobench.store.tensors import save_array, save_tensors


def test_save_tensors_separates_shared_memory(tmp_path):
    base = torch.arange(12.0).view(3, 4)
    save_tensors({"row": base[0], "transposed": base.T}, tmp_path / "state.safetensors")
    loaded = load_file(tmp_path / "state.safetensors")
    assert torch.equal(loaded["row"], base[0]) and torch.equal(loaded["transposed"], base.T)


def test_save_array_equals_numpy_file(tmp_path):
    whole = np.random.default_rng(0).random((7, 3, 2), dtype=np.float32)
    save_array([whole[:4], whole[4:]], tmp_path / "parts.npy")
    np.save(tmp_path / "whole.npy", whole)
    assert (tmp_path / "parts.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()
