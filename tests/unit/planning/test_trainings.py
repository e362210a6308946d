"""Plans of trainings."""

import pytest

from robobench.planning.planner import Planner
from robobench.planning.request import ExperimentConfig


@pytest.mark.parametrize(("name", "compiled"), [("at", True), ("gradalign", False)])
def test_second_derivatives_turn_compilation_off(name, compiled, tmp_path, monkeypatch):
    monkeypatch.setattr("robobench.core.device.has_compiler", lambda: True)
    planner = Planner(ExperimentConfig(defenses=(name,), compile="on", out=tmp_path / "runs"), dry=True)
    assert planner.models.training(name, 0).compiled is compiled
