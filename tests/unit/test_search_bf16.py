"""Searching in bfloat16: faster where the hardware has it, with the last word to float32."""

import pytest
import torch
from torch import Tensor, nn

from robobench.api import IterativeAttack, NoConfig
from robobench.plugins import load_attack
from robobench.randomness import Noise
from robobench.search import State, in_bfloat16, search
from robobench.threat import ThreatModel


class Scale(nn.Module):
    """Two logits from an image's mean: weights and biases that bfloat16 cannot tell apart, one rounding step from 1."""

    def __init__(self, weight: tuple[float, float], bias: tuple[float, float] = (0.0, 0.0)) -> None:
        super().__init__()
        self.head = nn.Linear(1, 2)
        self.head.weight.data, self.head.bias.data = torch.tensor(weight)[:, None], torch.tensor(bias)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(images.flatten(1).mean(1, keepdim=True))
        return logits


class Climb(IterativeAttack):
    """Adds a tenth at every step."""

    Config, name, steps, restarts, rounds = NoConfig, "climb", 3, 1, True

    def start(self, images: Tensor, labels: Tensor, noise: Noise) -> State:
        return State(images, labels, images, noise)

    def step(self, model: nn.Module, state: State) -> tuple[State, Tensor]:
        with torch.no_grad():
            logits = model(state.adv)
        assert logits.dtype == torch.float32
        return state.moved(state.adv + 0.1), logits


def attacked(attack, model, images, labels, *, rounded, stop="first"):
    with in_bfloat16(rounded):
        return search(attack, model, images, labels, Noise.of(torch.arange(len(images)), 0), stop)


def test_an_image_that_only_bfloat16_gets_wrong_stands():
    """Class 1 leads by a thousandth wherever an image is not black; in bfloat16 both are equal and class 0 is taken."""
    model, images, labels = Scale((1.0, 1.001)), torch.full((4, 3, 4, 4), 0.7), torch.ones(4, dtype=torch.long)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(images).argmax(1).tolist() == [0] * 4
    cls = load_attack("pgd")
    found = attacked(cls(cls.Config(), ThreatModel("Linf", 0.1)), model, images, labels, rounded=True)
    assert not found.fooled.any()


def test_the_last_look_is_in_float32():
    """Class 1 leads from one half on, by less than bfloat16 sees: three steps from 0.3 and the last look get there."""
    model, labels = Scale((1.0, 1.001), (0.0005, 0.0)), torch.zeros(1, dtype=torch.long)
    found = attacked(Climb(None, ThreatModel("Linf", 1.0)), model, torch.full((1, 1, 2, 2), 0.3), labels, rounded=True)
    assert found.fooled.tolist() == [True]
    assert found.adv.mean().item() == pytest.approx(0.6)


class Returns(Climb):
    """Climbs, and calls its second point the best."""

    def finish(self, state: State, logits: Tensor) -> Tensor:
        return state.images + 0.1


def test_the_best_point_counts_where_the_last_does_not():
    """Class 1 leads up to one half only: the last point is classified right, the point called best is not."""
    model, labels = Scale((1.0, 0.999), (0.0, 0.0005)), torch.zeros(1, dtype=torch.long)
    images = torch.full((1, 1, 2, 2), 0.3)
    found = attacked(Returns(None, ThreatModel("Linf", 1.0)), model, images, labels, rounded=True)
    assert found.fooled.tolist() == [True]
    assert found.adv.mean().item() == pytest.approx(0.4)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_verdicts_are_those_of_float32_up_to_an_image_and_hold_in_float32(digits_net, digits, norm):
    images, labels = (part[-100:] for part in digits)
    threat = ThreatModel(norm, 0.05 if norm == "Linf" else 0.5)
    for name in ("pgd", "cw", "mifgsm"):
        cls = load_attack(name)
        attack = cls(cls.Config(steps=10), threat)
        exact, rounded = (attacked(attack, digits_net, images, labels, rounded=r) for r in (False, True))
        assert (exact.fooled != rounded.fooled).sum() <= 1
        with torch.no_grad():
            wrong = digits_net(rounded.adv).argmax(1) != labels
        assert wrong[rounded.fooled].all()
        threat.check(rounded.adv[rounded.fooled], images[rounded.fooled], name)


@pytest.mark.parametrize("name", ["apgd-ce", "apgd-t", "fab-t", "square", "jitter", "noise"])
def test_what_compares_losses_or_turns_at_a_success_stays_in_float32(digits_net, digits, name):
    images, labels = (part[-40:] for part in digits)
    cls = load_attack(name)
    attack = cls(cls.Config(**cls.presets.get("quick", {})), ThreatModel("Linf", 0.05))
    exact, rounded = (attacked(attack, digits_net, images, labels, rounded=r) for r in (False, True))
    assert torch.equal(exact.adv, rounded.adv)


def test_a_full_budget_stays_in_float32(digits_net, digits):
    images, labels = (part[-100:] for part in digits)
    cls = load_attack("pgd")
    attack = cls(cls.Config(steps=3), ThreatModel("Linf", 0.05))
    exact, rounded = (attacked(attack, digits_net, images, labels, rounded=r, stop="never") for r in (False, True))
    assert torch.equal(exact.adv, rounded.adv)
