"""Batch sizes, and gradient accumulation when memory runs out."""

import pytest
import torch
import torch.nn.functional as F

from robobench.errors import OutOfMemoryError
from robobench.testing import Blobs
from robobench.training.accumulation import one_step
from robobench.training.base import Batch, Loss
from robobench.training.sampling import batch_sizes
from tests.helpers.training import RUNTIME, STEPS, FragileObjective, train


def test_batches_have_nearly_equal_size():
    assert batch_sizes(1437, 128) == [120] * 9 + [119] * 3
    assert batch_sizes(5, 128) == [5]
    assert sum(batch_sizes(129, 128)) == 129 and min(batch_sizes(129, 128)) == 64


def test_batches_are_split_when_memory_runs_out():
    objective = FragileObjective(max_images=10)
    _, _, record = train(objective)
    assert record.flags == ["grad-accumulation-2"]
    assert objective.steps == 2 * STEPS


def test_accumulated_gradients_equal_batch_gradient():
    class Plain(FragileObjective):
        def forward(self, batch: Batch) -> Loss:
            return Loss(F.cross_entropy(self.model.eval()(batch.images), batch.labels))

    results = {}
    for accumulation_steps in (1, 3):
        objective = Plain()
        optimizer = torch.optim.SGD(objective.parameters(), lr=1.0)
        batch = RUNTIME.batch(Blobs(), torch.arange(20), "train", 0)
        loss = one_step(RUNTIME, objective, optimizer, batch, accumulation_steps)
        results[accumulation_steps] = (loss.total.detach(), objective.model.head.weight.detach())
    torch.testing.assert_close(results[1], results[3])


def test_whole_batches_and_pairs_are_not_split():
    with pytest.raises(OutOfMemoryError, match="depends on the whole batch"):
        train(FragileObjective(max_images=10), whole_batch=True)
    with pytest.raises(OutOfMemoryError, match="choose a smaller model"):
        train(FragileObjective(max_images=1))
