"""The L1 ball and the attacks in it, on problems with known solutions."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import nn

from robobench.attacks.apgd import APGDCE
from robobench.attacks.fab import FABT, FABConfig, project_to_plane
from robobench.attacks.square import Square, SquareConfig, window_pattern
from robobench.core.rng import KeyedRng
from robobench.core.threat import ThreatModel, project_l1
from robobench.plugins.discovery import load_attack
from tests.helpers.toys import LinearTwoClass

SHAPE = (3, 6, 6)


def quadratic_program(adv, image, eps):
    """Minimize the distance to `adv` over ball and box with scipy; delta is a difference of two positive vectors."""
    count = len(image)

    def objective(parts):
        rest = image + parts[:count] - parts[count:] - adv
        return 0.5 * (rest**2).sum(), np.concatenate((rest, -rest))

    bounds = [*((0, 1 - value) for value in image), *((0, value) for value in image)]
    inside = {"type": "ineq", "fun": lambda parts: eps - parts.sum(), "jac": lambda parts: -np.ones(2 * count)}
    options = {"ftol": 1e-14, "maxiter": 500}
    start = np.zeros(2 * count)
    found = minimize(objective, start, jac=True, bounds=bounds, constraints=[inside], method="SLSQP", options=options)
    return image + found.x[:count] - found.x[count:]


@pytest.mark.parametrize(("count", "eps"), [(1, 0.4), (3, 0.1), (5, 0.5), (8, 1.0), (8, 20.0)])
def test_projection_solves_quadratic_program(count, eps):
    generator = torch.Generator().manual_seed(count)
    images = torch.rand(12, count, generator=generator, dtype=torch.float64)
    adv = images + torch.randn(12, count, generator=generator, dtype=torch.float64)
    found = project_l1(adv, images, eps)
    for one, image, result in zip(adv.numpy(), images.numpy(), found.numpy(), strict=True):
        np.testing.assert_allclose(result, quadratic_program(one, image, eps), atol=1e-5)


def test_projection_by_hand():
    """Both values lose 0.2; the second has room for 0.1 only, so the first loses less."""
    images = torch.tensor([[0.5, 0.5], [0.5, 0.9]], dtype=torch.float64)
    adv = images + torch.tensor([[0.4, -0.4], [0.5, 0.5]], dtype=torch.float64)
    found = project_l1(adv, images, 0.4) - images
    torch.testing.assert_close(found, torch.tensor([[0.2, -0.2], [0.3, 0.1]], dtype=torch.float64))
    clipped = project_l1(adv, images * 0 + 0.5, 0.4)  # without the box in mind, then clipped: less than the radius
    assert (clipped[1] - images[1]).abs().sum() != pytest.approx(0.4)


@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
@pytest.mark.parametrize("eps", [0.1, 12.0, 300.0])
def test_projection_fills_the_ball(scale, eps):
    """Also for images of 0 and 0.999 only, where most values have no room."""
    images = torch.cat((torch.rand(8, 3, 32, 32), torch.rand(8, 3, 32, 32).round() * 0.999))
    adv, threat = images + scale * torch.randn_like(images), ThreatModel("L1", eps)
    found = threat.project(adv, images)
    threat.check(found, images, "projection")
    reached, possible = threat.distance(found, images), threat.distance(adv.clamp(0, 1), images)
    assert (reached <= eps).all()
    torch.testing.assert_close(reached, possible.clamp_max(eps), rtol=2e-3, atol=1e-4)
    torch.testing.assert_close(threat.project(found, images), found, rtol=0, atol=1e-4)


def test_step_moves_largest_free_values():
    threat, images = ThreatModel("L1", 5.0), torch.full((1, 1, 10, 20), 0.5)
    images[0, 0, 0, :2] = torch.tensor([1.0, 0.0])
    grad = torch.linspace(1, 2, 200).view(1, 1, 10, 20)
    grad[0, 0, 0, :3] = torch.tensor([9.0, -8.0, -7.0])  # the first two would leave [0, 1]
    moved = threat.step(images, grad, 0.4, images) - images
    assert moved[0, 0, 0, 2] == pytest.approx(-0.2) and moved[0, 0, 9, 19] == pytest.approx(0.2)
    assert (moved != 0).sum() == 2  # a hundredth of 200 values
    assert torch.equal(threat.direction(grad).flatten()[:2], torch.tensor([1.0, 0.0]))


def largest_drop(model, images, eps):
    """Return by how much the logit gap can fall: values move to 0 or 1, the largest weight first, up to eps: (B,)."""
    order = model.w.abs().argsort(descending=True)
    room = torch.where(model.w > 0, images.flatten(1), 1 - images.flatten(1))[:, order]
    before = room.cumsum(1) - room
    return (torch.minimum((eps - before).clamp_min(0), room) * model.w.abs()[order]).sum(1)


@pytest.mark.parametrize(("name", "eps"), [("pgd", 0.2), ("pgd", 10.0), ("apgd-ce", 2.0), ("apgd-ce", 10.0)])
def test_attack_reaches_linear_optimum(name, eps):
    model = LinearTwoClass(SHAPE).eval().requires_grad_(False)
    images, labels = torch.rand(4, *SHAPE), torch.zeros(4, dtype=torch.long)
    values = {"pgd": {"steps": 100, "relative_step": 0.05}, "apgd-ce": {}}
    cls = load_attack(name)
    attack = cls(cls.Config(**values[name]), ThreatModel("L1", eps))
    adv = attack.attack_full_budget(model, images, labels, KeyedRng.of(torch.arange(4), name))
    attack.threat.check(adv, images, name)
    share = (model.gap(images) - model.gap(adv)) / largest_drop(model, images, eps)
    assert (share <= 1 + 1e-4).all()
    assert (share > 0.95).all(), share


def test_robust_accuracy_is_closed_form():
    model, eps = LinearTwoClass(SHAPE).eval().requires_grad_(False), 2.0
    images, labels = torch.rand(4, *SHAPE), torch.zeros(4, dtype=torch.long)
    factors = torch.tensor([0.2, 0.97, 1.02, 1.5])  # of the largest possible drop
    for image, label, factor, reach in zip(images, labels, factors, largest_drop(model, images, eps), strict=True):
        model.bias.fill_(float(factor * reach - (image - 0.5).flatten() @ model.w))
        attack = APGDCE(APGDCE.Config(), ThreatModel("L1", eps))
        result = attack.attack_early_stop(model, image[None], label[None], KeyedRng.of(torch.arange(1), 0))
        attack.threat.check(result.adv, image[None], "apgd-ce")
        assert result.success.item() is bool(factor < 1)


def test_certified_images_stay_correct():
    """No attack succeeds where a Lipschitz bound of a one-layer ReLU network excludes it."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(27, 16), nn.ReLU(), nn.Linear(16, 4)).eval().requires_grad_(False)
    images, threat = torch.rand(30, 3, 3, 3), ThreatModel("L1", 0.35)
    labels, rng = net(images).argmax(1), KeyedRng.of(torch.arange(30), 0)
    difference = net[3].weight[labels][:, None] - net[3].weight[None]  # (B, K, 16)
    bound = threat.eps * (difference.abs() * net[1].weight.abs().amax(1)).sum(2)
    lead = net(images).gather(1, labels[:, None]) - net(images)
    robust = (lead > bound).scatter(1, labels[:, None], True).all(1)
    assert 5 < robust.sum() < 27
    successes = {}
    for name in ("pgd", "noise", "square", "autoattack"):
        cls, values = load_attack(name), {"queries": 20, "samples": 20, "steps": 5}
        config = cls.Config(**{k: v for k, v in values.items() if k in cls.Config.__dataclass_fields__})
        attack = cls(config, threat)
        for result in (attack.attack_early_stop(net, images, labels, rng), None):
            adv = result.adv if result else attack.attack_full_budget(net, images, labels, rng)
            threat.check(adv, images, name)
            wrong = net(adv).argmax(1) != labels
            assert not (wrong & robust).any(), name
            successes[name] = max(successes.get(name, 0), int(wrong.sum()))
    assert successes["autoattack"] == max(successes.values()) > successes["noise"]


def test_plane_projection_is_shortest():
    """Pixels move to their bound in the order of their weight; at most one stops on the way."""
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(100, 1, 3, 4, generator=generator, dtype=torch.float64)
    normal = torch.randn(100, 1, 3, 4, generator=generator, dtype=torch.float64)
    offset = 3 * torch.randn(100, generator=generator, dtype=torch.float64)
    delta = project_to_plane(points, normal, offset, "L1")
    room = torch.where(normal * offset[:, None, None, None].sign() > 0, points, 1 - points).flatten(1)
    within = (normal.abs().flatten(1) * room).sum(1) >= offset.abs()
    missed = offset + (normal * delta).flatten(1).sum(1)
    assert 20 < within.sum() < 100 and missed[within].abs().max() < 1e-9
    assert torch.allclose(delta.flatten(1).abs()[~within], room[~within])
    order = normal.flatten(1).abs().argsort(1, descending=True)
    moved, room = delta.flatten(1).abs().gather(1, order), room.gather(1, order)
    full = (moved >= room - 1e-12).long()
    assert (full.diff(dim=1)[:, :] <= 0).logical_or(moved[:, 1:] > 0).all()
    assert ((moved > 1e-12) & (moved < room - 1e-12)).sum(1).max() <= 1


def test_fab_finds_distance_to_linear_boundary():
    model = LinearTwoClass(SHAPE).double().requires_grad_(False)
    images = 0.5 + 0.1 * torch.rand(4, *SHAPE, dtype=torch.float64)
    labels = (model.gap(images) < 0).long()
    delta = project_to_plane(images, model.w.view(1, *SHAPE).expand_as(images), model.gap(images), "L1")
    closest = delta.abs().flatten(1).sum(1)
    threat = ThreatModel("L1", float(closest.max()) * 1.2)
    adv = FABT(FABConfig(steps=30), threat).attack_full_budget(model, images, labels, KeyedRng.of(torch.arange(4), 0))
    distance = threat.distance(adv, images)
    assert (model(adv).argmax(1) != labels).all()
    assert ((distance >= closest) & (distance <= 1.06 * closest)).all()  # the last overshoot is 5 %


def test_square_margin_never_decreases():
    model, threat = LinearTwoClass(SHAPE).requires_grad_(False), ThreatModel("L1", 2.0)
    model.w.fill_(0.01)
    images, labels = 0.3 + 0.4 * torch.rand(6, *SHAPE), torch.zeros(6, dtype=torch.long)
    attack, margins = Square(SquareConfig(queries=200), threat), []
    state = attack.start(images, labels, KeyedRng.of(torch.arange(6), 0))
    for _ in range(200):
        threat.check(state.adv, images, "square")
        state, _ = attack.step(model, state)
        margins.append(state.memory["best_margin"])
    assert (torch.stack(margins).diff(dim=0) >= 0).all()  # type: ignore[attr-defined]
    assert ((margins[-1] + model.gap(images)) / largest_drop(model, images, 2.0)).mean() > 0.5


def test_window_pattern_has_length_one():
    pattern = window_pattern(5, torch.zeros(1), "L1")
    assert pattern.abs().sum().item() == pytest.approx(1)
    # The lower half is 3 x 5: 1 + 1/16 + 1/81 in the center, 1/81 at the sides.
    assert (pattern[3, 2] / pattern[2, 0]).item() == pytest.approx((1 + 1 / 16 + 1 / 81) * 81, rel=1e-5)


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 10, 100])
def test_radius_shrinks_on_schedule(steps):
    """Balls of 3, 2 and 1 times eps take 30, 30 and 40 % of the steps; every iterate stays in its ball."""
    attack = APGDCE(APGDCE.Config(steps=steps), ThreatModel("L1", 1.0))
    model = LinearTwoClass(SHAPE).requires_grad_(False)
    images, labels = torch.rand(2, *SHAPE), torch.zeros(2, dtype=torch.long)
    state, reached = attack.start(images, labels, KeyedRng.of(torch.arange(2), 0)), []
    for _ in range(attack.steps):
        reached.append(float(attack.threat.distance(state.adv, images).max()))
        state, _ = attack.step(model, state)
    counts = [count + 1 for _, count in attack.balls]
    assert sum(count - 1 for count in counts) == steps and attack.steps == steps + 2
    limits = torch.tensor([3.0] * counts[0] + [2.0] * counts[1] + [1.0] * counts[2])[: attack.steps]
    assert (torch.tensor(reached) <= limits + 1e-6).all()
    if steps == 100:
        assert [count for _, count in attack.balls] == [30, 30, 40]
        assert max(reached) > 2.9
