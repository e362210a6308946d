"""Training settings: schedules, optimizer, radius ramp-up and errors."""

import pytest

from robobench.core.threat import ThreatModel
from robobench.testing import SmallNet
from robobench.training.config import TrainConfig
from robobench.training.optimizer import lr_schedule, sgd


def test_step_schedule_drops_at_published_epochs():
    at = lr_schedule(TrainConfig())  # 200 epochs, divided by 10 at 100 and 150
    assert [round(at(e), 6) for e in (0, 99.9, 100, 149.9, 150, 199)] == [1, 1, 0.1, 0.1, 0.01, 0.01]


def test_one_cycle_rises_then_falls_to_zero():
    factor = lr_schedule(TrainConfig(epochs=10, schedule="one-cycle"))
    assert factor(0) == 0 and factor(3) == pytest.approx(1) and factor(10) == 0


def test_training_radius_grows_during_rampup():
    config, threat = TrainConfig(epochs=12, eps_rampup=1 / 3), ThreatModel("Linf", 0.1)
    assert [round(config.threat_at_epoch(threat, e).eps, 4) for e in (0, 1, 3, 11)] == [0.025, 0.05, 0.1, 0.1]


def test_sgd_uses_config_values():
    group = sgd(TrainConfig(lr=0.3, momentum=0.8, weight_decay=1e-3))(SmallNet()).param_groups[0]
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.3, 0.8, 1e-3)


@pytest.mark.parametrize(
    ("field", "value"),
    [("epochs", -1), ("drops", (100, 150)), ("lr", 0), ("momentum", 1), ("schedule", "steps"), ("eps_rampup", 2)],
)
def test_invalid_value_error_names_field(field, value):
    with pytest.raises(ValueError, match=f"{field} must be"):
        TrainConfig(**{field: value})
