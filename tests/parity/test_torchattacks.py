"""FGSM, PGD and Jitter against torchattacks: same start, same steps, same images."""

import copy

import pytest
import torch
import torchattacks

from robobench.attack_engine.loop import run_iterative_attack
from robobench.attack_engine.state import AttackState
from robobench.attacks.fgsm import FGSM
from robobench.attacks.jitter import Jitter, JitterConfig
from robobench.attacks.pgd import PGD, PGDConfig
from robobench.core.losses import MIN_LOG_ODDS, margin
from robobench.core.rng import KeyedRng
from robobench.core.threat import ThreatModel
from robobench.plugins.discovery import load_attack

EPS, STEP = 8 / 255, 2 / 255
COUNT = 100


@pytest.fixture
def held_out(digits_net, digits):
    """Return images without those so confident that the gradient of torch's cross-entropy loses its precision."""
    images, labels = digits[0][1000:1200], digits[1][1000:1200]
    logits = digits_net(images)
    precise = margin(logits, labels) > MIN_LOG_ODDS + 2
    return images[precise][:COUNT], labels[precise][:COUNT]


def make_rng(count, name="parity"):
    return KeyedRng.of(torch.arange(count), name)


def from_clean(attack_type):
    """Return the attack without its random start, as torchattacks with random_start=False."""

    class FromClean(attack_type):
        def start(self, images, labels, rng):
            return AttackState(images, labels, images.clone(), rng)

    return FromClean


def assert_same_images(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_fgsm_matches_torchattacks(digits_net, held_out):
    ours = FGSM(FGSM.Config(), ThreatModel("Linf", EPS)).attack_full_budget(digits_net, *held_out, make_rng(COUNT))
    assert_same_images(ours, torchattacks.FGSM(digits_net, eps=EPS)(*held_out))


@pytest.mark.parametrize("eps", [8 / 255, 0.1])
def test_pgd_matches_torchattacks(digits_net, held_out, eps):
    theirs = torchattacks.PGD(digits_net, eps=eps, alpha=eps / 4, steps=20, random_start=False)(*held_out)
    attack = from_clean(PGD)(PGDConfig(), ThreatModel("Linf", eps))
    assert_same_images(attack.attack_full_budget(digits_net, *held_out, make_rng(COUNT)), theirs)


def test_pgd_l2_matches_torchattacks(digits_net, held_out):
    # torchattacks adds 1e-10 to the norm of a gradient that is averaged over the batch. By default this shortens steps
    # on confident images by up to 1 %, and more for larger batches.
    reference = torchattacks.PGDL2(digits_net, eps=0.5, alpha=0.125, random_start=False, eps_for_division=1e-30)
    attack = from_clean(PGD)(PGDConfig(steps=10), ThreatModel("L2", 0.5))
    assert_same_images(attack.attack_full_budget(digits_net, *held_out, make_rng(COUNT)), reference(*held_out))


def test_pgd_with_random_start_matches_torchattacks(digits_net, held_out, monkeypatch):
    ours_start = PGD(PGDConfig(), ThreatModel("Linf", EPS)).start(*held_out, make_rng(COUNT).child("restart", 0))
    draw = ours_start.adv - held_out[0]
    monkeypatch.setattr(torch.Tensor, "uniform_", lambda self, low, high: self.copy_(draw))
    theirs = torchattacks.PGD(digits_net, eps=EPS, alpha=STEP, steps=20)(*held_out)
    ours = PGD(PGDConfig(), ThreatModel("Linf", EPS)).attack_full_budget(digits_net, *held_out, make_rng(COUNT))
    assert_same_images(ours, theirs)


def test_jitter_without_noise_matches_torchattacks(digits_net, held_out):
    theirs = torchattacks.Jitter(digits_net, eps=0.1, alpha=0.025, std=0, random_start=False)(*held_out)
    attack = from_clean(Jitter)(JitterConfig(std=0.0), ThreatModel("Linf", 0.1))
    result = run_iterative_attack(attack, digits_net, *held_out, make_rng(COUNT), early_stop=False)
    assert result.success.any()  # so that the loss was divided by the perturbation's size
    assert_same_images(result.adv, theirs)


def test_jitter_with_same_noise_matches_torchattacks(digits_net, held_out, monkeypatch):
    # float64: after the division by the perturbation's size, signs would depend on the last bit of float32.
    net, held_out = copy.deepcopy(digits_net).double(), (held_out[0].double(), held_out[1])
    keys, attack = make_rng(COUNT).child("restart", 0), Jitter(JitterConfig(), ThreatModel("Linf", 0.1))
    start = attack.start(*held_out, keys).adv - held_out[0]
    logits_noise = (keys.child("logits", step).normal(10) for step in range(10))
    monkeypatch.setattr(torch.Tensor, "uniform_", lambda self, low, high: self.copy_(start))
    monkeypatch.setattr(torch, "randn_like", lambda probs: next(logits_noise))
    theirs = torchattacks.Jitter(net, eps=0.1, alpha=0.025)(*held_out)
    assert_same_images(attack.attack_full_budget(net, *held_out, make_rng(COUNT)), theirs)


def test_jitter_accuracy_matches_torchattacks(digits_net, digits):
    images, labels = digits[0][1000:], digits[1][1000:]
    reference = torchattacks.Jitter(digits_net, eps=0.1, alpha=0.025)
    attack = Jitter(JitterConfig(), ThreatModel("Linf", 0.1))

    def accuracy(adv):
        return (digits_net(adv).argmax(1) == labels).float().mean().item()

    # Three runs each: a single run varies by half a percentage point.
    theirs = sum(accuracy(reference(images, labels)) for _ in range(3)) / 3
    ours = sum(accuracy(attack.attack_full_budget(digits_net, images, labels, make_rng(797, i))) for i in range(3)) / 3
    assert 0.05 < theirs < 0.95
    assert ours == pytest.approx(theirs, abs=0.01)


# --- the wrappers -------------------------------------------------------------------------------

WRAPPED = [
    ("torchattacks-fgsm", "Linf", lambda net: torchattacks.FGSM(net, eps=EPS)),
    ("torchattacks-pgd", "Linf", lambda net: torchattacks.PGD(net, eps=EPS)),
    ("torchattacks-jitter", "Linf", lambda net: torchattacks.Jitter(net, eps=EPS)),
    ("torchattacks-pgdl2", "L2", lambda net: torchattacks.PGDL2(net, eps=EPS)),
]


@pytest.mark.parametrize(("name", "norm", "build"), WRAPPED, ids=[name for name, _, _ in WRAPPED])
def test_wrapper_matches_torchattacks_defaults(digits_net, held_out, name, norm, build):
    attack_type = load_attack(name)
    attack = attack_type(attack_type.Config(), ThreatModel(norm, EPS))
    before = torch.random.get_rng_state()
    ours = attack.attack_full_budget(digits_net, *held_out, make_rng(COUNT))
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(make_rng(COUNT).seed())
    assert torch.equal(ours, build(digits_net)(*held_out))


def test_wrapper_step_is_absolute():
    pgd = load_attack("torchattacks-pgd")
    assert pgd(pgd.Config(), ThreatModel("Linf", 8 / 255)).relative_step == pytest.approx(0.25)
    assert pgd(pgd.Config(), ThreatModel("Linf", 16 / 255)).relative_step == pytest.approx(0.125)
    assert pgd(pgd.Config(), ThreatModel("Linf", 0)).relative_step is None
    assert "reach 1.25 eps" in pgd(pgd.Config(), ThreatModel("Linf", 16 / 255)).warnings()[0]
    l2 = load_attack("torchattacks-pgdl2")
    assert l2(l2.Config(), ThreatModel("L2", 0.5)).relative_step == pytest.approx(0.4)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_autoattack_wrapper_uses_model_classes(digits, norm, monkeypatch, capsys):
    monkeypatch.setattr(torchattacks.Square, "forward", lambda self, images, labels: images)  # 5000 queries
    images, labels = digits[0][:4], digits[1][:4] % 3
    weight = torch.randn(192, 3) / 10

    def model(images):  # torchattacks prints a message about models without parameters
        return images.flatten(1) @ weight

    model.training, model.eval = False, lambda: None  # type: ignore[attr-defined]
    aa = load_attack("torchattacks-autoattack")
    threat = ThreatModel(norm, 0.05)
    adv = aa(aa.Config(), threat).attack_full_budget(model, images, labels, make_rng(4))
    threat.check(adv, images, "torchattacks-autoattack")
    assert capsys.readouterr().out == ""


def test_pgdl2_attacks_channels_last_model(digits_net, held_out):
    """Its gradients are channels-last, which torchattacks' own code refuses."""
    net = copy.deepcopy(digits_net).to(memory_format=torch.channels_last)
    images = held_out[0][:8].contiguous(memory_format=torch.channels_last)
    cls = load_attack("torchattacks-pgdl2")
    adv = cls(cls.Config(), ThreatModel("L2", 1.0)).attack_full_budget(net, images, held_out[1][:8], make_rng(8))
    assert not torch.equal(adv, images)
