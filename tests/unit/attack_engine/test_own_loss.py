"""A user's loss in place of an attack's."""

import pytest
import torch
from torch import nn

import robobench
from robobench.core.threat import ThreatModel
from robobench.errors import GradientError, RequestError
from robobench.planning.plan import AttackSpec
from robobench.plugins.discovery import load_attack

LOSSES = """
def down(logits, labels):
    return -logits[:, 0]

def mean(logits, labels):
    return logits.mean()

def flat(logits, labels):
    return 0 * logits.sum(1)

def hinge(logits, labels):
    return (logits[:, 0] - logits[:, 1]).clamp(max=0)
"""


@pytest.fixture
def losses(tmp_path):
    (tmp_path / "mine.py").write_text(LOSSES)
    return f"{tmp_path / 'mine.py'}"


@pytest.mark.parametrize("name", ["pgd", "apgd-ce"])
def test_attack_increases_own_loss(name, losses):
    """Logit 0 is the sum of the pixels, and the label is 1: the cross-entropy raises it, the user's loss lowers it."""
    model, images = nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), torch.full((3, 3, 2, 2), 0.5)
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[1.0], [0.0]]).expand(2, 12))
        model[1].bias.copy_(torch.tensor([0.0, 9.0]))
    flags = {"labels": torch.ones(3).long(), "eps": 0.1, "steps": 10}
    usual = robobench.attack(name, model, images, **flags)
    own = robobench.attack(name, model, images, loss=f"{losses}:down", **flags)
    assert torch.allclose(usual, images + 0.1, atol=1e-6) and torch.allclose(own, images - 0.1, atol=1e-6)


@pytest.mark.parametrize("name", ["pgd", "cw", "apgd-ce"])
def test_own_loss_without_gradient_is_an_error(name, losses):
    """An attack that cannot move would leave the clean accuracy as a robust one."""
    model, images = nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), torch.rand(3, 3, 2, 2)
    labels = model(images).argmax(1)
    with pytest.raises(GradientError, match=r"flat' has a gradient of 0 at all 3 images .* cannot move"):
        robobench.attack(name, model, images, labels=labels, eps=0.1, loss=f"{losses}:flat")
    adversarial = 1 - labels  # no image is classified correctly, where a hinge is flat with good reason
    with torch.no_grad():
        model[1].weight.zero_()
        model[1].bias.copy_(torch.tensor([1.0, 0.0]))
    robobench.attack(name, model, images, labels=torch.ones_like(adversarial), eps=0.1, loss=f"{losses}:hinge")


def test_own_loss_is_part_of_key_and_budget(losses, tmp_path):
    cls, threat = load_attack("pgd"), ThreatModel("Linf", 0.1)
    plain = AttackSpec(cls(cls.Config(), threat), ("white-box",)).recipe["config"]
    assert set(plain) == {"steps", "relative_step", "restarts"}
    attack = cls(cls.Config(loss=f"{losses}:down"), threat)
    assert (
        attack.budget.reduced and "loss=" in attack.budget.text and "loss" not in cls(cls.Config(), threat).budget.text
    )
    before = AttackSpec(attack, ("white-box",)).recipe
    (tmp_path / "mine.py").write_text(LOSSES.replace("-logits", "-2 * logits"))
    assert AttackSpec(cls(cls.Config(loss=f"{losses}:down"), threat), ("white-box",)).recipe != before


@pytest.mark.parametrize(
    ("text", "message"), [("no.py:f", "no loss at"), (":up", "has no function"), (":mean", "one value")]
)
def test_wrong_losses_are_refused(losses, text, message):
    model, images = nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), torch.full((3, 3, 2, 2), 0.5)
    loss = losses + text if text.startswith(":") else text
    with pytest.raises(RequestError, match=message):
        robobench.attack("pgd", model, images, torch.ones(3).long(), eps=0.1, loss=loss)
