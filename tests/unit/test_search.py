"""The core's stopping, compaction and restarts, on an attack that can be followed by hand."""

import pytest
import torch
from torch import nn

from robobench.api import IterativeAttack, NoConfig
from robobench.attacks.pgd import PGD, PGDConfig
from robobench.randomness import Noise
from robobench.search import State, search
from robobench.threat import ThreatModel

THREAT = ThreatModel("Linf", 1.0)


class Threshold(nn.Module):
    """Class 1 once the pixel reaches one half; counts the images it sees."""

    seen = 0

    def forward(self, images):
        self.seen += len(images)
        gap = images.flatten(1).sum(1) - 0.5
        return torch.stack((-gap, gap), dim=1)


class Climb(IterativeAttack):
    """Adds a tenth at every step, from the image (first restart) or a little above it (later ones)."""

    Config, name = NoConfig, "climb"
    steps, restarts = 3, 1
    starts = ()

    def start(self, images, labels, noise):
        self.starts = (*self.starts, len(images))
        offset = 0.0 if len(self.starts) == 1 else 0.15
        return State(images, labels, images + offset, noise, {"age": torch.zeros(len(images))})

    def step(self, model, state):
        with torch.no_grad():
            logits = model(state.adv)
        return state.moved(state.adv + 0.1, age=state.memory["age"] + 1), logits


def row(*values):
    return torch.tensor(values).view(-1, 1, 1, 1)


def run(attack, images, stop):
    model, labels = Threshold(), torch.zeros(len(images), dtype=torch.long)
    found = search(attack, model, images, labels, Noise.of(torch.arange(len(images)), 0), stop)
    return found.adv.flatten().tolist(), found.fooled.tolist(), model.seen


IMAGES = row(0.6, 0.45, 0.25, 0.0)  # wrong when clean, wrong after 1 step, after 3, never


def test_stop_first_returns_the_first_success_of_each_image_and_drops_it_from_the_batch():
    adv, fooled, seen = run(Climb(None, THREAT), IMAGES, "first")
    assert adv == pytest.approx([0.6, 0.55, 0.55, 0.3])
    assert fooled == [True, True, True, False]
    assert seen == 4 + 3 + 2 + 2  # three steps and the last look


def test_stop_never_returns_the_last_iterate_of_every_image():
    adv, fooled, seen = run(Climb(None, THREAT), IMAGES, "never")
    assert adv == pytest.approx([0.9, 0.75, 0.55, 0.3])
    assert fooled == [True, True, True, False]
    assert seen == 4 * 4


def test_a_restart_takes_only_the_images_that_survived():
    attack = Climb(None, THREAT)
    attack.restarts = 2
    adv, fooled, _ = run(attack, row(0.6, 0.1, 0.0), "never")
    assert attack.starts == (3, 2)
    assert adv == pytest.approx([0.9, 0.55, 0.45])
    assert fooled == [True, True, False]


def test_perturb_spends_the_full_budget():
    model, labels = Threshold(), torch.zeros(4, dtype=torch.long)
    adv = Climb(None, THREAT).perturb(model, IMAGES, labels, Noise.of(torch.arange(4), 0))
    assert adv.flatten().tolist() == pytest.approx([0.9, 0.75, 0.55, 0.3])


def test_the_clean_images_are_left_alone():
    images = IMAGES.clone()
    for stop in ("first", "never"):
        run(Climb(None, THREAT), images, stop)
    assert torch.equal(images, IMAGES)


def test_keeping_some_images_keeps_every_part_of_their_state():
    state = State(IMAGES, torch.arange(4), IMAGES + 1, Noise.of(torch.arange(4), 0), {"age": torch.arange(4)}, 7)
    kept = state[torch.tensor([False, True, False, True])]
    assert kept.labels.tolist() == kept.memory["age"].tolist() == [1, 3]
    assert kept.adv.flatten().tolist() == (IMAGES + 1).flatten()[[1, 3]].tolist()
    assert torch.equal(kept.noise.keys, state.noise.keys[[1, 3]])
    assert kept.iteration == 7


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_compaction_changes_no_verdict(digits_net, digits, norm):
    images, labels = digits[0][1000:1060], digits[1][1000:1060]
    threat = ThreatModel(norm, 0.08 if norm == "Linf" else 0.5)
    attack, noise = PGD(PGDConfig(steps=8, restarts=2), threat), Noise.of(torch.arange(60), "pgd")
    together = search(attack, digits_net, images, labels, noise, "first")
    threat.check(together.adv, images, "pgd")
    alone = [
        search(attack, digits_net, images[i : i + 1], labels[i : i + 1], noise[torch.tensor([i])], "first")
        for i in range(60)
    ]
    assert together.fooled.tolist() == [bool(found.fooled) for found in alone]
    assert 5 < together.fooled.sum() < 55
    verdicts = digits_net(together.adv).argmax(1) != labels
    assert torch.equal(verdicts, together.fooled)
    # Every image fooled by its last iterate is fooled by some iterate.
    one = PGD(PGDConfig(steps=8), threat)
    last = search(one, digits_net, images, labels, noise, "never").fooled
    assert not (last & ~search(one, digits_net, images, labels, noise, "first").fooled).any()
