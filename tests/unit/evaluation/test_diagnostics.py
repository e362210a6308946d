"""Gradient-masking diagnostics of models that mask their gradients, and of models that do not."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from robobench.attack_engine.base import Attack
from robobench.attacks.autoattack import AutoAttack, AutoAttackConfig
from robobench.attacks.fab import FABT, FABConfig
from robobench.attacks.fgsm import FGSM
from robobench.attacks.jitter import Jitter
from robobench.attacks.mifgsm import MIFGSM, MIFGSMConfig
from robobench.attacks.pgd import PGD, PGDConfig
from robobench.core.threat import ThreatModel
from robobench.errors import RequestError
from robobench.evaluation.diagnostics import Diagnostics, diagnose
from robobench.results.checks import CHECKS
from robobench.testing import Blobs, trained_net
from robobench.training.inner_maximization import pgd_ascent
from tests.helpers.toys import LinearTwoClass

COUNT, RADII = 40, (0.05, 0.1)


class Masked(nn.Module):
    """A model with functions before and after it that mislead attacks."""

    def __init__(self, net, before=lambda images: images, after=lambda logits: logits):
        super().__init__()
        self.net, self.before, self.after = net, before, after

    def forward(self, images):
        return self.after(self.net(self.before(images)))


class RandomSigns(Attack):
    """Tries random corners of the ball; uses no gradient."""

    name = "random-signs"
    gradient_free = True

    def attack_full_budget(self, model, images, labels, rng, options=None):
        best = images.clone()
        for number in range(30):
            adv = self.threat.project(
                images + self.threat.eps * rng.child("sign", number).normal_like(images).sign(), images
            )
            with torch.no_grad():
                success = model(adv).argmax(1) != labels
            best[success] = adv[success]
        return best


def make_attacks(steps=20):
    return [a for eps in RADII for a in (PGD(PGDConfig(steps=steps), linf(eps)), FGSM(FGSM.Config(), linf(eps)))]


def linf(eps):
    return ThreatModel("Linf", eps)


@pytest.fixture(scope="module")
def held_out(digits):
    return digits[0][1000 : 1000 + COUNT], digits[1][1000 : 1000 + COUNT]


@pytest.fixture(scope="module")
def robust_net(digits):
    """The model of `digits_net`, trained with PGD-2 adversarial training at Linf 0.1."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(512, 10),
    )  # fmt: skip
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    for epoch in range(3):
        threat = linf(0.1 * (epoch + 1) / 3)
        for rows in torch.randperm(1000).split(50):
            images, labels = digits[0][rows], digits[1][rows]

            def loss(adv, labels=labels):
                return F.cross_entropy(net(adv), labels, reduction="none")

            adv = pgd_ascent(loss, images, images, threat, 2, 0.7 * threat.eps)
            optimizer.zero_grad()
            loss(adv).mean().backward()
            optimizer.step()
    return net.eval().requires_grad_(False)


def test_robust_model_raises_nothing(robust_net, digits_net, held_out):
    others = [RandomSigns(RandomSigns.Config(), linf(0.05)), Jitter(Jitter.Config(), linf(0.1))]
    found = diagnose(robust_net, *held_out, [*make_attacks(), *others], source=digits_net, restarts=3, noise_draws=20)
    assert found.flags == [] and found.clean_accuracy > 0.9
    made = {f.check.name for f in found.findings if f.raised is False}
    assert made == CHECKS.keys() - {"transfer-only", "black-box-lowers-ensemble", "weak-source", "not-checked"}
    trace = next(t for t in found.traces if (t.attack, t.eps) == ("pgd", 0.1))
    assert len(trace.loss) == len(trace.success_rate) == 21
    assert trace.success_rate == sorted(trace.success_rate) and trace.loss[-1] > trace.loss[0]


def test_all_restarts_are_used(robust_net, held_out):
    """The trace shows the first restart only. An attack whose iterates leave the ball has no trace."""
    many = PGD(PGDConfig(steps=3, restarts=6), linf(0.15))
    found = diagnose(robust_net, *held_out, [many, FABT(FABConfig(steps=5), linf(0.15))], restarts=1, noise_draws=2)
    assert [trace.attack for trace in found.traces] == ["pgd"]
    diagnostics = Diagnostics(robust_net, *held_out, None, 1, 1)  # type: ignore[call-arg]
    diagnostics.check_interface()
    correct = diagnostics.correct
    left, once = (diagnostics.surviving_images(a) for a in (many, PGD(PGDConfig(steps=3), linf(0.15))))
    images, labels, rng = held_out[0][correct], held_out[1][correct], diagnostics.rng(many, correct)
    success = many.attack_early_stop(robust_net, images, labels, rng).success
    assert torch.equal(left[correct], ~success) and left.sum() < once.sum()


@pytest.mark.parametrize("norm", ["Linf", "L2"])  # with other attacks of its norm, and without
def test_ensemble_runs_on_few_classes(norm):
    data, net = Blobs(), trained_net(3)
    images, labels = data.images(torch.arange(12)), data.labels[:12]
    parts = AutoAttackConfig(attacks=("apgd-ce", "apgd-t", "square"), steps=2, queries=5)  # apgd-t needs 4 classes
    found = diagnose(
        net, images, labels, [*make_attacks(3), AutoAttack(parts, ThreatModel(norm, 0.05))], restarts=1, noise_draws=2
    )
    assert "black-box-lowers-ensemble" in {f.check.name for f in found.findings if f.raised is not None}


def test_linear_model_raises_nothing():
    images = torch.rand(40, 3, 4, 4)
    model = LinearTwoClass((3, 4, 4)).eval()
    found = diagnose(model, images, model(images).argmax(1), make_attacks(), restarts=2, noise_draws=10)
    assert found.flags == []


MASKING = {
    "rounded input": (lambda x: (8 * x).round() / 8, lambda z: z, {"zero-gradients", "survives-large-eps"}),
    "softmax": (lambda x: x, lambda z: (20 * z).softmax(1), {"softmax-output", "zero-gradients", "saturated-logits"}),
    "wrong sign": (lambda x: 2 * x.detach() - x, lambda z: z, {"gradient-mismatch"}),
    "noise": (lambda x: x + 0.2 * torch.randn_like(x), lambda z: z, {"random-output"}),
    "cut graph": (lambda x: x.detach(), lambda z: z, {"zero-gradients"}),
    "new leaf": (lambda x: x.detach().requires_grad_(), lambda z: z, {"zero-gradients"}),
    "infinite gradient": (lambda x: x + 0 * (x * 0).sqrt(), lambda z: z, {"non-finite-gradients"}),
    "NaN gradient on the way": (  # once the first pixel, which is black in these images, is not black
        lambda x: x + 0 * ((x[:, :1, :1, :1] < 0.01) + 0 * x).sqrt(),
        lambda z: z,
        {"non-finite-gradients"},
    ),
}


@pytest.mark.parametrize("kind", MASKING)
def test_masking_is_flagged(kind, digits_net, held_out):
    before, after, expected = MASKING[kind]
    model = Masked(digits_net, before, after).eval()
    found = diagnose(model, *held_out, make_attacks(), source=digits_net, restarts=2, noise_draws=10)
    assert expected <= set(found.flags)
    for f in found.findings:
        if f.raised:
            assert f.measured and f.check.source and f.check.threshold and f.check.next_step


class Maze(nn.Module):
    """Correct at its images. The gradient does not point to where it misclassifies."""

    def __init__(self, images, radius):
        super().__init__()
        self.images, self.radius = images, radius

    def forward(self, adv):
        images, ramp = self.images[: len(adv)], torch.linspace(-1, 1, adv[0].numel()).view_as(adv[0])
        distance = (adv - images).abs().flatten(1).mean(1)
        lure = (adv * ramp).flatten(1).sum(1) - (images * ramp).flatten(1).sum(1)
        wrong = (distance > self.radius) & (lure.abs() < 1.2)
        return torch.stack((4 - 8 * wrong.float() - 0.1 * lure, torch.zeros_like(lure)), 1)


def test_stronger_noise_and_black_box_are_flagged():
    images = torch.full((30, 3, 8, 8), 0.5)
    attacks = [PGD(PGDConfig(steps=12), linf(0.05)), RandomSigns(RandomSigns.Config(), linf(0.05))]
    labels = torch.zeros(30, dtype=torch.long)
    found = diagnose(Maze(images, 0.03).eval(), images, labels, attacks, restarts=2, noise_draws=20)
    assert {"noise-stronger", "black-box-stronger"} <= set(found.flags)


def test_training_mode_is_flagged_and_restored(held_out):
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(192, 10))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    found = diagnose(model, *held_out, make_attacks(5), restarts=1, noise_draws=2)
    assert "train-mode" in found.flags and model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_images_out_of_range_are_flagged(digits_net, held_out):
    found = diagnose(digits_net, 4 * held_out[0] - 2, held_out[1], make_attacks())
    assert "input-range" in found.flags and found.traces == []


def test_restart_check_needs_random_start(robust_net, held_out):
    fixed, random = MIFGSM(MIFGSMConfig(steps=2), linf(0.05)), PGD(PGDConfig(steps=2), linf(0.05))
    for attacks, raised, text in (
        ([fixed], None, "not checked: needs a many-step attack with a random start"),
        ([fixed, random], False, "of pgd"),
    ):
        found = diagnose(robust_net, *held_out, attacks, restarts=1, noise_draws=1)
        (finding,) = (f for f in found.findings if f.check.name == "restarts-help")
        assert finding.raised is raised and text in finding.measured


def test_too_few_steps_are_flagged(robust_net, held_out):
    slow = [PGD(PGDConfig(steps=12, relative_step=0.02), linf(0.1))]
    found = diagnose(robust_net, *held_out, slow, restarts=1, noise_draws=1)
    assert "loss-still-rising" in found.flags


def test_batch_dependent_model_is_flagged(digits_net, held_out):
    model = nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), digits_net).eval()
    found = diagnose(model, *held_out, make_attacks(2), restarts=1, noise_draws=1)
    assert "batch-dependent" in found.flags and "random-output" not in found.flags


def test_diagnosis_needs_many_step_attack(digits_net, held_out):
    with pytest.raises(RequestError, match="add one to --attacks"):
        diagnose(digits_net, *held_out, [FGSM(FGSM.Config(), linf(0.1))])
