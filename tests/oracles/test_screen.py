"""Screening: the probability margin, MALT's order of targets, the budget, and Square for masked models."""

import math

import pytest
import torch
from torch import Tensor, nn

from robobench.attack_engine.loop import run_iterative_attack
from robobench.attack_engine.state import AttackState
from robobench.attacks.apgd import APGDMALT, APGDPM, APGDConfig, MALTConfig
from robobench.attacks.autoattack import AutoAttack, AutoAttackConfig
from robobench.attacks.screen import Screen, ScreenConfig
from robobench.core.rng import KeyedRng
from robobench.core.threat import ThreatModel
from robobench.evaluation.model_checks import tell_about_masking

THREAT = ThreatModel("Linf", 8 / 255)


def probability_margin(logits: Tensor, labels: Tensor) -> Tensor:
    probs = logits.softmax(1)
    wrong = probs.scatter(1, labels[:, None], 0).amax(1)
    return wrong - probs.gather(1, labels[:, None]).squeeze(1)


def pm_loss(logits: Tensor, labels: Tensor) -> Tensor:
    state = AttackState(logits, labels, logits, KeyedRng.of(torch.arange(len(labels)), 0))
    return APGDPM(APGDConfig(), THREAT).loss(logits, state)


def test_pm_loss_is_log_of_probability_margin():
    logits, labels = torch.randn(50, 5, dtype=torch.float64, requires_grad=True), torch.arange(50) % 5
    loss, margin = pm_loss(logits, labels), probability_margin(logits, labels)
    assert torch.allclose(loss, (1 + margin).log())
    ours, theirs = (torch.autograd.grad(value.sum(), logits)[0] for value in (loss, margin))
    assert torch.allclose(nn.functional.cosine_similarity(ours, theirs), torch.ones(50, dtype=torch.float64))


def test_pm_gradient_survives_confident_logits():
    """At a gap of 200 the probabilities are 1 and 0 in float32. The gradient is that of the logit gap."""
    logits, labels = torch.tensor([[200.0, 0.0, -50.0]], requires_grad=True), torch.tensor([0])
    (naive,) = torch.autograd.grad(probability_margin(logits, labels).sum(), logits)
    (ours,) = torch.autograd.grad(pm_loss(logits, labels).sum(), logits)
    assert naive.abs().max() == 0
    assert ours.tolist()[0] == pytest.approx([-1, 1, 0], abs=1e-5)


class Scaled(nn.Module):
    """A linear model whose closest class is not the most likely one."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 27, generator=torch.Generator().manual_seed(0)))
        self.weight.data *= torch.tensor([1.0, 0.1, 0.3, 1, 3, 10])[:, None]

    def forward(self, images: Tensor) -> Tensor:
        return (images - 0.5).flatten(1) @ self.weight.T


@pytest.mark.parametrize(("norm", "dual"), [("Linf", 1), ("L2", 2), ("L1", math.inf)])
def test_malt_order_is_distance_on_linear_model(norm, dual):
    """Each image keeps its own targets after others have left the batch."""
    model, images = Scaled().requires_grad_(False), torch.rand(30, 3, 3, 3)
    labels = model(images).argmax(1)
    seen: dict[int, list[int]] = {}

    class Spy(APGDMALT):
        def choose_target(self, model, state):
            state = super().choose_target(model, state)
            if state.iteration == 0:
                for row, target in zip(state.rng.index.tolist(), state.memory["target"].tolist(), strict=True):
                    seen.setdefault(row, []).append(target)
            return state

    attack = Spy(MALTConfig(steps=1, targets=3), ThreatModel(norm, 0.01))
    rng = KeyedRng.of(torch.arange(30), 0)
    result = run_iterative_attack(attack, model, images, labels, rng, early_stop=True)
    assert 0 < result.success.sum() < 30
    logits, weight = model(images), model.weight
    gap = logits.gather(1, labels[:, None]) - logits
    distance = gap / (weight[labels][:, None] - weight[None]).norm(p=dual, dim=2).clamp_min(1e-9)
    distance[torch.arange(30), labels] = math.inf
    for row, targets in seen.items():
        assert targets == distance[row].argsort()[: len(targets)].tolist()
    assert {len(targets) for targets in seen.values()} >= {1, 3}
    assert any(targets[0] != logits[row].topk(2).indices[1] for row, targets in seen.items())


class Counting(nn.Module):
    """A model that no attack changes, which counts forward passes and input gradients."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.passes, self.scale = 0, torch.linspace(1, 0, classes)

    def forward(self, images: Tensor) -> Tensor:
        self.passes += 1
        if images.requires_grad:
            images.register_hook(self.count_gradient)
        return self.scale + 1e-6 * images.flatten(1).sum(1, keepdim=True) * self.scale

    def count_gradient(self, gradient: Tensor) -> None:
        self.passes += 1


@pytest.mark.parametrize("norm", ["Linf", "L1"])
@pytest.mark.parametrize("classes", [3, 10, 30])
def test_screen_spends_its_stated_budget(norm, classes):
    images, labels, model = torch.rand(1, 3, 8, 8), torch.zeros(1, dtype=torch.long), Counting(classes)
    attack, spent = Screen(ScreenConfig(), ThreatModel(norm, 0.05)), []
    for attack.masking_suspected in (False, True):
        model.passes = 0
        attack.attack_early_stop(model, images, labels, KeyedRng.of(torch.arange(1), 0))
        spent.append(model.passes)
    assert max(spent) - (classes > 3) == attack.cost <= 1500  # one more forward for the number of classes
    assert max(Screen(ScreenConfig(), ThreatModel(n, 1)).cost for n in ("Linf", "L2", "L1")) <= 1500


class Steps(nn.Module):
    """Rounds images to multiples of 0.1, whose gradient is zero, and compares two halves."""

    def forward(self, images: Tensor) -> Tensor:
        rounded = (10 * images).round() / 10 + 0 * images
        top, bottom = rounded.chunk(2, 2)
        return torch.stack([part.flatten(1).mean(1) for part in (top, bottom)], 1)


def test_square_runs_if_masking_is_suspected():
    images = torch.rand(20, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    found = {}
    for model, eps in ((Steps(), 0.06), (Scaled(), 0.06)):
        images = images[:, :, :3, :3] if isinstance(model, Scaled) else images
        labels, attack = model(images).argmax(1), Screen(ScreenConfig(steps=5), ThreatModel("Linf", eps))
        tell_about_masking(attack, model, images, labels)
        attack.attack_early_stop(model, images, labels, KeyedRng.of(torch.arange(20), 0))
        found[type(model).__name__] = [part.name for part in attack.components]
        if attack.masking_suspected:
            assert attack.attack_early_stop(model, images, labels, KeyedRng.of(torch.arange(20), 0)).success.any()
    assert found == {
        "Steps": ["apgd-ce", "apgd-pm", "square"],
        "Scaled": ["apgd-ce", "apgd-pm", "apgd-malt"],
    }


def test_autoattack_may_start_from_screen():
    names = ("screen", "apgd-ce", "apgd-t", "fab-t", "square")
    attack = AutoAttack(AutoAttackConfig(attacks=names), THREAT)
    assert attack.budget.text == "extended: screen, apgd-ce 100, apgd-t 100x9, fab-t 100x9, square 5000"
    assert not attack.budget.reduced and not attack.budget.standard
    attack.masking_suspected = True
    assert attack.components[0].masking_suspected
