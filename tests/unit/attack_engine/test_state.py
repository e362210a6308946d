"""State of an iterative attack."""

import torch

from robobench.attack_engine.state import AttackState
from robobench.core.rng import KeyedRng
from tests.helpers.attacks import pixels


def test_indexing_keeps_all_parts():
    images, rng = pixels(0.6, 0.45, 0.25, 0.0), KeyedRng.of(torch.arange(4), 0)
    state = AttackState(images, torch.arange(4), images + 1, rng, {"age": torch.arange(4)}, 7)
    kept = state[torch.tensor([False, True, False, True])]
    assert kept.labels.tolist() == kept.memory["age"].tolist() == [1, 3]
    assert kept.adv.flatten().tolist() == (images + 1).flatten()[[1, 3]].tolist()
    assert torch.equal(kept.rng.keys, state.rng.keys[[1, 3]])
    assert kept.iteration == 7
