"""Training against several norms: each batch draws one by its key, and its examples lie in that ball."""

import pytest
import torch

from robobench.core.alternating_threat import AlternatingThreat
from robobench.core.rng import seed_from
from robobench.core.threat import ThreatModel
from robobench.core.timing import Stopwatch
from robobench.defenses.at import ATConfig, ATObjective
from robobench.testing import Blobs, SmallNet
from robobench.training.context import TrainRuntime
from robobench.training.loop import run_train
from robobench.training.selection import quick_accuracy
from tests.helpers.toys import LinearTwoClass
from tests.helpers.training import checkpoint_in, stage_of

MEMBERS = ThreatModel("Linf", 8 / 255), ThreatModel("L2", 0.5), ThreatModel("L1", 12.0)


class Recorded(ATObjective):
    """Adversarial training that records the norm of every batch, and stops at step `dies_at`."""

    def __init__(self, threat, dies_at=None):
        super().__init__(SmallNet(), threat, ATConfig(inner_steps=4, relative_step=0.5))
        self.norms, self.dies_at = [], dies_at

    def inner_maximization(self, batch):
        if len(self.norms) == self.dies_at:
            raise ZeroDivisionError
        adv = super().inner_maximization(batch)
        if batch.epoch < 4:  # the warm-up has epoch 4
            self.norms.append(self.threat.norm)
        current = next(one for one in MEMBERS if one.norm == self.threat.norm)
        current.check(adv, batch.images, "at")
        assert float(current.distance(adv, batch.images).mean()) > 0.8 * current.eps
        return adv


def train(dies_at=None, checkpoint=None):
    """Train for four epochs of three batches; return the norms and the weights."""
    objective = Recorded(AlternatingThreat(MEMBERS), dies_at)
    runtime = TrainRuntime("cpu", "fp32", 5, threat=objective.threat)
    run_train(
        runtime, stage_of(objective, epochs=4, batch_size=16), Blobs(48, size=8), Stopwatch(), checkpoint=checkpoint
    )
    return objective.norms, objective.state_dict()


def test_norm_of_a_batch_follows_from_its_key(tmp_path):
    norms, weights = train()
    by_key = [seed_from("threat", 5, "train", epoch, step) % 3 for epoch in range(4) for step in range(3)]
    assert norms == [MEMBERS[number].norm for number in by_key]
    assert set(norms) == {"Linf", "L2", "L1"}
    with pytest.raises(ZeroDivisionError):
        train(dies_at=7, checkpoint=checkpoint_in(tmp_path))
    later, resumed = train(checkpoint=checkpoint_in(tmp_path))
    assert later == norms[7:]
    assert all(torch.equal(value, resumed[name]) for name, value in weights.items())


def test_norms_are_equally_likely():
    threat, drawn = AlternatingThreat(MEMBERS), []
    for step in range(3000):
        threat.draw(0, "train", 0, step)
        drawn.append(threat.norm)
    assert all(920 < drawn.count(one.norm) < 1080 for one in MEMBERS)  # three standard deviations


def test_epoch_selection_counts_images_that_survive_all():
    """Of a linear model, exactly the images farther from the boundary than each ball reaches."""
    model, data = LinearTwoClass((3, 32, 32)), Blobs(200)
    data.labels = (model.gap(data.images(torch.arange(200))) < 0).long()
    gaps = model.gap(data.images(torch.arange(200))).detach().abs()
    linf, l2 = ThreatModel("Linf", 0.002), ThreatModel("L2", 0.12)
    reach = [linf.eps * float(model.w.detach().norm(p=1)), l2.eps * float(model.w.detach().norm())]
    assert 0.5 < reach[0] / reach[1] < 2
    runtime = TrainRuntime("cpu", "fp32", 0)
    for members, most in (((linf,), reach[0]), ((l2,), reach[1]), ((linf, l2), max(reach))):
        found = quick_accuracy(runtime, model, data, AlternatingThreat(members), 200)
        assert found.clean == 1.0
        assert found.pgd == pytest.approx(float((gaps > most).double().mean()), abs=0.011)


def test_several_norms_have_a_key_of_their_own():
    assert MEMBERS[0].recipe() == {"norm": "Linf", "eps": 8 / 255}  # as before: keys of one norm do not move
    several = AlternatingThreat(MEMBERS)
    assert several.recipe() == {"norm": "Linf:8/255,L2:0.5,L1:12", "eps": None}
    assert str(several) == "Linf 8/255, L2 0.5, L1 12"
    assert several == AlternatingThreat(MEMBERS) != AlternatingThreat(MEMBERS[:2])
