"""The short form of the fault injection scripts, signals, and `store`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from robobench.cli import main
from robobench.store.artifacts import Store
from robobench.training import loop

FAULT_INJECTION = Path(__file__).parents[1] / "fault_injection"


def test_fault_injection_finds_no_problems():
    done = subprocess.run([sys.executable, FAULT_INJECTION / "smoke.py"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    for line in ("3 kills", "corruption: ", "stopped by", "wrong command lines", "concurrent: 2 processes"):
        assert line in done.stdout


@pytest.fixture
def store(tmp_path):
    """A store with two evaluations, "a" and "b"."""
    filled = Store(tmp_path / "runs")
    for name in ("a", "b"):
        with filled.create("evaluations", name, {"is": name}) as work:
            (work / "record.json").write_text(json.dumps({"is": name}))
    return filled


def test_store_check_reports_damage_and_changes_nothing(store, capsys):
    assert main(["store", "check", "--out", str(store.root)]) == 0
    assert capsys.readouterr().out == "2 artifacts intact, 0 damaged\n"
    file = store.folder("evaluations", "b") / "record.json"
    file.write_text("{}")
    assert main(["store", "check", "--out", str(store.root)]) == 1
    output = capsys.readouterr().out
    assert f"damaged: checksum mismatch in '{file}'" in output and "1 damaged" in output
    assert file.read_text() == "{}"


def test_store_list_counts_artifacts_and_quarantined(store, capsys):
    (store.folder("evaluations", "b") / "record.json").write_text("{}")
    assert store.find("evaluations", "b") is None
    assert main(["store", "list", "--out", str(store.root)]) == 0
    lines = [line.split()[:-2] for line in capsys.readouterr().out.splitlines()]
    assert lines == [["evaluations", "1"], ["quarantined", "1"]]


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_saves_and_run_resumes(tmp_path, capsys, monkeypatch, sent, status):
    """A signal finishes the step, saves, prints the command to resume, and sets the exit status."""
    steps: list[int] = []

    def step_and_signal(*arguments: object, **more: object):
        steps.append(1)
        if len(steps) == 4:  # the first is the warm-up's
            os.kill(os.getpid(), sent)
        return real(*arguments, **more)

    real = loop.one_step  # type: ignore[attr-defined]
    monkeypatch.setattr(loop, "one_step", step_and_signal)
    arguments = [
        "run", "--defense", "standard", "--epochs", "2", "--batch-size", "16", "--examples", "8", "--attacks", "fgsm",
        "--protocol", "white-box", "--set", "run.train_images=64", "--threads", "1", "--out", str(tmp_path / "my runs"),
    ]  # fmt: skip
    before = signal.getsignal(signal.SIGINT)
    assert main([*arguments, "--overwrite"]) == status
    output = capsys.readouterr().err
    assert f"interrupted; resume with: robobench {' '.join(arguments[:-1])} '{tmp_path / 'my runs'}'" in output
    assert len(steps) == 4 and signal.getsignal(signal.SIGINT) is before
    assert main(arguments) == 0
    assert "resuming at epoch 1, step 4" in capsys.readouterr().err
    assert len(steps) == 4 + 1 + 5  # another warm-up step, and the remaining five of eight steps
