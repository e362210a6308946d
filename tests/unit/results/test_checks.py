"""Checks that need only records."""

import pytest

from robobench.results.checks import check_records, min_count
from robobench.results.rows import make_rows
from tests.helpers.records import evaluation_record


def record(attack, robust, steps=20, gradient_free=False, **more):
    clean = "1" * len(robust)
    return evaluation_record(attack, robust=robust, clean=clean, steps=steps, gradient_free=gradient_free, **more)


def raised(*records, eps=0.1):
    return {f.check.name for f in check_records(list(records), "Linf", eps) if f.raised}


def test_min_count_is_two_or_two_per_mille():
    assert [min_count(n) for n in (10, 1000, 1001, 10_000)] == [2, 2, 3, 20]


@pytest.mark.parametrize(("one", "flag"), [("0111", False), ("0011", True)])
def test_one_step_stronger_needs_two_images(one, flag):
    many = record("m", "1111")
    assert ("one-step-stronger" in raised(many, record("o", one, steps=1))) is flag
    assert "one-step-stronger" not in raised(many, record("o", one))  # both have many steps


def test_black_box_and_transfer_are_compared_per_image():
    many, one = record("m", "11100"), record("o", "01111", steps=1)
    assert raised(many, one, record("b", "10011", None, True)) == {"black-box-stronger"}
    # The one-step attack succeeds on image 0 too, so transfer examples find only image 1 in addition.
    assert raised(many, one, record("m", "00111", protocol="transfer")) == set()
    transfer = {"protocol": "transfer", "weights_digest": "a"}
    assert raised(many, record("m", "00111", **transfer, source_digest="b")) == {"transfer-stronger"}
    assert raised(many, record("m", "00111", **transfer, source_digest="a")) == set()  # made on the same model


def test_not_monotone_needs_many_steps():
    assert raised(record("m", "0001", eps=0.05), record("m", "0111")) == {"not-monotone"}
    assert raised(record("m", "0011", eps=0.05), record("m", "0111")) == set()
    assert raised(record("o", "0001", 1, eps=0.05), record("o", "0111", 1), record("m", "0001")) == set()


def test_flags_appear_in_rows():
    """Older records, which do not state the kind of attack, raise no flags."""
    group = [record("m", "1111"), record("o", "0011", steps=1)]
    assert [row["flags"] for row in make_rows(group)] == ["one-step-stronger"] * 2
    old = [{k: v for k, v in r.items() if k not in ("steps", "gradient_free")} for r in group]
    assert [row["flags"] for row in make_rows(old)] == ["", ""]


@pytest.mark.parametrize(("lost", "flag"), [(1, False), (2, True)])
def test_square_that_lowers_an_ensemble_is_flagged(lost, flag):
    ensemble = record("autoattack", robust="0011", black_box_found=lost, weights_digest="w")
    assert (make_rows([ensemble])[0]["flags"] == "black-box-lowers-ensemble") is flag
