"""APGD, FAB and Square on problems with known solutions."""

import math

import pyautoattack
import pytest
import torch
from torch import nn

from robobench.attack_engine.loop import run_iterative_attack
from robobench.attack_engine.state import AttackState
from robobench.attacks.apgd import APGDCE, APGDT, TargetedConfig
from robobench.attacks.autoattack import AutoAttack, AutoAttackConfig
from robobench.attacks.fab import FABT, FABConfig, project_to_plane
from robobench.attacks.square import Square, SquareConfig, window_index, window_mask, window_pattern
from robobench.core.rng import KeyedRng
from robobench.core.threat import ThreatModel
from robobench.plugins.discovery import load_attack
from tests.helpers.toys import LinearTwoClass

SHAPE, EPS = (3, 6, 6), 0.05
DUAL = {"Linf": 1, "L2": 2}


# --- APGD -----------------------------------------------------------------------------------------


def test_apgd_checkpoints_match_paper():
    # 22, then windows of 19, 16, 13, 10, 7, 6, 6 of 100 steps; 0.22, 0.41, 0.57 and so on in the paper.
    found = APGDCE(APGDCE.Config(steps=100), ThreatModel("Linf", EPS)).checkpoints
    assert found == {22: 22, 41: 19, 57: 16, 70: 13, 80: 10, 87: 7, 93: 6, 99: 6}


class Valley(nn.Module):
    """One pixel with logits (0, -(adv - 0.5)^2 * 1000): the loss of class 0 is largest at 0.5."""

    def forward(self, images):
        hill = -1000 * (images.flatten(1).sum(1) - 0.5).square()
        return torch.stack((torch.zeros_like(hill), hill), dim=1)


def test_four_apgd_steps_by_hand():
    threat = ThreatModel("Linf", 0.2)
    attack = APGDCE(APGDCE.Config(steps=4), threat)  # every step is a checkpoint
    assert attack.checkpoints == {1: 1, 2: 1, 3: 1, 4: 1}
    images, labels = torch.full((1, 1, 1, 1), 0.6), torch.zeros(1, dtype=torch.long)
    state = AttackState(images, labels, torch.full((1, 1, 1, 1), 0.55), KeyedRng.of(torch.arange(1), 0))
    model, seen = Valley(), []
    for _ in range(4):
        seen.append((state.adv.item(), state.memory["step_size"].item() if state.memory else 0.4))
        state, _ = attack.step(model, state)
    # 1: from 0.55 down by 2 eps = 0.4, clipped at 0.6 - 0.2 = 0.4.
    # 2: the loss decreased. The step size halves to 0.2 and the step starts at 0.55 again: down by 0.2, clipped at 0.4.
    #    Three quarters of the way is 0.4375. The momentum term, 0.55 - 0.55, adds nothing.
    # 3: the loss increased above that of 0.4, and the step size was just halved. From 0.4375 up by 0.2: three quarters
    #    of that, plus a quarter of the last move, 0.4375 - 0.55: 0.559375.
    assert [adv for adv, _ in seen] == pytest.approx([0.55, 0.4, 0.4375, 0.559375], abs=1e-6)
    assert [size for _, size in seen] == pytest.approx([0.4, 0.4, 0.2, 0.2])
    # 4: the loss increased again, but the best loss did not since a checkpoint without halving. The step size is 0.1
    #    now, from 0.55 down to 0.45: three quarters of that, plus a quarter of 0.55 - 0.4375.
    assert state.memory["step_size"].item() == pytest.approx(0.1)
    assert state.memory["best_adv"].item() == pytest.approx(0.55)
    assert state.adv.item() == pytest.approx(0.55 - 0.075 + 0.028125, abs=1e-6)


def test_apgd_full_budget_returns_best_image():
    attack = APGDCE(APGDCE.Config(steps=30), ThreatModel("Linf", 0.2))
    images, labels = torch.full((3, 1, 1, 1), 0.6), torch.zeros(3, dtype=torch.long)
    adv = attack.attack_full_budget(Valley(), images, labels, KeyedRng.of(torch.arange(3), 1))
    assert adv.flatten().tolist() == pytest.approx([0.5] * 3, abs=5e-3)


def test_apgd_targets_follow_clean_logits():
    """Targets come in the order of the clean logits, and never are the true class."""
    seen = []

    class Spy(APGDT):
        def loss(self, logits, state):
            if state.iteration == 0:
                seen.append((state.restart, state.memory["target"].tolist()))
            return super().loss(logits, state)

    logits = torch.tensor([[9.0, 5, 1, 7, 3], [9.0, 5, 1, 7, 3]])

    class Fixed(nn.Module):
        def forward(self, images):
            return logits[: len(images)] + 0 * images.sum()

    images, labels = torch.rand(2, 3, 4, 4), torch.tensor([0, 3])  # the second image is misclassified when clean
    attack = Spy(TargetedConfig(steps=1), ThreatModel("Linf", EPS))
    run_iterative_attack(attack, Fixed(), images, labels, KeyedRng.of(torch.arange(2), 0), early_stop=False)
    assert attack.restarts == 4
    assert seen == [(0, [3, 0]), (1, [1]), (2, [4]), (3, [2])]


# --- FAB ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_projection_is_shortest_inside_box(norm):
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(200, 1, 3, 4, generator=generator, dtype=torch.float64)
    normal = torch.randn(200, 1, 3, 4, generator=generator, dtype=torch.float64)
    offset = 3 * torch.randn(200, generator=generator, dtype=torch.float64)
    delta = project_to_plane(points, normal, offset, norm)
    assert (points + delta).min() >= -1e-12 and (points + delta).max() <= 1 + 1e-12
    missed = offset + (normal * delta).flatten(1).sum(1)
    room = torch.where(normal * offset[:, None, None, None].sign() > 0, points, 1 - points)
    within = (normal.abs() * room).flatten(1).sum(1) >= offset.abs()
    assert 20 < within.sum() < 200
    assert missed[within].abs().max() < 1e-5
    # If the plane does not intersect the box, the result is the nearest corner.
    assert torch.allclose(delta[~within].abs(), room[~within])
    # Optimality: all pixels strictly inside the box move equally (Linf), or in proportion to the normal (L2).
    speed = torch.ones_like(normal) if norm == "Linf" else normal.abs()
    pace = (delta.abs() / speed).flatten(1)
    free = (delta.abs() < room - 1e-9).flatten(1)
    largest = pace.where(free, torch.zeros_like(pace)).amax(1, keepdim=True)
    assert torch.allclose(pace[free], largest.expand_as(pace)[free])
    assert (pace[within & free.any(1)] <= largest[within & free.any(1)] + 1e-9).all()


def test_projection_by_hand():
    points, normal = torch.tensor([[[[0.9, 0.5]]]]), torch.tensor([[[[1.0, 1.0]]]])
    # The pixels must increase by 0.4 in total. The first reaches 1 after 0.1, so the second takes 0.3.
    delta = project_to_plane(points, normal, torch.tensor([-0.4]), "Linf")
    assert delta.flatten().tolist() == pytest.approx([0.1, 0.3])
    assert project_to_plane(points, 0 * normal, torch.tensor([-0.4]), "L2").abs().sum() == 0


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_fab_finds_distance_to_linear_boundary(norm):
    model = LinearTwoClass(SHAPE).double().requires_grad_(False)
    images = 0.5 + 0.1 * torch.rand(4, *SHAPE, dtype=torch.float64)
    labels = (model.gap(images) < 0).long()
    closest = model.gap(images).abs() / model.w.norm(DUAL[norm])
    threat = ThreatModel(norm, float(closest.max()) * 1.2)
    adv = FABT(FABConfig(steps=30), threat).attack_full_budget(model, images, labels, KeyedRng.of(torch.arange(4), 0))
    assert (model(adv).argmax(1) != labels).all()
    distance = threat.distance(adv, images)
    assert (distance >= closest).all()
    assert (distance <= 1.06 * closest).all()  # the last overshoot is 5 %


def test_fab_returns_clean_image_outside_ball():
    """If the closest adversarial example lies outside the ball, the clean image is returned."""
    model = LinearTwoClass(SHAPE).requires_grad_(False)
    images, labels = torch.full((1, *SHAPE), 0.5) + 0.1 * model.w.sign().view(1, *SHAPE), torch.zeros(1).long()
    reach = float(model.gap(images) / model.w.norm(1))
    for eps, succeeds in ((0.9 * reach, False), (1.1 * reach, True)):
        attack = FABT(FABConfig(steps=20), ThreatModel("Linf", eps))
        rng = KeyedRng.of(torch.arange(1), 0)
        result = run_iterative_attack(attack, model, images, labels, rng, early_stop=False)
        assert result.success.item() is succeeds
        assert torch.equal(result.adv, images) is not succeeds
        assert attack.attack_early_stop(model, images, labels, rng).success.item() is succeeds


# --- Square ---------------------------------------------------------------------------------------


def test_square_windows_halve_on_schedule():
    attack = Square(SquareConfig(queries=5000), ThreatModel("Linf", EPS))
    halved = [attack._area(query) / 0.8 for query in (0, 5, 6, 25, 26, 100, 101, 500, 501, 4000, 4001, 4999)]
    assert [round(-math.log2(part)) for part in halved] == [0, 0, 1, 1, 2, 2, 3, 4, 5, 8, 9, 9]


def test_autoattack_square_schedule_matches_reference():
    reference = pyautoattack.AutoAttack(nn.Flatten(), norm="Linf", eps=EPS, device="cpu").square
    *_, square = AutoAttack(AutoAttackConfig(), ThreatModel("Linf", EPS)).components
    queries = (*range(0, 5000, 7), 10, 11, 50, 51, 200, 201, 500, 501, 1000, 1001, 2000, 2001, 4000, 4001)
    assert all(square._area(query) == reference.p_selection(query) for query in queries)


def test_square_windows_lie_inside_image():
    """The mask and the index of a window agree."""
    images, draws = torch.zeros(500, 1, 5, 7), torch.rand(2, 500)
    windows = window_mask(images, draws[0], draws[1], 3)
    assert (windows.sum((1, 2, 3)) == 9).all()
    assert windows.any(0).all()  # every pixel is in some window, corners included
    index = window_index(images, draws[0], draws[1], 3)
    assert torch.equal(torch.zeros(500, 35, dtype=torch.bool).scatter(1, index, True), windows.flatten(1))


def test_l2_pattern_by_hand():
    pattern = window_pattern(5, torch.zeros(1), "L2")
    assert pattern.norm().item() == pytest.approx(1)
    assert (pattern[:2] > 0).all() and (pattern[2:] < 0).all()
    # The lower half is 3 x 5: 1 + 1/4 + 1/9 in the center, 1/4 + 1/9 around it, 1/9 at the sides.
    lower = -pattern[2:] / -pattern[2:][0, 0] * (1 / 9)
    rim = 1 / 9 + 1 / 4
    torch.testing.assert_close(
        lower,
        torch.tensor([[1 / 9, rim, rim, rim, 1 / 9], [1 / 9, rim, rim + 1, rim, 1 / 9], [1 / 9, rim, rim, rim, 1 / 9]]),
    )


@pytest.mark.parametrize(("norm", "share"), [("Linf", 0.7), ("L2", 0.3)])
def test_square_approaches_linear_optimum(norm, share):
    """Its iterates stay on the surface of the ball, and the best margin never decreases."""
    model, threat = LinearTwoClass(SHAPE).requires_grad_(False), ThreatModel(norm, EPS)
    model.w.fill_(0.01)  # constant, so that square windows can follow it
    images, labels = 0.3 + 0.4 * torch.rand(6, *SHAPE), torch.zeros(6, dtype=torch.long)
    attack, margins = Square(SquareConfig(queries=200), threat), []
    state = attack.start(images, labels, KeyedRng.of(torch.arange(6), 0))
    for _ in range(200):
        torch.testing.assert_close(threat.distance(state.adv, images), torch.full((6,), EPS))
        state, _ = attack.step(model, state)
        margins.append(state.memory["best_margin"])
    margins = torch.stack(margins)
    assert (margins.diff(dim=0) >= 0).all()  # type: ignore[attr-defined]
    drop = (margins[-1] + model.gap(images)) / (EPS * model.w.norm(DUAL[norm]))
    assert (drop <= 1 + 1e-4).all()
    assert drop.mean() > share


# --- all attacks: certified images stay correct ---------------------------------------------------


def certified_net():
    """Return a ReLU network with one hidden layer and 4 classes."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(27, 16), nn.ReLU(), nn.Linear(16, 4))
    return net.eval().requires_grad_(False)


def certified(net, images, labels, threat):
    """Return which images interval bounds (Linf) or a Lipschitz bound (L2) certify as robust: (B,) bool."""
    first, last = net[1], net[3]
    difference = last.weight[labels][:, None] - last.weight[None]  # (B, K, 16)
    logits = net(images)
    lead = logits.gather(1, labels[:, None]) - logits
    if threat.norm == "L2":
        bound = threat.eps * difference.norm(dim=2) * torch.linalg.matrix_norm(first.weight, 2)
    else:
        middle, reach = first(images.flatten(1)), threat.eps * first.weight.abs().sum(1)
        spread = (middle + reach).relu() - middle.relu(), middle.relu() - (middle - reach).relu()
        bound = (difference.abs() * torch.maximum(*spread)[:, None]).sum(2)
    lead, bound = (values.scatter(1, labels[:, None], filler) for values, filler in ((lead, 1.0), (bound, 0.0)))
    return (lead > bound).all(1)


ATTACKS = (
    *(
        "pgd",
        "fgsm",
        "cw",
        "mifgsm",
        "noise",
        "apgd-ce",
        "apgd-dlr",
        "apgd-pm",
        "apgd-t",
        "fab-t",
        "square",
        "autoattack",
    ),
)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_certified_images_stay_correct(norm):
    """No attack succeeds on an image that is certified, and none leaves the ball."""
    net, images = certified_net(), torch.rand(40, 3, 3, 3)
    labels, rng = net(images).argmax(1), KeyedRng.of(torch.arange(40), 0)
    threat = ThreatModel(norm, 0.02 if norm == "Linf" else 0.12)
    robust = certified(net, images, labels, threat)
    assert 5 < robust.sum() < 37
    successes = {}
    for name in ATTACKS:
        cls = load_attack(name)
        values = {"queries": 50, "samples": 20, "steps": 10}
        config = cls.Config(**{k: v for k, v in values.items() if k in cls.Config.__dataclass_fields__})
        attack = cls(config, threat)
        for result in (attack.attack_early_stop(net, images, labels, rng), None):
            adv = result.adv if result else attack.attack_full_budget(net, images, labels, rng)
            threat.check(adv, images, name)
            wrong = net(adv).argmax(1) != labels
            assert not (wrong & robust).any(), name
            successes[name] = max(successes.get(name, 0), int(wrong.sum()))
    assert successes["autoattack"] >= max(successes.values())
    assert successes["noise"] < successes["autoattack"] < 40 - int(robust.sum()) + 1
