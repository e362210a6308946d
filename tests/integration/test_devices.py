"""Two processes compared with one: the same training steps, outcomes and store, and one-line errors."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from robobench.cli import main
from robobench.planning.planner import make_plan
from robobench.planning.request import ExperimentConfig

EQUIVALENCE = Path(__file__).parents[1] / "distributed" / "equivalence.py"
NET = """
from torch import nn

def plain(num_classes):
    first = nn.Conv2d(3, 6, 5, stride=4)
    return nn.Sequential(first, nn.ReLU(), nn.Flatten(), nn.Linear(6 * 7 * 7, num_classes))
"""
SMALL = (
    *("--epochs", "1", "--batch-size", "33", "--threads", "1", "--attacks", "pgd", "--eps", "0.1", "--quiet"),
    *("--examples", "40", "--set", "run.train_images=200", "--set", "run.eval_batch_size=16", "--set", "pgd.steps=4"),
)


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=900)


def test_two_gloo_processes_match_one():
    """Two processes take the same steps as one, stop together at a signal, and report a killed process."""
    done = run(str(EQUIVALENCE), "--only", "mtard,rocl,gathered")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "process 1 of 2 died (SIGKILL); the others were stopped" in done.stdout
    assert "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Return a store filled by two processes under torchrun, the command, and the finished process."""
    folder = tmp_path_factory.mktemp("devices")
    (folder / "net.py").write_text(NET)
    command = ["run", "--defense", "at", "--model", f"{folder / 'net.py'}:plain", *SMALL, "--out", str(folder / "runs")]
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "robobench"]
    done = run(*torchrun, *command)
    assert done.returncode == 0, done.stderr
    return folder / "runs", command, done


def records(store: Path) -> dict[str, dict[str, object]]:
    found = (json.loads(path.read_text()) for path in store.glob("artifacts/evaluations/*/record.json"))
    return {record["key"]: record for record in found}


def test_one_process_gives_same_outcomes(shared, capsys):
    store, command, done = shared
    of_two = records(store)
    for kind in ("evaluations", "transfer"):
        (store / "artifacts" / kind).rename(store.parent / kind)
    try:
        assert main(command) == 0
        assert capsys.readouterr().out == done.stdout
        of_one = records(store)
    finally:
        for kind in ("evaluations", "transfer"):
            (store.parent / kind).rename(store.parent / f"{kind}-of-two")
    assert of_one.keys() == of_two.keys() and len(of_one) == 5  # at, baseline: both protocols; source: transfer
    for key, record in of_one.items():
        assert record["status"] == "ok"
        for name in ("clean_bits", "robust_bits", "weights_digest"):
            assert record[name] == of_two[key][name]


def test_store_is_written_once_with_device_count(shared):
    store, _, done = shared
    assert "Traceback" not in done.stderr
    folders = [path.parent for path in store.glob("*/timing.json")]
    assert len(folders) == 3 and len(list(store.rglob("*.building"))) == 0
    for folder in folders:
        timing = json.loads((folder / "timing.json").read_text())
        assert timing["devices"] == 2 and timing["hardware"].startswith("2 processes on ")
    assert not list((store / "artifacts").glob("checkpoints/*/*"))


def planned(model: str, **flags: object):
    request = ExperimentConfig(defenses=("standard",), model=model, threads=1, protocol="white-box", **flags)
    return make_plan(request).models[0]


def test_key_contains_devices_only_with_batchnorm(tmp_path):
    (tmp_path / "net.py").write_text(NET)
    plain = f"{tmp_path / 'net.py'}:plain"
    assert planned(plain, devices=2).key == planned(plain).key
    assert planned("cnn", devices=2).key != planned("cnn").key
    assert planned("cnn", devices=2).recipe["devices"] == 2


def test_threads_are_divided_among_processes():
    assert make_plan(ExperimentConfig(devices=2)).threads == max(1, torch.get_num_threads() // 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--devices", "0"], "--devices must be at least 1, got 0"),
        (["--set", "run.sync_batchnorm=true", "--device", "cpu"], "run.sync_batchnorm=true works on GPUs only"),
    ],
)
def test_impossible_devices_are_refused(tmp_path, capsys, arguments, message):
    assert main(["run", "--defense", "standard", *arguments, "--out", str(tmp_path / "runs")]) == 2
    printed = capsys.readouterr().err
    assert message in printed and printed.count("\n") == 1 and not (tmp_path / "runs").exists()
