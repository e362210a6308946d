"""Threat models, on values worked out by hand."""

import math

import pytest
import torch

from robobench.core.numbers import DISTANCE_NORMS, NORMS, canonical_norm, parse_eps
from robobench.core.rng import KeyedRng
from robobench.core.threat import ThreatModel, check_unit_range
from robobench.errors import RequestError, ThreatModelError


def pixels(*values):
    """Return one image with one row of gray values: (1, 1, 1, N)."""
    return torch.tensor(values).view(1, 1, 1, -1)


def test_linf_projection_clips_to_ball_and_box():
    adv = ThreatModel("Linf", 0.1).project(pixels(0.9, 0.2, -0.5), pixels(0.5, 0.25, 0.05))
    torch.testing.assert_close(adv, pixels(0.6, 0.2, 0.0))


def test_l2_projection_keeps_direction():
    adv = ThreatModel("L2", 0.25).project(pixels(0.8, 0.9), pixels(0.5, 0.5))  # delta (0.3, 0.4), length 0.5
    torch.testing.assert_close(adv, pixels(0.65, 0.7))


def test_l2_projection_keeps_inner_points():
    inside = pixels(0.53, 0.54)
    torch.testing.assert_close(ThreatModel("L2", 0.25).project(inside, pixels(0.5, 0.5)), inside)


def test_projection_does_not_modify_arguments():
    for norm in NORMS:
        adv, images = pixels(0.9, 0.1), pixels(0.5, 0.5)
        ThreatModel(norm, 0.1).project(adv, images)
        assert torch.equal(adv, pixels(0.9, 0.1)) and torch.equal(images, pixels(0.5, 0.5))


@pytest.mark.parametrize("norm", NORMS)
def test_eps_zero_returns_clean_images(norm):
    threat, images = ThreatModel(norm, 0.0), torch.rand(3, 3, 4, 4)
    rng = KeyedRng.of(torch.arange(3), "zero")
    assert torch.equal(threat.project(images + 0.3, images), images)
    assert torch.equal(threat.project(images, images), images)
    assert torch.equal(threat.random_start(images, rng), images)
    assert torch.equal(threat.step(images, torch.zeros_like(images), 0.0, images), images)
    threat.check(images, images, "attack 'a'")


def test_ascent_direction_is_sign_or_unit_gradient():
    grad = pixels(3.0, -4.0, 0.0)
    assert torch.equal(ThreatModel("Linf", 1).direction(grad), pixels(1.0, -1.0, 0.0))
    torch.testing.assert_close(ThreatModel("L2", 1).direction(grad), pixels(0.6, -0.8, 0.0))


@pytest.mark.parametrize("flush", [False, True])
@pytest.mark.parametrize("scale", [1e-30, 1e-37])
def test_l2_direction_survives_underflow(scale, flush):
    torch.set_flush_denormal(flush)
    try:
        grad = torch.cat((pixels(3.0, -4.0) * scale, pixels(0.0, 0.0)))
        direction = ThreatModel("L2", 1).direction(grad)
    finally:
        torch.set_flush_denormal(False)
    torch.testing.assert_close(direction, torch.cat((pixels(0.6, -0.8), pixels(0.0, 0.0))))


@pytest.mark.parametrize("norm", NORMS)
def test_random_starts_fill_the_ball(norm):
    threat, images = ThreatModel(norm, 0.2), torch.full((200, 3, 4, 4), 0.5)
    start = threat.random_start(images, KeyedRng.of(torch.arange(200), "start"))
    threat.check(start, images, "attack 'a'")
    reached = threat.distance(start, images)
    assert reached.max() > 0.19
    assert norm == "Linf" or 0.08 < reached.mean() < 0.12  # the length is uniform in [0, eps]


def test_check_reports_images_outside_ball():
    threat, images = ThreatModel("L2", 0.5), torch.full((4, 1, 1, 2), 0.5)
    adv = images.clone()
    adv[1, 0, 0] += torch.tensor([0.3, 0.4])  # exactly eps
    threat.check(adv, images, "attack 'a'")
    adv[2, 0, 0] += torch.tensor([0.36, 0.48])
    with pytest.raises(ThreatModelError) as error:
        threat.check(adv, images, "attack 'a'")
    assert str(error.value) == ("attack 'a' left the threat model on 1 of 4 images: max ||delta||_2 = 0.6 > eps = 0.5")


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("norm", NORMS)
def test_check_refuses_non_finite_values(norm, bad):
    images = torch.full((2, 1, 2, 2), 0.5)
    adv = images.clone()
    adv[0, 0, 0, 0] = bad
    with pytest.raises(ThreatModelError, match="not finite"):
        ThreatModel(norm, 0.5).check(adv, images, "attack 'a'")


def test_check_refuses_wrong_shape_and_range():
    images = torch.full((2, 1, 2, 2), 0.99)
    with pytest.raises(ThreatModelError, match=r"returned shape \(1, 1, 2, 2\)"):
        ThreatModel("Linf", 0.5).check(images[:1], images, "attack 'a'")
    with pytest.raises(ThreatModelError, match=r"left \[0, 1\]"):
        ThreatModel("Linf", 0.5).check(images + 0.1, images, "attack 'a'")


@pytest.mark.parametrize(
    ("text", "norm", "eps"),
    [("8/255", "Linf", 8 / 255), ("0.5", "L2", 0.5), (0.25, "Linf", 0.25), ("2", "L2", 2.0), ("0", "L2", 0.0)],
)
def test_eps_is_parsed_from_fraction_or_decimal(text, norm, eps):
    assert parse_eps(text, norm) == pytest.approx(eps)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("8", "eps 8 is larger than the whole pixel range [0, 1]; did you mean 8/255?"),
        ("8/0", "eps '8/0' is not a number; write a fraction such as 8/255 or a decimal such as 0.5"),
        ("nan", "eps 'nan' is not a number; write a fraction such as 8/255 or a decimal such as 0.5"),
        ("wide", "eps 'wide' is not a number; write a fraction such as 8/255 or a decimal such as 0.5"),
        ("-1", "eps must be a finite number >= 0, got -1; write 8/255 or 0.5"),
        (math.nan, "eps must be a finite number >= 0, got nan; write 8/255 or 0.5"),
    ],
)
def test_wrong_eps_is_refused(text, message):
    with pytest.raises(RequestError) as error:
        parse_eps(text, "Linf")
    assert str(error.value) == message


def test_norm_ignores_case_and_suggests():
    assert canonical_norm("linf") == "Linf"
    assert canonical_norm("l2") == "L2"
    assert canonical_norm("l1") == "L1"
    with pytest.raises(RequestError, match="unknown norm 'Linv'; did you mean 'Linf'"):
        canonical_norm("Linv")
    with pytest.raises(RequestError, match="unknown norm 'L3'"):
        ThreatModel("L3", 0.5)


def test_l0_counts_and_does_not_project():
    threat, images = ThreatModel("L0", 2), torch.full((2, 3, 1, 2), 0.5)
    adv = images.clone()
    adv[0, :, 0, 1], adv[1, 0, 0, 0] = 0.0, 0.5 + 1e-6
    assert threat.distance(adv, images).tolist() == [3, 1]
    assert threat.contains(adv, images).tolist() == [False, True]
    for use in (threat.project, threat.direction, threat.random_start):
        with pytest.raises(RequestError, match="norm L0 has no projection"):
            use(*(images,) if use == threat.direction else (images, KeyedRng.of(torch.arange(2), "test")))
    assert canonical_norm("l_0", DISTANCE_NORMS) == "L0"
    with pytest.raises(RequestError, match="norm '0' is for distances only: robobench distances --norm L0"):
        canonical_norm(0)


def test_images_outside_unit_range_are_refused():
    check_unit_range(torch.tensor([0.0, 1.0]))
    check_unit_range(torch.empty(0))
    for bad in (torch.tensor([-2.12, 2.64]), torch.tensor([0.5, math.nan])):
        with pytest.raises(RequestError, match=r"images must lie in \[0, 1\].*normalize inside the model"):
            check_unit_range(bad)


def test_threat_is_printed_and_scaled():
    assert str(ThreatModel("Linf", 16 / 255)) == "Linf 16/255"
    assert ThreatModel("L2", 1.0).scaled(0.5) == ThreatModel("L2", 0.5)


def test_rounded_radius_is_its_multiple_of_255():
    assert parse_eps("0.03137254902", "Linf") == parse_eps("8/255", "Linf") == 8 / 255
    assert [parse_eps(text, "Linf") for text in ("0.1", "0.0314", "0.05")] == [0.1, 0.0314, 0.05]
