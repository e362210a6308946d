"""Plans of many requests."""

from dataclasses import replace
from pathlib import Path

import pytest

from robobench.data import load_dataset
from robobench.errors import RequestError
from robobench.planning import planner
from robobench.planning.request import ExperimentConfig


def test_grid_loads_equal_data_once(tmp_path, monkeypatch):
    loaded, load = [], load_dataset
    monkeypatch.setattr(planner, "load_dataset", lambda *names, **how: loaded.append(names) or load(*names, **how))
    common = {"defenses": ("at", "trades"), "model": "cnn", "seeds": (0, 1), "attacks": ("fgsm",), "out": tmp_path}
    requests = [ExperimentConfig(epochs=epochs, **common) for epochs in (1, 2)]
    plans = [plan for plan, _ in planner.prepare_all(requests)]
    assert loaded == [("digits",)]
    alone = [planner.make_plan(request) for request in requests]
    assert [[m.key for m in plan.models] for plan in plans] == [[m.key for m in plan.models] for plan in alone]
    keys = {model.key for plan in plans for model in plan.models}
    assert len(keys) == 8  # 2 defenses, 2 seeds, 2 numbers of epochs


def test_unused_settings_of_a_file_are_noted(tmp_path):
    """A request of its own refuses them; those of a file share settings."""
    given = {"sets": ("trades.beta=3", "mart.beta=5"), "out": tmp_path, "attacks": ("fgsm",)}
    requests = [ExperimentConfig(defenses=(name,), study=Path("s.toml"), **given) for name in ("at", "trades")]
    first, second = (plan.notes for plan, _ in planner.prepare_all(requests))
    assert [note for note in first if "s.toml" in note] == [
        "'s.toml': no request runs what these settings are for: mart.beta"
    ]
    assert not any("s.toml" in note for note in second)
    with pytest.raises(RequestError, match="unknown name in --set"):
        planner.make_plan(replace(requests[0], study=None))
