"""`compare --executor ray`: refused requests, and a local Ray that gives the rows of a serial run."""

from __future__ import annotations

import socket
import subprocess
import sys
import time

import pandas as pd
import pytest

from robobench.cli import main

TIMES = [
    *("train_seconds", "total_train_seconds", "train_cpu_seconds", "total_train_cpu_seconds", "warmup_seconds"),
    *("peak_memory_bytes", "stage_memory"),
]
TINY = """
defenses = ["standard", "at", "shy"]
threads = 1
epochs = 1
examples = 24
attacks = "fgsm"
eps = "0.1"

[set]
at.inner_steps = [1, 2]
run.train_images = 64
run.eval_batch_size = 16
"""
SHY = '''"""A defense that fails in training."""

from robobench.api import DEFENSES, Defense


@DEFENSES.register("shy")
class Shy(Defense):
    """Raises before the first stage."""

    def stages(self, setup):
        raise RuntimeError("not today")
'''


def refused(arguments, capsys, tmp_path):
    """Return the one-line error of a refused request, which must create nothing."""
    assert main([*arguments, "--out", str(tmp_path / "runs")]) == 2
    message = capsys.readouterr().err.strip()
    assert "\n" not in message and not (tmp_path / "runs").exists()
    return message


def test_missing_ray_names_install_command(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)  # makes the import fail
    message = refused(["compare", "--executor", "ray"], capsys, tmp_path)
    assert message == (
        "robobench: --executor ray needs Ray; in a clone of robobench: uv sync --extra ray, elsewhere: pip install ray"
    )


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (["--executor", "rey"], "did you mean 'ray'"),
        (["--address", "auto"], "belongs to --executor ray"),
        (["--executor", "ray", "--address", "ray://head"], "neither auto nor HOST:PORT"),
        (["--executor", "ray", "--overwrite"], "--out DIR"),
        (["--executor", "ray", "--device", "cpu", "--gpus-per-task", "0.5"], "needs --device cuda"),
    ],
)
def test_wrong_flags_are_refused(flags, word, capsys, tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed; uv sync --extra ray")
    assert word in refused(["compare", *flags], capsys, tmp_path)


def test_unreachable_address_is_refused_quickly(capsys, tmp_path, monkeypatch):
    pytest.importorskip("ray", reason="Ray is not installed; uv sync --extra ray")
    from robobench.execution import ray_executor

    monkeypatch.setattr(ray_executor, "ANSWER_SECONDS", 2.0)
    with socket.socket() as silent:  # accepts connections and never answers
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        for port in (1, silent.getsockname()[1]):
            begun = time.monotonic()
            message = refused(["compare", "--executor", "ray", "--address", f"127.0.0.1:{port}"], capsys, tmp_path)
            assert message.startswith(f"robobench: no Ray answers at --address '127.0.0.1:{port}'")
            assert time.monotonic() - begun < 15


def test_local_ray_gives_serial_rows(tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed; uv sync --extra ray")
    """A grid of two requests, which share all trainings but one: its task graph has each task once."""
    (tmp_path / "shy.py").write_text(SHY)
    (tmp_path / "study.toml").write_text(TINY)
    grid = ["compare", str(tmp_path / "study.toml"), "--plugin", str(tmp_path / "shy.py")]
    command = [sys.executable, "-m", "robobench", *grid, "--executor", "ray", "--out", "ray"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr  # the cells of `shy` failed
    assert "Ray on this machine: up to" in done.stderr and "[16/16]" in done.stderr
    assert "shy (seed 0): training: failed" in done.stderr and "not today" in done.stderr
    assert main([*grid, "--quiet", "--out", str(tmp_path / "serial")]) == 1
    parallel, serial = (pd.read_csv(tmp_path / name / "rows.csv").drop(columns=TIMES) for name in ("ray", "serial"))
    pd.testing.assert_frame_equal(parallel, serial)
    assert parallel.loc[parallel["defense"] == "shy", "robust_accuracy"].isna().all()
    assert set(parallel.loc[parallel["defense"] == "shy", "reason"]) == {"not today"}
