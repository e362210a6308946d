"""Settings and side effects of the wrapped reference, and outcomes of `autoattack` against it."""

import sys

import pyautoattack
import pytest
import torch
from pyautoattack import checks
from torch import nn

from robobench.attack_engine.base import AttackBudget
from robobench.attacks.autoattack import (
    AutoAttack,
    AutoAttackConfig,
    AutoAttackL2,
    PyAutoAttack,
    PyAutoAttackConfig,
    restore_reference_globals,
)
from robobench.core.rng import KeyedRng
from robobench.core.threat import ThreatModel
from robobench.errors import RequestError
from robobench.plugins.discovery import load_attack
from tests.helpers.toys import TinyBatchNormNet, color_blobs

RNG = KeyedRng.of(torch.arange(6), "autoattack")
SETTINGS = {
    "apgd": ("n_iter", "n_iter_2", "n_iter_min", "size_decr", "n_restarts", "eot_iter", "thr_decr", "eps"),
    "apgd_targeted": ("n_iter", "n_iter_2", "n_iter_min", "n_restarts", "n_target_classes", "thr_decr", "eps"),
    "fab": ("n_iter", "n_restarts", "n_target_classes", "eps", "alpha_max", "eta", "beta"),
    "square": ("n_queries", "n_restarts", "p_init", "rescale_schedule", "eps"),
}


def test_default_has_standard_settings(digits_net):
    attack = PyAutoAttack(PyAutoAttackConfig(), ThreatModel("Linf", 0.1))
    attack.num_classes = 10
    ours = attack._reference(digits_net, torch.device("cpu"), 7)
    standard = pyautoattack.AutoAttack(digits_net, norm="Linf", eps=0.1, seed=7, version="standard")
    assert ours.attacks_to_run == standard.attacks_to_run
    assert ours.seed == standard.seed
    for part, names in SETTINGS.items():
        for name in names:
            assert getattr(getattr(ours, part), name) == getattr(getattr(standard, part), name), (part, name)


@pytest.mark.parametrize(("norm", "eps"), [("Linf", 0.12), ("L2", 0.9)])
def test_pyautoattack_matches_package(digits_net, digits, norm, eps):
    images, labels = digits[0][1000:1006], digits[1][1000:1006]
    standard = pyautoattack.AutoAttack(digits_net, norm=norm, eps=eps, seed=RNG.seed(), version="standard")
    standard.square.n_queries = 20  # fewer queries and targets, to save time; the test above compares all settings
    standard.apgd_targeted.n_target_classes = standard.fab.n_target_classes = 2
    with torch.random.fork_rng():
        theirs, preds = standard.run_standard_evaluation(images, labels)
    attack = PyAutoAttack(PyAutoAttackConfig(queries=20, targets=2), ThreatModel(norm, eps))
    ours = attack.attack_full_budget(digits_net, images, labels, RNG)
    assert 0 < (preds == labels).sum() < 6  # some survive all components, some do not
    assert torch.equal(ours, theirs)


def test_pyautoattack_has_no_side_effects(digits, digits_net):
    images, labels = digits[0][1000:1006], digits[1][1000:1006]
    threat = ThreatModel("L2", 0.9)
    attack = PyAutoAttack(PyAutoAttackConfig(steps=3, targets=1, queries=5), threat)
    weights = {name: value.clone() for name, value in digits_net.state_dict().items()}
    state, tracer = torch.random.get_rng_state(), sys.gettrace()
    adv = attack.attack_full_budget(digits_net, images, labels, RNG)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert sys.gettrace() is tracer
    assert not digits_net.training
    assert all(torch.equal(value, weights[name]) for name, value in digits_net.state_dict().items())
    threat.check(adv, images, "autoattack")
    assert torch.equal(adv, attack.attack_full_budget(digits_net, images, labels, RNG))


def test_dynamic_defense_flag_does_not_leak(digits_net, digits, caplog):
    class Dynamic(nn.Module):
        def forward(self, images):
            with torch.enable_grad():
                leaf = images.detach().clone().requires_grad_(True)
                torch.autograd.grad(leaf.sum(), leaf)
            return digits_net(images)

    attack = PyAutoAttack(PyAutoAttackConfig(attacks=("apgd-ce",), steps=1), ThreatModel("Linf", 0.1))
    attack.attack_full_budget(Dynamic().eval(), digits[0][:6], digits[1][:6], RNG)
    assert "dynamic defense" in caplog.text
    caplog.clear()
    attack.attack_full_budget(digits_net, digits[0][:6], digits[1][:6], RNG)
    assert "dynamic defense" not in caplog.text
    assert checks.funcs["grad"] == 0


def test_budget_is_standard_or_lists_components():
    threat = ThreatModel("Linf", 0.1)
    assert AutoAttack(AutoAttackConfig(), threat).budget == AttackBudget("standard", standard=True)
    quick = AutoAttack(AutoAttackConfig(**AutoAttack.presets["quick"]), threat)
    assert quick.budget == AttackBudget("reduced: apgd-ce 5, apgd-t 5x1", reduced=True)
    assert "do not compare" in quick.warnings()[0]
    assert AutoAttack(AutoAttackConfig(), threat).warnings() == []
    more = AutoAttack(AutoAttackConfig(queries=10_000), threat)
    assert more.budget == AttackBudget("extended: apgd-ce 100, apgd-t 100x9, fab-t 100x9, square 10000")


def robust_model():
    """Return a model that always predicts class 0, and a list of its passes: forwards and input gradients."""
    passes = []

    class Constant(nn.Module):
        def forward(self, images):
            passes.append("forward")
            if images.requires_grad:
                images = images * 1
                images.register_hook(lambda grad: passes.append("backward"))
            return torch.tensor([9.0, 0, 0, 0, 0]) + images.mean((1, 2, 3))[:, None] * torch.arange(5)

    return Constant(), passes


@pytest.mark.parametrize("name", ["apgd-ce", "apgd-dlr", "apgd-t", "fab-t", "fab", "square"])
def test_pyautoattack_cost_is_measured_cost(name):
    images = torch.rand(2, 3, 8, 8)
    model, passes = robust_model()
    config = PyAutoAttackConfig(attacks=(name,), steps=4, targets=3, queries=7)
    attack = PyAutoAttack(config, ThreatModel("Linf", 0.05))
    attack.attack_full_budget(model, images, torch.zeros(2, dtype=torch.long), KeyedRng.of(torch.arange(2), "cost"))
    assert len(passes) - 1 == attack.cost  # one more forward for the number of classes


@pytest.mark.parametrize("name", ["apgd-ce", "apgd-dlr", "apgd-t", "square"])
def test_autoattack_cost_is_measured_cost(name):
    images = torch.rand(2, 3, 8, 8)
    model, passes = robust_model()
    attack = AutoAttack(AutoAttackConfig(attacks=(name,), steps=4, targets=3, queries=7), ThreatModel("Linf", 0.05))
    attack.attack_early_stop(model, images, torch.zeros(2, dtype=torch.long), KeyedRng.of(torch.arange(2), "cost"))
    counts_classes = name in ("apgd-dlr", "apgd-t")
    assert len(passes) - counts_classes == attack.cost


@pytest.mark.parametrize(
    ("classes", "budget"),
    [
        (200, "reduced: apgd-ce 2, apgd-t 2x9, fab-t 2x9, square 5"),
        (4, "reduced: apgd-ce 2, apgd-t 2x3, fab-t 2x3, square 5"),
        (3, "reduced: apgd-ce 2, apgd-dlr 2, fab-t 2x2, square 5"),
        (2, "reduced: apgd-ce 2, fab-t 2x1, square 5"),
    ],
)
@pytest.mark.parametrize("ours", [AutoAttack, PyAutoAttack])
def test_few_classes_limit_components(ours, classes, budget):
    """Components that need more classes are left out, and the budget reports it."""
    images, labels = color_blobs(6, 2)
    threat = ThreatModel("Linf", 0.1)
    attack = ours(ours.Config(steps=2, queries=5), threat)
    model = TinyBatchNormNet(classes).eval().requires_grad_(False)
    with torch.no_grad():
        labels = model(images).argmax(1)  # correct when clean, so that every component runs
    adv = attack.attack_full_budget(model, images, labels, RNG)
    threat.check(adv, images, "autoattack")
    assert attack.budget == AttackBudget(budget, reduced=True)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_eps_zero_returns_clean_images(digits_net, digits, norm):
    images, labels = digits[0][:6], digits[1][:6]
    for name in ("autoattack", "pyautoattack", "torchattacks-autoattack"):
        attack = load_attack(name)(load_attack(name).Config(), ThreatModel(norm, 0.0))
        assert torch.equal(attack.attack_full_budget(digits_net, images, labels, RNG), images)


def test_autoattack_l2_refuses_linf():
    assert "has no Linf form" in AutoAttackL2.why_unsupported(ThreatModel("Linf", 0.1))
    assert AutoAttack.why_unsupported(ThreatModel("Linf", 0.1)) is None


def test_bad_config_is_refused():
    with pytest.raises(ValueError, match=r"attacks must be some of apgd-ce, .* got apgd"):
        AutoAttackConfig(attacks=("apgd",))
    with pytest.raises(ValueError, match="queries must be >= 1"):
        AutoAttackConfig(queries=0)
    with pytest.raises(RequestError, match="did you mean 'autoattack'"):
        load_attack("autoatack")


COMPONENTS = {
    "apgd-ce": {"steps": 100},
    "apgd-dlr": {"steps": 100},
    "apgd-t": {"targets": 2},
    "fab-t": {"targets": 2},
    "square": {"queries": 200},
}


@pytest.mark.parametrize(("norm", "eps"), [("Linf", 0.1), ("L2", 0.8)])
@pytest.mark.parametrize("name", COMPONENTS)
def test_component_outcomes_match_reference(digits_net, digits, name, norm, eps):
    images, labels = digits[0][1000:1024], digits[1][1000:1024]
    correct = digits_net(images).argmax(1) == labels
    images, labels = images[correct], labels[correct]
    reference = pyautoattack.AutoAttack(digits_net, norm=norm, eps=eps, seed=1, version="custom", attacks=[name])
    reference.square.n_queries = 200
    reference.apgd_targeted.n_target_classes = reference.fab.n_target_classes = 2
    with torch.random.fork_rng(), restore_reference_globals():
        preds = reference.run_standard_evaluation(images, labels)[1]
    threat, cls = ThreatModel(norm, eps), load_attack(name)
    attack, rng = cls(cls.Config(**COMPONENTS[name]), threat), KeyedRng.of(torch.arange(len(images)), name)
    result = attack.attack_early_stop(digits_net, images, labels, rng)
    threat.check(result.adv, images, name)
    assert torch.equal(result.success, digits_net(result.adv).argmax(1) != labels)
    left, theirs = ~result.success, preds == labels
    assert 3 < theirs.sum() < len(labels)
    if name == "square":  # random search: outcomes of two seeds differ by up to three images
        assert left.sum() <= theirs.sum() + 3
    else:
        assert left.sum() <= theirs.sum() + 1
        assert (left != theirs).sum() <= 1


@pytest.mark.parametrize("name", ["apgd-ce", "apgd-t", "fab-t"])
def test_l1_outcomes_match_reference(digits_net, digits, name):
    images, labels = digits[0][1000:1014], digits[1][1000:1014]
    correct = digits_net(images).argmax(1) == labels
    images, labels = images[correct], labels[correct]
    config, threat, rng = PyAutoAttackConfig(attacks=(name,), targets=1, steps=30), ThreatModel("L1", 6.0), RNG
    theirs = PyAutoAttack(config, threat).attack_early_stop(digits_net, images, labels, rng).success
    attack = AutoAttack(AutoAttackConfig(attacks=(name,), targets=1, steps=30), threat)
    result = attack.attack_early_stop(digits_net, images, labels, KeyedRng.of(torch.arange(len(images)), name))
    threat.check(result.adv, images, name)
    assert 1 < theirs.sum() < len(labels)
    assert result.success.sum() >= theirs.sum() - 1
    assert (result.success != theirs).sum() <= 1


def test_l1_version_has_its_own_runs():
    """Five restarts of APGD on the cross-entropy and five targets, as in the authors' version for L1."""
    attack = AutoAttack(AutoAttackConfig(), ThreatModel("L1", 12.0))
    assert attack.budget == AttackBudget("standard", standard=True)
    assert [part.restarts for part in attack.components[:3]] == [5, 5, 9]
    less = AutoAttack(AutoAttackConfig(steps=10), ThreatModel("L1", 12.0))
    assert less.budget.text == "reduced: apgd-ce 10x5, apgd-t 10x5, fab-t 10x9, square 5000"
    standard = pyautoattack.AutoAttack(nn.Flatten(), norm="L1", eps=12.0, version="standard")
    ours = PyAutoAttack(PyAutoAttackConfig(), ThreatModel("L1", 12.0))._reference(nn.Flatten(), torch.device("cpu"), 0)
    for part, names in SETTINGS.items():
        extra = ("use_largereps",) if part.startswith("apgd") else ()
        for name in (*names, *extra):
            assert getattr(getattr(ours, part), name) == getattr(getattr(standard, part), name), (part, name)


@pytest.mark.parametrize("name", ["apgd-ce", "apgd-t"])
def test_l1_cost_is_measured_cost(name):
    images, labels, rng = torch.rand(2, 3, 8, 8), torch.zeros(2, dtype=torch.long), KeyedRng.of(torch.arange(2), "cost")
    for cls, uncounted in ((PyAutoAttack, 1), (AutoAttack, int(name == "apgd-t"))):
        model, passes = robust_model()
        attack = cls(cls.Config(attacks=(name,), steps=10, targets=3, queries=7), ThreatModel("L1", 0.05))
        attack.attack_early_stop(model, images, labels, rng)
        passed = len(passes) - uncounted - (cls is PyAutoAttack)  # the wrapper evaluates the result once more
        assert passed == attack.cost, cls
