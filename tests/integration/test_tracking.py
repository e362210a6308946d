"""--track: what a run logs, read back by each tool's own library."""

from __future__ import annotations

import csv
import json
from importlib.util import find_spec

import pandas as pd
import pytest

import robobench
from robobench.errors import RequestError

FLAGS = {"epochs": 2, "examples": 16, "attacks": "fgsm", "eps": "0.1", "threads": 1, "protocol": "white-box"}
CELL = "white-box/fgsm Linf 0.1"


PLUGIN = '''"""A tracker of a stranger."""

import json

from robobench.api import TRACKERS, Tracker


@TRACKERS.register("json-lines")
class JsonLines(Tracker):
    """Appends what it is told to a file."""

    def __init__(self, run, config, folder):
        folder.parent.mkdir(exist_ok=True)
        self.file = folder.with_suffix(".txt")
        self.write("open", run, config["defense"])

    def write(self, *line):
        with self.file.open("a") as file:
            file.write(json.dumps(line) + "\\n")

    def log(self, values, epoch=None):
        self.write(epoch, values)

    def artifact(self, path):
        self.write("artifact", str(path))

    def close(self):
        self.write("close")
'''


def run(out, track, **flags):
    """Train a model, or reuse it; return its folder, its row and its metrics by name and epoch."""
    rows = robobench.run("standard", out=out, track=track, sets=("run.train_images=64",), **FLAGS, **flags)
    (folder,) = out.glob("standard-*")
    with (folder / "metrics.csv").open() as file:
        metrics = {(f"{s}/{name}", int(epoch) + 1): float(v) for s, epoch, name, v in list(csv.reader(file))[1:]}
    return folder, rows.iloc[0], metrics


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("tracked") / "runs"


def test_plugin_sees_metrics_results_and_path(out, tmp_path):
    (tmp_path / "lines.py").write_text(PLUGIN)
    flags = {"track": "json-lines", "plugins": str(tmp_path / "lines.py")}
    for again in range(2):  # the second time everything is in the store
        (out / "tracking" / "json-lines.txt").unlink(missing_ok=True)
        folder, row, metrics = run(out, **flags)
        opened, *epochs, artifact, cell, closed = map(
            json.loads, (out / "tracking" / "json-lines.txt").read_text().splitlines()
        )
        assert {(name, epoch): v for epoch, values in epochs for name, v in values.items()} == metrics, again
        assert opened == ["open", folder.name, "standard"] and artifact == ["artifact", str(folder)]
        assert cell == [None, {CELL: row["robust_accuracy"], "clean_accuracy": row["clean_accuracy"]}]
        assert closed == ["close"]


def test_failing_tracker_stops_no_run(out, tmp_path, capsys):
    (tmp_path / "broken.py").write_text(PLUGIN.replace("json-lines", "broken").replace("epoch=None):", "epoch):"))
    _, row, _ = run(out, track="broken", plugins=str(tmp_path / "broken.py"))
    assert row["status"] == "ok" and "--track broken failed and is switched off" in capsys.readouterr().err


def test_tensorboard_reads_event_files(out):
    pytest.importorskip("tensorboard", reason="uv sync --extra tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder, row, metrics = run(out, "tensorboard")
    events = EventAccumulator(str(out / "tracking" / "tensorboard" / folder.name))
    events.Reload()
    for name, epoch in metrics:
        (event,) = [e for e in events.Scalars(name) if e.step == epoch]
        assert event.value == pytest.approx(metrics[name, epoch], rel=1e-6)  # event files hold float32
    assert events.Scalars(CELL)[0].value == pytest.approx(row["robust_accuracy"])
    assert "model/text_summary" in events.Tags()["tensors"]


def test_mlflow_reads_file_store(out, monkeypatch):
    pytest.importorskip("mlflow", reason="uv sync --extra mlflow")
    from mlflow.tracking import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    folder, row, metrics = run(out, "mlflow")
    run(out, "mlflow")  # continues the same run
    client = MlflowClient(tracking_uri=f"file:{out / 'tracking' / 'mlflow'}")
    (found,) = client.search_runs([client.get_experiment_by_name("robobench").experiment_id])
    assert found.data.metrics[CELL] == row["robust_accuracy"] and found.data.tags["model_folder"] == str(folder)
    for name, epoch in metrics:
        history = {m.step: m.value for m in client.get_metric_history(found.info.run_id, name)}
        assert history[epoch] == metrics[name, epoch]


def test_wandb_writes_offline_run(out, monkeypatch):
    pytest.importorskip("wandb", reason="uv sync --extra wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    folder, _, _ = run(out, "wandb")
    (file,) = (out / "tracking" / "wandb").rglob(f"run-{folder.name}.wandb")
    content = file.read_bytes()
    assert CELL.encode() in content and b"train/loss" in content and b"epoch" in content


def test_trackio_keeps_local_database(out, monkeypatch):
    if find_spec("trackio") is None:  # not imported here: it reads TRACKIO_DIR when it is
        pytest.skip("uv sync --extra trackio")
    monkeypatch.delenv("TRACKIO_DIR", raising=False)
    folder, _, metrics = run(out, "trackio")
    import sqlite3

    with sqlite3.connect(out / "tracking" / "trackio" / "robobench.db") as base:
        table = pd.read_sql("select * from metrics", base)
    assert set(table["run_name"]) == {folder.name} and "train/loss" in "".join(table["metrics"].map(str))
    assert len(table) >= len({epoch for _, epoch in metrics})


def test_unknown_tracker_is_refused(tmp_path):
    with pytest.raises(RequestError, match="unknown tracker 'tensorbord'; did you mean 'tensorboard'"):
        robobench.run("standard", out=tmp_path / "runs", track="tensorbord")
