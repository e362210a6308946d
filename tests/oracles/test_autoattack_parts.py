"""APGD, FAB and Square against answers known on paper."""

import math

import pyautoattack
import pytest
import torch
from torch import nn

from robobench.attack_engine.loop import run_iterative_attack
from robobench.attack_engine.state import AttackState
from robobench.attacks.apgd import APGDCE, APGDT, APGDConfig, TargetedConfig
from robobench.attacks.autoattack import AutoAttack, AutoAttackConfig
from robobench.attacks.fab import FABT, FABConfig, to_plane
from robobench.attacks.square import Square, SquareConfig, bump, mask, window_index
from robobench.core.rng import KeyedRng
from robobench.core.threat import ThreatModel
from robobench.plugins.discovery import load_attack
from tests.helpers.toys import LinearTwoClass

SHAPE, EPS = (3, 6, 6), 0.05
DUAL = {"Linf": 1, "L2": 2}


# --- APGD -----------------------------------------------------------------------------------------


def test_checkpoints_are_those_of_the_paper():
    # 22, then windows of 19, 16, 13, 10, 7, 6, 6 of 100 steps; 0.22, 0.41, 0.57 and so on in the paper.
    found = APGDCE(APGDConfig(steps=100), ThreatModel("Linf", EPS)).checkpoints
    assert found == {22: 22, 41: 19, 57: 16, 70: 13, 80: 10, 87: 7, 93: 6, 99: 6}


class Valley(nn.Module):
    """One pixel; logits (0, -(adv - 0.5)^2 * 1000), so that the loss of class 0 peaks at 0.5."""

    def forward(self, images):
        hill = -1000 * (images.flatten(1).sum(1) - 0.5).square()
        return torch.stack((torch.zeros_like(hill), hill), dim=1)


def test_four_apgd_steps_and_two_halvings_by_hand():
    threat = ThreatModel("Linf", 0.2)
    attack = APGDCE(APGDConfig(steps=4), threat)  # windows of 1: each step is a checkpoint
    assert attack.checkpoints == {1: 1, 2: 1, 3: 1, 4: 1}
    images, labels = torch.full((1, 1, 1, 1), 0.6), torch.zeros(1, dtype=torch.long)
    state = AttackState(images, labels, torch.full((1, 1, 1, 1), 0.55), KeyedRng.of(torch.arange(1), 0))
    model, seen = Valley(), []
    for _ in range(4):
        seen.append((state.adv.item(), state.memory["length"].item() if state.memory else 0.4))
        state, _ = attack.step(model, state)
    # 1: from 0.55 down by 2 eps = 0.4, cut at 0.6 - 0.2 = 0.4.
    # 2: the loss fell, so the length halves to 0.2 and 0.55 is taken up again: 0.2 down, cut at 0.4; three quarters of
    #    the way is 0.4375, and the last move, 0.55 - 0.55, adds nothing.
    # 3: the loss rose above that of 0.4 and the length was just halved: on from 0.4375, up by 0.2, three quarters of
    #    that, and a quarter of the last move, 0.4375 - 0.55: 0.559375.
    assert [adv for adv, _ in seen] == pytest.approx([0.55, 0.4, 0.4375, 0.559375], abs=1e-6)
    assert [length for _, length in seen] == pytest.approx([0.4, 0.4, 0.2, 0.2])
    # 4: the loss rose again, but no best since a checkpoint that did not halve: 0.1 now, from 0.55 down to 0.45, three
    #    quarters of that, and a quarter of 0.55 - 0.4375.
    assert state.memory["length"].item() == pytest.approx(0.1)
    assert state.memory["best_adv"].item() == pytest.approx(0.55)
    assert state.adv.item() == pytest.approx(0.55 - 0.075 + 0.028125, abs=1e-6)


def test_apgd_returns_the_best_point_when_it_never_stops():
    attack = APGDCE(APGDConfig(steps=30), ThreatModel("Linf", 0.2))
    images, labels = torch.full((3, 1, 1, 1), 0.6), torch.zeros(3, dtype=torch.long)
    adv = attack.attack_full_budget(Valley(), images, labels, KeyedRng.of(torch.arange(3), 1))
    assert adv.flatten().tolist() == pytest.approx([0.5] * 3, abs=5e-3)


def test_targets_come_in_the_order_of_the_clean_logits_and_are_never_the_label():
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

    images, labels = torch.rand(2, 3, 4, 4), torch.tensor([0, 3])  # the second image is wrong already
    attack = Spy(TargetedConfig(steps=1), ThreatModel("Linf", EPS))
    run_iterative_attack(attack, Fixed(), images, labels, KeyedRng.of(torch.arange(2), 0), "never")
    assert attack.restarts == 4
    assert seen == [(0, [3, 0]), (1, [1]), (2, [4]), (3, [2])]


# --- FAB ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_the_projection_is_the_shortest_move_to_the_plane_inside_the_box(norm):
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(200, 1, 3, 4, generator=generator, dtype=torch.float64)
    normal = torch.randn(200, 1, 3, 4, generator=generator, dtype=torch.float64)
    offset = 3 * torch.randn(200, generator=generator, dtype=torch.float64)
    delta = to_plane(points, normal, offset, norm)
    assert (points + delta).min() >= -1e-12 and (points + delta).max() <= 1 + 1e-12
    missed = offset + (normal * delta).flatten(1).sum(1)
    room = torch.where(normal * offset[:, None, None, None].sign() > 0, points, 1 - points)
    within = (normal.abs() * room).flatten(1).sum(1) >= offset.abs()
    assert 20 < within.sum() < 200
    assert missed[within].abs().max() < 1e-5
    # A plane out of reach gives the corner nearest to it.
    assert torch.allclose(delta[~within].abs(), room[~within])
    # Optimality: no pixel that is not at the box moves less (Linf), or not in proportion to its slope (L2).
    speed = torch.ones_like(normal) if norm == "Linf" else normal.abs()
    pace = (delta.abs() / speed).flatten(1)
    free = (delta.abs() < room - 1e-9).flatten(1)
    largest = pace.where(free, torch.zeros_like(pace)).amax(1, keepdim=True)
    assert torch.allclose(pace[free], largest.expand_as(pace)[free])
    assert (pace[within & free.any(1)] <= largest[within & free.any(1)] + 1e-9).all()


def test_a_projection_by_hand():
    points, normal = torch.tensor([[[[0.9, 0.5]]]]), torch.tensor([[[[1.0, 1.0]]]])
    # Both must rise by 0.4 in all: 0.2 each does not fit on the first, which stops at 0.1; the second takes 0.3.
    delta = to_plane(points, normal, torch.tensor([-0.4]), "Linf")
    assert delta.flatten().tolist() == pytest.approx([0.1, 0.3])
    assert to_plane(points, 0 * normal, torch.tensor([-0.4]), "L2").abs().sum() == 0


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_fab_finds_the_distance_to_a_linear_boundary(norm):
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


def test_fab_returns_the_clean_image_where_the_closest_example_is_outside():
    model = LinearTwoClass(SHAPE).requires_grad_(False)
    images, labels = torch.full((1, *SHAPE), 0.5) + 0.1 * model.w.sign().view(1, *SHAPE), torch.zeros(1).long()
    reach = float(model.gap(images) / model.w.norm(1))
    for eps, falls in ((0.9 * reach, False), (1.1 * reach, True)):
        attack = FABT(FABConfig(steps=20), ThreatModel("Linf", eps))
        found = run_iterative_attack(attack, model, images, labels, KeyedRng.of(torch.arange(1), 0), "never")
        assert found.success.item() is falls
        assert torch.equal(found.adv, images) is not falls
        assert attack.attack_early_stop(model, images, labels, KeyedRng.of(torch.arange(1), 0)).success.item() is falls


# --- Square ---------------------------------------------------------------------------------------


def test_windows_halve_as_the_queries_go():
    attack = Square(SquareConfig(queries=5000), ThreatModel("Linf", EPS))
    halved = [attack._area(query) / 0.8 for query in (0, 5, 6, 25, 26, 100, 101, 500, 501, 4000, 4001, 4999)]
    assert [round(-math.log2(part)) for part in halved] == [0, 0, 1, 1, 2, 2, 3, 4, 5, 8, 9, 9]


def test_inside_autoattack_windows_halve_as_the_reference_s_do():
    reference = pyautoattack.AutoAttack(nn.Flatten(), norm="Linf", eps=EPS, device="cpu").square
    *_, square = AutoAttack(AutoAttackConfig(), ThreatModel("Linf", EPS)).components
    queries = (*range(0, 5000, 7), 10, 11, 50, 51, 200, 201, 500, 501, 1000, 1001, 2000, 2001, 4000, 4001)
    assert all(square._area(query) == reference.p_selection(query) for query in queries)


def test_a_window_lies_inside_the_image_and_its_two_descriptions_agree():
    images, draws = torch.zeros(500, 1, 5, 7), torch.rand(2, 500)
    windows = mask(images, draws[0], draws[1], 3)
    assert (windows.sum((1, 2, 3)) == 9).all()
    assert windows.any(0).all()  # every pixel, corners too, is in some window
    index = window_index(images, draws[0], draws[1], 3)
    assert torch.equal(torch.zeros(500, 35, dtype=torch.bool).scatter(1, index, True), windows.flatten(1))


def test_a_bump_is_a_hill_beside_a_valley_of_length_one():
    pattern = bump(5, torch.zeros(1))
    assert pattern.norm().item() == pytest.approx(1)
    assert (pattern[:2] > 0).all() and (pattern[2:] < 0).all()
    # The lower half, 3 x 5 around its middle: 1 + 1/4 + 1/9 in the center, 1/4 + 1/9 around it, 1/9 at the sides.
    lower = -pattern[2:] / -pattern[2:][0, 0] * (1 / 9)
    rim = 1 / 9 + 1 / 4
    torch.testing.assert_close(
        lower,
        torch.tensor([[1 / 9, rim, rim, rim, 1 / 9], [1 / 9, rim, rim + 1, rim, 1 / 9], [1 / 9, rim, rim, rim, 1 / 9]]),
    )


@pytest.mark.parametrize(("norm", "share"), [("Linf", 0.7), ("L2", 0.3)])
def test_square_stays_on_the_surface_its_margin_never_falls_and_nears_the_optimum(norm, share):
    model, threat = LinearTwoClass(SHAPE).requires_grad_(False), ThreatModel(norm, EPS)
    model.w.fill_(0.01)  # the same everywhere: windows can follow it
    images, labels = 0.3 + 0.4 * torch.rand(6, *SHAPE), torch.zeros(6, dtype=torch.long)
    attack, margins = Square(SquareConfig(queries=200), threat), []
    state = attack.start(images, labels, KeyedRng.of(torch.arange(6), 0))
    for _ in range(200):
        torch.testing.assert_close(threat.distance(state.adv, images), torch.full((6,), EPS))
        state, _ = attack.step(model, state)
        margins.append(state.memory["margin"])
    margins = torch.stack(margins)
    assert (margins.diff(dim=0) >= 0).all()
    drop = (margins[-1] + model.gap(images)) / (EPS * model.w.norm(DUAL[norm]))
    assert (drop <= 1 + 1e-4).all()
    assert drop.mean() > share


# --- all: no attack beats a bound ------------------------------------------------------------------


def certified_net():
    """A one-hidden-layer ReLU network with 4 classes and a Lipschitz bound on each logit difference."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(27, 16), nn.ReLU(), nn.Linear(16, 4))
    return net.eval().requires_grad_(False)


def certified(net, images, labels, threat):
    """Say which images interval arithmetic (Linf) or the product of norms (L2) proves safe."""
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


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_no_attack_fools_an_image_that_is_proved_safe_nor_leaves_the_ball(norm):
    net, images = certified_net(), torch.rand(40, 3, 3, 3)
    labels, noise = net(images).argmax(1), KeyedRng.of(torch.arange(40), 0)
    threat = ThreatModel(norm, 0.02 if norm == "Linf" else 0.12)
    safe = certified(net, images, labels, threat)
    assert 5 < safe.sum() < 37
    fell = {}
    for name in (
        "pgd",
        "fgsm",
        "cw",
        "mifgsm",
        "noise",
        "apgd-ce",
        "apgd-dlr",
        "apgd-t",
        "fab-t",
        "square",
        "autoattack",
    ):
        cls = load_attack(name)
        values = {"queries": 50, "draws": 20, "steps": 10}
        config = cls.Config(**{k: v for k, v in values.items() if k in cls.Config.__dataclass_fields__})
        attack = cls(config, threat)
        for found in (attack.attack_early_stop(net, images, labels, noise), None):
            adv = found.adv if found else attack.attack_full_budget(net, images, labels, noise)
            threat.check(adv, images, name)
            wrong = net(adv).argmax(1) != labels
            assert not (wrong & safe).any(), name
            fell[name] = max(fell.get(name, 0), int(wrong.sum()))
    assert fell["autoattack"] >= max(fell.values())
    assert fell["noise"] < fell["autoattack"] < 40 - int(safe.sum()) + 1
