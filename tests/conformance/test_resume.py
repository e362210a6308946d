"""Every defense of one stage resumes inside an epoch with the same bits: buffers, optimizer and random numbers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from robobench.core.timing import Stopwatch
from robobench.plugins.discovery import discover, load_defense
from robobench.training.loop import run_train
from tests.helpers.defenses import frozen_models, setup_of
from tests.helpers.toys import color_blobs
from tests.helpers.training import RUNTIME, checkpoint_in

SEVERAL_STAGES = ("macd", "rocl", "mimir", "acl")


class Data:
    """24 images of three classes."""

    def __init__(self):
        self._images, self.labels = color_blobs(24)

    def __len__(self):
        return 24

    def images(self, index):
        return self._images[index]


class Fragile(nn.Module):
    """Raises ZeroDivisionError at a step. The warm-up runs on a copy."""

    def __init__(self, objective, dies_at):
        super().__init__()
        self.objective, self.dies_at, self.steps = objective, dies_at, 0

    def forward(self, batch):
        if self.steps == self.dies_at:
            raise ZeroDivisionError
        self.steps += 1
        return self.objective(batch)


def final_state(name, checkpoint=None, dies_at=None):
    """Train two epochs of three batches."""
    torch.manual_seed(0)
    cls = load_defense(name)
    steps = {"inner_steps": 2} if "inner_steps" in cls.Config.__dataclass_fields__ else {}
    defense = cls(cls.Config(epochs=2, batch_size=8, augment="none", **steps))
    setup = setup_of(required_models=frozen_models(sorted(defense.requires)))
    (stage,) = defense.stages(setup)
    stage.objective = Fragile(stage.objective, dies_at)
    _, objective = run_train(RUNTIME, stage, Data(), Stopwatch(), checkpoint=checkpoint)
    return {key: value.clone() for key, value in objective.state_dict().items()}


@pytest.mark.parametrize("name", sorted(set(discover("defense")) - set(SEVERAL_STAGES)))
def test_resumed_defense_ends_with_same_bits(name, tmp_path):
    expected = final_state(name)
    with pytest.raises(ZeroDivisionError):
        final_state(name, checkpoint_in(tmp_path), dies_at=4)  # in the second epoch, or between replays
    state = final_state(name, checkpoint_in(tmp_path))
    different = [key for key in expected if not torch.equal(state[key], expected[key])]
    assert different == []
