import pytest

from robobench.core.numbers import format_radius, parse_eps, parse_train_threat
from robobench.errors import RequestError


def test_radius_in_command_is_exact():
    assert [format_radius(eps) for eps in (8 / 255, 0.1, 2.0)] == ["8/255", "0.1", "2"]
    for eps in (0.1 + 1e-15, 1 / 3, 8 / 255):
        assert parse_eps(format_radius(eps), "L2") == eps


def test_each_training_norm_has_its_radius():
    assert parse_train_threat("linf, 1", "8/255, 12") == [("Linf", "8/255"), ("L1", "12")]
    assert parse_train_threat("L1,Linf", None) == [("L1", None), ("Linf", None)]
    assert parse_train_threat("L2", "128/255") == [("L2", "128/255")]
    for norms, radii, why in (
        ("Linf,inf", None, "names a norm twice"),
        ("Linf,L1", "8/255", "one radius for each of Linf, L1, in this order, got 8/255"),
        ("Linf", "8/255,12", "one radius for each of Linf"),
        ("Linf,", None, "unknown norm ''"),
    ):
        with pytest.raises(RequestError, match=why):
            parse_train_threat(norms, radii)
