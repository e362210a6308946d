"""Collective operations with one process, and the shards of a batch."""

from __future__ import annotations

import pytest
import torch

from robobench.distributed import collectives


def test_one_process_returns_its_inputs():
    values = torch.randn(3, 2, requires_grad=True)
    assert collectives.gather_batch(values) == (values, 0)
    mean = collectives.mean_over_batch(values, 3)
    assert torch.equal(mean, values) and not mean.requires_grad
    assert collectives.wrap_ddp(module := torch.nn.Linear(2, 2)) is module
    assert list(collectives.map_across_ranks([1, 2, 3], lambda n: n * n)) == [1, 4, 9]
    with pytest.raises(ZeroDivisionError):
        collectives.on_rank_zero(lambda: 1 / 0)


def test_shards_cover_the_batch(monkeypatch):
    """Shards contain every image once, and their weighted means average to the mean of the batch."""
    monkeypatch.setattr(collectives, "world_size", lambda: 3)
    shards = []
    for rank in range(3):
        monkeypatch.setattr(collectives, "rank", lambda rank=rank: rank)
        shards.append(collectives.local_shard(torch.arange(11)))
    assert torch.equal(torch.cat(shards), torch.arange(11)) and [len(s) for s in shards] == [4, 4, 3]
    means = torch.tensor([collectives.shard_weight(len(s), 11) * s.double().mean() for s in shards])
    assert means.mean() == torch.arange(11).double().mean()
