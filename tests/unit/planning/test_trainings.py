"""Plans of trainings."""

import pytest

from robobench.planning.planner import Planner
from robobench.planning.request import ExperimentConfig


@pytest.mark.parametrize(("name", "compiled"), [("at", True), ("gradalign", False)])
def test_second_derivatives_turn_compilation_off(name, compiled, tmp_path, monkeypatch):
    monkeypatch.setattr("robobench.core.device.has_compiler", lambda: True)
    planner = Planner(ExperimentConfig(defenses=(name,), compile="on", out=tmp_path / "runs"), dry=True)
    assert planner.models.training(name, 0).compiled is compiled


def test_training_norms_are_in_the_key(tmp_path):
    def job(**flags):
        return Planner(ExperimentConfig(defenses=("at",), out=tmp_path, **flags), dry=True).models.training("at", 0)

    several = job(train_norm="Linf,L1")
    assert several.recipe["threat"] == {"norm": "Linf:0.1,L1:20", "eps": None}
    assert several.key == job(train_norm="linf, 1", train_eps="0.1,20").key != job(train_norm="L1,Linf").key
    one = job()
    assert one.recipe["threat"] == {"norm": "Linf", "eps": 0.1}  # as before training against several norms
    assert one.key == job(train_norm="Linf", train_eps="0.1").key != several.key
