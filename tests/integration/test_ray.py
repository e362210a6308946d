"""`compare --executor ray`: what is refused, and a grid on a local Ray that ends like a serial run."""

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
TINY = [
    *("compare", "--defenses", "standard,at,shy", "--threads", "1", "--epochs", "1", "--examples", "24"),
    *("--set", "run.train_images=64", "--set", "run.eval_batch_size=16", "--attacks", "fgsm", "--eps", "0.1"),
]
SHY = '''"""Fails when it is trained."""

from robobench.api import DEFENSES, Defense


@DEFENSES.register("shy")
class Shy(Defense):
    """Refuses to begin."""

    def stages(self, setup):
        raise RuntimeError("not today")
'''


def refused(arguments, capsys, tmp_path):
    """Return the one line of a refused request; nothing was made."""
    assert main([*arguments, "--out", str(tmp_path / "runs")]) == 2
    said = capsys.readouterr().err.strip()
    assert "\n" not in said and not (tmp_path / "runs").exists()
    return said


def test_without_ray_one_line_says_what_to_install(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)  # as the import system marks a module that is not there
    said = refused(["compare", "--executor", "ray"], capsys, tmp_path)
    assert said == "robobench: --executor ray needs Ray; install it with: pip install 'robobench[ray]'"


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
def test_wrong_requests_are_refused_in_one_line(flags, word, capsys, tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed; uv sync --extra ray")
    assert word in refused(["compare", *flags], capsys, tmp_path)


def test_an_address_where_no_ray_answers_is_refused_soon(capsys, tmp_path, monkeypatch):
    pytest.importorskip("ray", reason="Ray is not installed; uv sync --extra ray")

    monkeypatch.setattr(cluster, "ANSWER_SECONDS", 2.0)
    with socket.socket() as silent:  # takes the connection and never says a word
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        for port in (1, silent.getsockname()[1]):
            begun = time.monotonic()
            said = refused(["compare", "--executor", "ray", "--address", f"127.0.0.1:{port}"], capsys, tmp_path)
            assert said.startswith(f"robobench: no Ray answers at --address '127.0.0.1:{port}'")
            assert time.monotonic() - begun < 15


def test_a_grid_on_a_local_ray_ends_like_a_serial_run(tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed; uv sync --extra ray")
    (tmp_path / "shy.py").write_text(SHY)
    command = [sys.executable, "-m", "robobench", *TINY, "--plugin", "shy.py", "--executor", "ray", "--out", "ray"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr  # the cells of `shy` failed
    assert "Ray on this machine: up to" in done.stderr and "[13/13]" in done.stderr
    assert "shy (seed 0): training: failed" in done.stderr and "not today" in done.stderr
    assert main([*TINY, "--plugin", str(tmp_path / "shy.py"), "--quiet", "--out", str(tmp_path / "serial")]) == 1
    own, serial = (pd.read_csv(tmp_path / name / "rows.csv").drop(columns=TIMES) for name in ("ray", "serial"))
    pd.testing.assert_frame_equal(own, serial)
    assert own.loc[own["defense"] == "shy", "robust_accuracy"].isna().all()
    assert set(own.loc[own["defense"] == "shy", "reason"]) == {"not today"}
