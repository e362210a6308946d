"""Free AT: every batch is used m times, the backward pass moves the perturbation, and it survives to the next batch."""

import pytest
import torch
from torch import nn

from robobench.core.threat import ThreatModel
from robobench.core.timing import Stopwatch
from robobench.defenses.free_at import FreeAT, FreeATConfig, FreeATObjective
from robobench.testing import Blobs, SmallNet
from robobench.training.context import TrainRuntime
from robobench.training.loop import run_train
from tests.helpers.defenses import batch_of, setup_of
from tests.helpers.toys import LinearTwoClass

THREAT = ThreatModel("Linf", 0.05)


def objective_of(model, **changes):
    return FreeATObjective(model, THREAT, FreeATConfig(batch_size=4, **changes), (3, 4, 4))


def test_backward_pass_takes_signed_step():
    """On a linear model delta is -eps sign(w) for class 0 after one step; a step of eps / 2 needs two."""
    model = LinearTwoClass((3, 4, 4))
    batch = batch_of(torch.full((4, 3, 4, 4), 0.5), torch.zeros(4).long())
    target = (-0.05 * model.w.detach().sign()).view(1, 3, 4, 4).expand(4, -1, -1, -1)
    for relative_step, steps in ((1.0, 1), (0.5, 2)):
        objective = objective_of(model, relative_step=relative_step)
        for number in range(steps):
            torch.testing.assert_close(objective.delta, number / steps * target)
            objective(batch).total.backward()
        torch.testing.assert_close(objective.delta, target)
    assert model.w.grad is not None


def test_perturbation_is_clipped_and_kept_for_next_batch():
    objective = objective_of(LinearTwoClass((3, 4, 4)))
    objective(batch_of(torch.ones(4, 3, 4, 4), torch.zeros(4).long())).total.backward()
    assert objective.delta.max() <= 1e-7 and objective.delta.min() < -0.04  # white images
    kept = objective.delta.clone()
    objective(batch_of(torch.full((3, 3, 4, 4), 0.5), torch.ones(3).long())).total.backward()
    assert torch.equal(objective.delta[3], kept[3]) and not torch.equal(objective.delta[:3], kept[:3])


class Recorder(nn.Module):
    """Keeps the images of every step; the warm-up runs on a copy."""

    def __init__(self, objective):
        super().__init__()
        self.objective, self.seen = objective, []

    def forward(self, batch):
        self.seen.append(batch.index.tolist())
        return self.objective(batch)


@pytest.mark.parametrize("replays", [1, 3])
def test_core_replays_every_batch(replays):
    """Counts steps and images: the schedule sees every replay, and metrics are means over them."""
    rates, history = [], []
    defense = FreeAT(FreeATConfig(epochs=2, batch_size=16, augment="none", replays=replays, lr=0.05))
    (stage,) = defense.stages(setup_of(SmallNet(), image_shape=(3, 32, 32)))
    schedule = stage.schedule
    stage.objective = Recorder(stage.objective)
    stage.schedule = lambda time: (rates.append(time), schedule(time))[1]
    record, recorder = run_train(
        TrainRuntime("cpu", "fp32", 0), stage, Blobs(), Stopwatch(), lambda s, e, m: history.append(m["loss"])
    )
    seen = recorder.seen
    assert len(seen) == 2 * 3 * replays and record.images == 96
    for first in range(0, len(seen), replays):
        assert all(index == seen[first] for index in seen[first : first + replays])
    assert sorted(i for index in seen[: 3 * replays : replays] for i in index) == list(range(48))
    assert rates == pytest.approx([step / (3 * replays) for step in range(6 * replays)])
    assert 0 < history[1] < history[0] < 1.6


def test_weight_perturbation_is_refused():
    with pytest.raises(ValueError, match="awp_gamma would move twice"):
        FreeAT(FreeATConfig(awp_gamma=0.01, replays=2)).stages(setup_of(SmallNet()))
