"""Settings of plug-ins from presets, flags and `--set`."""

from dataclasses import replace

import pytest

from robobench.errors import RequestError
from robobench.planning.request import ExperimentConfig
from robobench.planning.settings import resolve_settings
from robobench.plugins.discovery import load_defense

SETS = ("*.average=ema", "*.inner_steps=3", "*.epochs=2", "trades.inner_steps=4")
REQUEST = ExperimentConfig(dataset="digits", model="cnn", epochs=5, sets=SETS)


def configs(request, *names):
    settings = resolve_settings(request)
    found = [settings.plugin_config(load_defense(name), name, {}) for name in names]
    settings.check_sets_used()
    return found


def test_star_sets_fields_that_a_defense_has():
    """It wins over presets and flags; a setting of one defense wins over it."""
    standard, at, trades = configs(REQUEST, "standard", "at", "trades")
    assert {config.average for config in (standard, at, trades)} == {"ema"} and standard.epochs == 2
    assert (at.inner_steps, trades.inner_steps) == (3, 4)


def test_star_refuses_a_field_no_defense_has():
    with pytest.raises(RequestError, match="'inner_steps'"):
        configs(replace(REQUEST, sets=SETS[:2]), "standard")
    with pytest.raises(RequestError, match=r"at.inner_steps takes a value of type int, got 'x'"):
        configs(replace(REQUEST, sets=("*.inner_steps=x",)), "at")
