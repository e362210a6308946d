"""Attacks on bfloat16 and compiled models. The float32 model decides about success."""

import shutil

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from robobench.attack_engine import accelerated
from robobench.attack_engine.accelerated import bf16_is_faithful, compile_for_search
from robobench.attack_engine.base import IterativeAttack, NoConfig
from robobench.attack_engine.loop import run_iterative_attack
from robobench.attack_engine.options import AttackOptions
from robobench.attack_engine.state import AttackState
from robobench.core.module_state import attack_mode
from robobench.core.rng import KeyedRng
from robobench.core.threat import ThreatModel
from robobench.models.wrapper import PreprocessedModel
from robobench.plugins.discovery import load_attack
from robobench.testing import SmallNet


class MeanClassifier(nn.Module):
    """Two logits that are linear in an image's mean. In bfloat16 they are equal: the weights differ by one rounding."""

    def __init__(self, weight: tuple[float, float], bias: tuple[float, float] = (0.0, 0.0)) -> None:
        super().__init__()
        self.head = nn.Linear(1, 2)
        self.head.weight.data, self.head.bias.data = torch.tensor(weight)[:, None], torch.tensor(bias)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(images.flatten(1).mean(1, keepdim=True))
        return logits


class Climb(IterativeAttack):
    """Adds 0.1 at every step, in bfloat16 if allowed."""

    Config, name, steps, restarts, supports_bf16_search = NoConfig, "climb", 3, 1, True

    def start(self, images: Tensor, labels: Tensor, rng: KeyedRng) -> AttackState:
        return AttackState(images, labels, images, rng)

    def step(self, model: nn.Module, state: AttackState) -> tuple[AttackState, Tensor]:
        with torch.no_grad():
            logits = model(state.adv)
        assert logits.dtype == torch.float32
        return state.advance(state.adv + 0.1), logits


@pytest.fixture
def always_bf16(monkeypatch):
    """Use bfloat16 for every model, even if it is not accurate enough."""
    monkeypatch.setattr(accelerated, "bf16_is_faithful", lambda *arguments: True)


def attack_images(attack, model, images, labels, *, bf16=False, compiled=None, early_stop=True):
    rng, options = KeyedRng.of(torch.arange(len(images)), 0), AttackOptions(bf16_search=bf16, compiled=compiled)
    return run_iterative_attack(attack, model, images, labels, rng, early_stop=early_stop, options=options)


def test_bf16_success_is_rechecked_in_float32(always_bf16):
    """Class 1 leads by 0.001 unless an image is black. In bfloat16 the logits are equal and class 0 is predicted."""
    model, labels = MeanClassifier((1.0, 1.001)), torch.ones(4, dtype=torch.long)
    images = torch.full((4, 3, 4, 4), 0.7)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(images).argmax(1).tolist() == [0] * 4
    cls = load_attack("pgd")
    result = attack_images(cls(cls.Config(), ThreatModel("Linf", 0.1)), model, images, labels, bf16=True)
    assert not result.success.any()


def test_last_evaluation_is_float32(always_bf16):
    """Class 1 leads from 0.5 on, by less than bfloat16 resolves. Three steps from 0.3 end at 0.6."""
    model, labels = MeanClassifier((1.0, 1.001), (0.0005, 0.0)), torch.zeros(1, dtype=torch.long)
    images = torch.full((1, 1, 2, 2), 0.3)
    result = attack_images(Climb(None, ThreatModel("Linf", 1.0)), model, images, labels, bf16=True)
    assert result.success.tolist() == [True]
    assert result.adv.mean().item() == pytest.approx(0.6)


class ReturnsSecond(Climb):
    """Climbs, and returns its second iterate."""

    def finish(self, state: AttackState, logits: Tensor) -> Tensor:
        return state.images + 0.1


def test_returned_image_counts_beside_last_iterate(always_bf16):
    """Class 1 leads up to 0.5 only: the last iterate is classified correctly, the returned image is not."""
    model, labels = MeanClassifier((1.0, 0.999), (0.0, 0.0005)), torch.zeros(1, dtype=torch.long)
    images = torch.full((1, 1, 2, 2), 0.3)
    result = attack_images(ReturnsSecond(None, ThreatModel("Linf", 1.0)), model, images, labels, bf16=True)
    assert result.success.tolist() == [True]
    assert result.adv.mean().item() == pytest.approx(0.4)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_bf16_outcomes_match_float32(digits_net, digits, norm):
    """At most one of 100 images differs, and every success holds in float32."""
    images, labels = (part[-100:] for part in digits)
    threat = ThreatModel(norm, 0.05 if norm == "Linf" else 0.5)
    for name in ("pgd", "cw", "mifgsm"):
        cls = load_attack(name)
        attack = cls(cls.Config(steps=10), threat)
        exact, rounded = (attack_images(attack, digits_net, images, labels, bf16=b) for b in (False, True))
        assert not torch.equal(exact.adv, rounded.adv)  # bfloat16 was used
        assert (exact.success != rounded.success).sum() <= 1
        with torch.no_grad():
            wrong = digits_net(rounded.adv).argmax(1) != labels
        assert wrong[rounded.success].all()
        threat.check(rounded.adv[rounded.success], images[rounded.success], name)


@pytest.mark.parametrize("name", ["apgd-ce", "apgd-t", "fab-t", "square", "jitter", "noise"])
def test_attack_without_bf16_support_stays_float32(digits_net, digits, name):
    """These attacks compare losses, or step back at a success."""
    images, labels = (part[-40:] for part in digits)
    cls = load_attack(name)
    attack = cls(cls.Config(**cls.presets.get("quick", {})), ThreatModel("Linf", 0.05))
    exact, rounded = (attack_images(attack, digits_net, images, labels, bf16=b) for b in (False, True))
    assert torch.equal(exact.adv, rounded.adv)


def test_full_budget_stays_float32(digits_net, digits):
    images, labels = (part[-100:] for part in digits)
    cls = load_attack("pgd")
    attack = cls(cls.Config(steps=3), ThreatModel("Linf", 0.05))
    exact, rounded = (
        attack_images(attack, digits_net, images, labels, bf16=b, early_stop=False) for b in (False, True)
    )
    assert torch.equal(exact.adv, rounded.adv)


class Offset(nn.Module):
    """The same outputs from features far from zero, where bfloat16 resolves little."""

    def __init__(self, net: nn.Sequential, offset: float) -> None:
        super().__init__()
        self.body, self.head, self.offset = net[:-1], net[-1], offset

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(images) + self.offset)
        return logits.float() - self.offset * self.head.weight.sum(1)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_inaccurate_bf16_is_not_used(digits_net, digits, norm, monkeypatch):
    images, labels = (part[-100:] for part in digits)
    cls, far = load_attack("pgd"), Offset(digits_net, 300.0)
    attack = cls(cls.Config(), ThreatModel(norm, 0.05 if norm == "Linf" else 0.5))
    assert bf16_is_faithful(attack, digits_net, images, labels) and not bf16_is_faithful(attack, far, images, labels)
    exact, guarded = (attack_images(attack, far, images, labels, bf16=b) for b in (False, True))
    assert torch.equal(exact.adv, guarded.adv)
    monkeypatch.setattr(accelerated, "bf16_is_faithful", lambda *arguments: True)
    forced = attack_images(attack, far, images, labels, bf16=True)
    assert (~forced.success).sum() > (~exact.success).sum() + 1


@pytest.mark.parametrize("factor", [0.0, float("nan")])
def test_zero_or_nan_gradient_is_not_faithful(digits_net, digits, factor):
    class Scaled(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = digits_net(images)
            return factor * logits + digits_net(images).detach()

    attack = load_attack("pgd")(load_attack("pgd").Config(), ThreatModel("Linf", 0.05))
    assert not bf16_is_faithful(attack, Scaled(), *(part[-40:] for part in digits))


@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling needs a C++ compiler")
def test_compiled_model_agrees_and_is_built_once():
    """One pair of graphs serves all batch sizes, and follows later changes of the weights."""
    torch.manual_seed(0)
    model, images = PreprocessedModel(SmallNet()).eval(), torch.rand(64, 3, 32, 32)
    labels = model(images).argmax(1)
    with attack_mode(model):
        compiled, built = compile_for_search(model, images[:17]), counters["stats"]["unique_graphs"]
        with torch.no_grad():
            for count in (64, 40, 32, 16, 3, 1):
                torch.testing.assert_close(compiled(images[:count]), model(images[:count]), rtol=1e-5, atol=1e-5)
        for name, values in (("pgd", {"steps": 5}), ("square", {"queries": 20})):
            cls = load_attack(name)
            attack = cls(cls.Config(**values), ThreatModel("Linf", 0.002))
            plain, fast = (attack_images(attack, model, images, labels, compiled=c) for c in (None, (model, compiled)))
            assert 0 < plain.success.sum() < 64 and torch.equal(plain.success, fast.success)
        assert counters["stats"]["unique_graphs"] == built
    with torch.no_grad():
        next(model.parameters()).mul_(2)
        torch.testing.assert_close(compiled(images), model(images), rtol=1e-5, atol=1e-5)


@pytest.fixture
def no_compiler(monkeypatch):
    """Let torch.compile return its argument."""
    monkeypatch.setattr(torch, "compile", lambda net, **options: net)


class Random(nn.Module):
    """Outputs that differ from pass to pass."""

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = images.mean((2, 3)) + 0.1 * torch.randn(len(images), 3)
        return logits


def test_random_model_is_not_compiled(no_compiler):
    with pytest.raises(ValueError, match="compiled and eager outputs differ"):
        compile_for_search(PreprocessedModel(Random()), torch.rand(17, 3, 32, 32))
    assert compile_for_search(PreprocessedModel(SmallNet()).eval(), torch.rand(17, 3, 32, 32)) is not None


class Negated(nn.Module):
    """The negated outputs of a model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = -self.model(images)
        return logits


def test_compiled_model_only_guides_its_own_model(digits_net, digits):
    """Success on a wrong "compiled" copy does not count, and attacks on other models do not use it."""
    images, labels = (part[-40:] for part in digits)
    cls = load_attack("pgd")
    attack, other = cls(cls.Config(steps=3), ThreatModel("Linf", 1e-4)), Negated(digits_net)
    exact = [attack_images(attack, model, images, labels) for model in (digits_net, other)]
    found = [attack_images(attack, m, images, labels, compiled=(digits_net, other)) for m in (digits_net, other)]
    assert not torch.equal(found[0].adv, exact[0].adv) and found[0].success.sum() <= exact[0].success.sum()
    assert torch.equal(found[1].adv, exact[1].adv) and exact[1].success.sum() > 30
