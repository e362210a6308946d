"""Plans of many requests."""

from robobench.data import load_dataset
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
