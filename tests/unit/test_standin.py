"""Searching in bfloat16 or on a compiled network: faster, with the last word to the network itself in float32."""

import shutil

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from robobench.attack_engine.accelerated import (
    allow_bf16_search,
    bf16_is_faithful,
    compile_for_search,
    use_compiled_model,
)
from robobench.attack_engine.base import IterativeAttack, NoConfig
from robobench.attack_engine.loop import run_iterative_attack
from robobench.attack_engine.state import AttackState
from robobench.core.console import Reporter
from robobench.core.module_state import attack_mode
from robobench.core.rng import KeyedRng
from robobench.core.threat import ThreatModel
from robobench.execution.evaluation_job import Runner
from robobench.models.wrapper import PreprocessedModel
from robobench.planning.planner import make_plan
from robobench.planning.request import ExperimentConfig
from robobench.plugins.discovery import load_attack
from robobench.testing import SmallNet


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

    def start(self, images: Tensor, labels: Tensor, rng: KeyedRng) -> AttackState:
        return AttackState(images, labels, images, rng)

    def step(self, model: nn.Module, state: AttackState) -> tuple[AttackState, Tensor]:
        with torch.no_grad():
            logits = model(state.adv)
        assert logits.dtype == torch.float32
        return state.advance(state.adv + 0.1), logits


@pytest.fixture
def borne(monkeypatch):
    """Let every network be rounded, also one whose answers bfloat16 cannot tell apart."""
    monkeypatch.setattr(standin, "bears_rounding", lambda *network: True)


def attacked(attack, model, images, labels, *, rounded, stop="first"):
    with allow_bf16_search(rounded):
        return run_iterative_attack(attack, model, images, labels, KeyedRng.of(torch.arange(len(images)), 0), stop)


def test_an_image_that_only_bfloat16_gets_wrong_stands(borne):
    """Class 1 leads by a thousandth wherever an image is not black; in bfloat16 both are equal and class 0 is taken."""
    model, images, labels = Scale((1.0, 1.001)), torch.full((4, 3, 4, 4), 0.7), torch.ones(4, dtype=torch.long)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(images).argmax(1).tolist() == [0] * 4
    cls = load_attack("pgd")
    found = attacked(cls(cls.Config(), ThreatModel("Linf", 0.1)), model, images, labels, rounded=True)
    assert not found.success.any()


def test_the_last_look_is_in_float32(borne):
    """Class 1 leads from one half on, by less than bfloat16 sees: three steps from 0.3 and the last look get there."""
    model, labels = Scale((1.0, 1.001), (0.0005, 0.0)), torch.zeros(1, dtype=torch.long)
    found = attacked(Climb(None, ThreatModel("Linf", 1.0)), model, torch.full((1, 1, 2, 2), 0.3), labels, rounded=True)
    assert found.success.tolist() == [True]
    assert found.adv.mean().item() == pytest.approx(0.6)


class Returns(Climb):
    """Climbs, and calls its second point the best."""

    def finish(self, state: AttackState, logits: Tensor) -> Tensor:
        return state.images + 0.1


def test_the_best_point_counts_where_the_last_does_not(borne):
    """Class 1 leads up to one half only: the last point is classified right, the point called best is not."""
    model, labels = Scale((1.0, 0.999), (0.0, 0.0005)), torch.zeros(1, dtype=torch.long)
    images = torch.full((1, 1, 2, 2), 0.3)
    found = attacked(Returns(None, ThreatModel("Linf", 1.0)), model, images, labels, rounded=True)
    assert found.success.tolist() == [True]
    assert found.adv.mean().item() == pytest.approx(0.4)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_verdicts_are_those_of_float32_up_to_an_image_and_hold_in_float32(digits_net, digits, norm):
    images, labels = (part[-100:] for part in digits)
    threat = ThreatModel(norm, 0.05 if norm == "Linf" else 0.5)
    for name in ("pgd", "cw", "mifgsm"):
        cls = load_attack(name)
        attack = cls(cls.Config(steps=10), threat)
        exact, rounded = (attacked(attack, digits_net, images, labels, rounded=r) for r in (False, True))
        assert not torch.equal(exact.adv, rounded.adv)  # it did round
        assert (exact.success != rounded.success).sum() <= 1
        with torch.no_grad():
            wrong = digits_net(rounded.adv).argmax(1) != labels
        assert wrong[rounded.success].all()
        threat.check(rounded.adv[rounded.success], images[rounded.success], name)


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


class Offset(nn.Module):
    """The same answers from features that all lie far from zero, where bfloat16 sees little of what parts them."""

    def __init__(self, net: nn.Sequential, offset: float) -> None:
        super().__init__()
        self.body, self.head, self.offset = net[:-1], net[-1], offset

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(images) + self.offset)
        return logits.float() - self.offset * self.head.weight.sum(1)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_a_network_that_rounding_would_hide_is_searched_in_float32(digits_net, digits, norm, monkeypatch):
    images, labels = (part[-100:] for part in digits)
    cls, far = load_attack("pgd"), Offset(digits_net, 300.0)
    attack = cls(cls.Config(), ThreatModel(norm, 0.05 if norm == "Linf" else 0.5))
    assert bf16_is_faithful(attack, digits_net, images, labels) and not bf16_is_faithful(attack, far, images, labels)
    exact, guarded = (attacked(attack, far, images, labels, rounded=r) for r in (False, True))
    assert torch.equal(exact.adv, guarded.adv)
    monkeypatch.setattr(standin, "bears_rounding", lambda *network: True)
    assert (~attacked(attack, far, images, labels, rounded=True).success).sum() > (~exact.success).sum() + 1


@pytest.mark.parametrize("factor", [0.0, float("nan")])
def test_a_network_without_a_gradient_bears_no_rounding(digits_net, digits, factor):
    class Scaled(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = digits_net(images)
            return factor * logits + digits_net(images).detach()

    attack = load_attack("pgd")(load_attack("pgd").Config(), ThreatModel("Linf", 0.05))
    assert not bf16_is_faithful(attack, Scaled(), *(part[-40:] for part in digits))


@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling needs a C++ compiler")
def test_a_compiled_twin_is_the_same_network_and_is_built_once_for_all_batches():
    torch.manual_seed(0)
    model, images = PreprocessedModel(SmallNet()).eval(), torch.rand(64, 3, 32, 32)
    labels = model(images).argmax(1)
    with attack_mode(model):
        twin, built = compile_for_search(model, images[:17]), counters["stats"]["unique_graphs"]
        with torch.no_grad():
            for count in (64, 40, 32, 16, 3, 1):
                torch.testing.assert_close(twin(images[:count]), model(images[:count]), rtol=1e-5, atol=1e-5)
        for name, values in (("pgd", {"steps": 5}), ("square", {"queries": 20})):
            cls, found = load_attack(name), []
            attack = cls(cls.Config(**values), ThreatModel("Linf", 0.002))
            for seen in (None, twin):
                with use_compiled_model(model, seen):
                    found.append(attacked(attack, model, images, labels, rounded=False))
            assert 0 < found[0].fooled.sum() < 64 and torch.equal(found[0].fooled, found[1].fooled)
        assert counters["stats"]["unique_graphs"] == built
    with torch.no_grad():
        next(model.parameters()).mul_(2)
        torch.testing.assert_close(twin(images), model(images), rtol=1e-5, atol=1e-5)


@pytest.fixture
def eagerly(monkeypatch):
    """Let torch.compile return what it is given."""
    monkeypatch.setattr(torch, "compile", lambda net, **how: net)


class Draws(nn.Module):
    """Answers that differ from look to look."""

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = images.mean((2, 3)) + 0.1 * torch.randn(len(images), 3)
        return logits


def test_a_network_that_draws_has_no_twin(eagerly):
    with pytest.raises(ValueError, match="answers otherwise"):
        compile_for_search(PreprocessedModel(Draws()), torch.rand(17, 3, 32, 32))
    assert compile_for_search(PreprocessedModel(SmallNet()).eval(), torch.rand(17, 3, 32, 32)) is not None


class Turned(nn.Module):
    """The opposite of a network's answers."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = -self.model(images)
        return logits


def test_what_the_twin_gets_wrong_stands_and_other_networks_are_searched_as_they_are(digits_net, digits):
    images, labels = (part[-40:] for part in digits)
    cls = load_attack("pgd")
    attack, other = cls(cls.Config(steps=3), ThreatModel("Linf", 1e-4)), Turned(digits_net)
    exact = [attacked(attack, model, images, labels, rounded=False) for model in (digits_net, other)]
    with use_compiled_model(digits_net, other):
        found = [attacked(attack, model, images, labels, rounded=False) for model in (digits_net, other)]
    assert not torch.equal(found[0].adv, exact[0].adv) and found[0].success.sum() <= exact[0].success.sum()
    assert torch.equal(found[1].adv, exact[1].adv) and exact[1].success.sum() > 30


class Spied(nn.Module):
    """A network that counts its passes."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.passes = model, 0

    def forward(self, images: Tensor) -> Tensor:
        self.passes += 1
        logits: Tensor = self.model(images)
        return logits


def evaluated(tmp_path, **changes):
    sets = ("run.train_images=16", "run.eval_batch_size=32")
    values = {"attacks": ("pgd",), "examples": 64, "epochs": 1, "sets": sets, "out": tmp_path, "eps": ("0.1",)}
    values["precision"] = "fp32"  # bfloat16 searches are not compiled
    plan = make_plan(ExperimentConfig(defenses=("standard",), **{"protocol": "both", **values, **changes}))
    work = Runner(plan, Reporter(-1))
    work.train_all()
    return [work.evaluate(*item) for item in plan.evaluations()]


def test_a_long_white_box_search_on_a_cpu_steps_on_a_compiled_network(tmp_path, monkeypatch):
    made: list[Spied] = []
    monkeypatch.setattr(shutil, "which", lambda name: name)
    monkeypatch.setattr(runner, "compiled", lambda model, images: made.append(Spied(model)) or made[-1])
    evaluated(tmp_path / "short")
    assert not made
    monkeypatch.setattr(runner, "COMPILED", 41 * 64)  # PGD-20: 41 passes
    records = evaluated(tmp_path / "long")
    assert {r["status"] for r in records} == {"ok"} and all(spy.passes for spy in made)
    long = [r["weights_digest"] for r in records if r["compiled_search"]]
    assert long == [r["weights_digest"] for r in records if r["protocol"] == "white-box"]
    assert len({id(spy.model) for spy in made}) == len(made) == len(set(long)) > 1  # each network its own
    made.clear()
    evaluated(tmp_path / "transfer", protocol="transfer")
    evaluated(tmp_path / "reference", protocol="white-box", attacks=("torchattacks-pgd",))
    assert not made


def test_a_network_that_cannot_be_compiled_is_attacked_as_it_is(tmp_path, monkeypatch, capsys):
    def fails(model: nn.Module, images: Tensor) -> None:
        raise torch._dynamo.exc.InternalTorchDynamoError("odd")

    monkeypatch.setattr(shutil, "which", lambda name: name)
    monkeypatch.setattr(runner, "COMPILED", 1)
    monkeypatch.setattr(runner, "compiled", fails)
    records = evaluated(tmp_path, protocol="white-box")
    assert {r["status"] for r in records} == {"ok"}
    assert "standard is attacked uncompiled: odd" in capsys.readouterr().err
