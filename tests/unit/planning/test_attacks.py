import pytest

from robobench.planning.planner import make_plan
from robobench.planning.request import ExperimentConfig


def planned(tmp_path, **flags):
    """Return (attack, norm, eps) of every planned attack on digits."""
    plan = make_plan(ExperimentConfig(defenses=("standard",), out=tmp_path, examples=8, **flags))
    return {(spec.attack.name, spec.threat.norm, spec.threat.eps) for spec in plan.attacks}


def test_default_attacks_stay_in_the_asked_norm(tmp_path):
    assert {norm for _, norm, _ in planned(tmp_path, sets=("run.held_out=0",), preset="cifar")} == {"Linf"}
    linf = planned(tmp_path, sets=("run.held_out=0",), preset="reference")
    assert linf == {(name, "Linf", 0.05) for name in ("fgsm", "pgd", "autoattack")}
    assert {name for name, *_ in planned(tmp_path, preset="reference", norm="L2")} >= {"pgd", "autoattack-l2"}


@pytest.mark.parametrize(
    ("flags", "radii"),
    [({}, {0.05}), ({"all_radii": True}, {0.05, 0.1}), ({"eps": ("0.2",)}, {0.2}), ({"preset": "quick"}, {0.05, 0.1})],
)
def test_one_radius_unless_more_are_asked(tmp_path, flags, radii):
    assert {eps for *_, eps in planned(tmp_path, **{"preset": "reference", **flags})} == radii


def test_named_attack_keeps_its_own_norm(tmp_path):
    assert planned(tmp_path, attacks=("autoattack-l2",)) == {("autoattack-l2", "L2", 1.0), ("autoattack-l2", "L2", 2.0)}
