"""`--executor slurm`: refused requests, tasks and their states, and submitit's executor for this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from robobench.cli import main
from robobench.errors import RequestError
from robobench.execution.slurm_task import ATTEMPTS, SlurmTask, TaskState, run_once
from robobench.planning.request import ExperimentConfig
from robobench.planning.validate import parse_slurm_options
from robobench.plugins.discovery import add_plugin_file

TIMES = [
    *("train_seconds", "total_train_seconds", "train_cpu_seconds", "total_train_cpu_seconds", "warmup_seconds"),
    *("peak_memory_bytes", "stage_memory"),
]
TINY = [
    *("run", "--defense", "standard", "--protocol", "white-box", "--threads", "1", "--epochs", "1", "--examples", "24"),
    *("--set", "run.train_images=64", "--attacks", "fgsm", "--eps", "0.1", "--quiet"),
]
# A defense that sends SIGUSR2 to itself in its first step, as Slurm does before it preempts a job; or that fails.
SIGNALED = '''"""A defense that a signal interrupts once."""

import os
import signal
from pathlib import Path

import torch.nn.functional as F
from torch import nn

from robobench.api import DEFENSES, Defense, Loss, PassCounts, train_stage


@DEFENSES.register("signaled")
class Signaled(Defense):
    """Cross-entropy; SIGUSR2 in the first step."""

    def stages(self, setup):
        passes = PassCounts(forward=1, weight_grad=1)
        return [train_stage(self.config, "train", Objective(setup.model), passes=passes)]


class Objective(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, batch):
        marker = Path("signaled")
        if marker.is_file() and batch.epoch == 0:  # not in the warm-up
            marker.unlink()
            os.kill(os.getpid(), signal.SIGUSR2)
        return Loss(F.cross_entropy(self.model(batch.images), batch.labels))


@DEFENSES.register("shy")
class Shy(Defense):
    """Raises before the first stage."""

    def stages(self, setup):
        raise RuntimeError("not today")
'''

pytestmark = pytest.mark.skipif(
    subprocess.run([sys.executable, "-c", "import submitit"], capture_output=True).returncode != 0,
    reason="submitit is not installed; uv sync --extra slurm",
)


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (["--slurm", "partition=gpu"], "belongs to --executor slurm"),
        (["--executor", "slurm", "--slurm", "gpu"], "is no NAME=VALUE of sbatch"),
        (["--executor", "slurm", "--slurm", "array=1-9"], "is set by robobench"),
        (["--executor", "slurm", "--slurm", "cluster=remote"], "only cluster=local"),
        (["--executor", "slurm", "--overwrite"], "--out DIR"),
        (["--executor", "slurm", "--address", "auto"], "belongs to --executor ray"),
        (["--executor", "slurm", "--slurm", "cluster=local,time=soon"], "write minutes, H:M:S or D-H"),
    ],
)
def test_wrong_flags_are_refused(flags, word, capsys, tmp_path):
    assert main(["compare", *flags, "--out", str(tmp_path / "runs")]) == 2
    message = capsys.readouterr().err.strip()
    assert word in message and "\n" not in message and not (tmp_path / "runs").exists()


def test_options_may_hold_commas():
    options = parse_slurm_options(["partition=a,b,cpus_per_task=2", "--mem=4G"])
    assert options == {"partition": "a,b", "cpus-per-task": "2", "mem": "4G"}


@pytest.mark.parametrize(
    ("text", "minutes"), [("90", 90), ("90:30", 90), ("1:30:00", 90), ("2-12", 3600), ("1-0:5", 1445)]
)
def test_time_limits_are_slurms(text, minutes):
    from robobench.execution.slurm_executor import parse_minutes

    assert parse_minutes(text) == minutes


@pytest.fixture
def request_of(tmp_path, monkeypatch):
    """Return a function: the request of a defense, with its store in the working folder."""
    monkeypatch.chdir(tmp_path)
    Path("plugin.py").write_text(SIGNALED)
    Path("runs").mkdir()
    add_plugin_file("plugin.py")
    sets = ("run.train_images=64", "run.baseline_control=false")
    base = ExperimentConfig(protocol="white-box", threads=1, epochs=2, examples=16, attacks=("fgsm",), eps=("0.1",))
    return lambda name: replace(
        base, defenses=(name,), sets=sets, batch_size=32, plugins=("plugin.py",), checkpoint_minutes=0.0
    )


def names(request):
    """Return the names of the training and of the cell."""
    from robobench.execution.remote_task import plan_once

    training, cell = plan_once(request)[1]
    return training, cell


def test_failed_training_is_tried_once(request_of):
    request = request_of("shy")
    training, cell = names(request)
    outcome = run_once(request, os.getcwd(), cell)  # runs the training first
    assert not outcome.ok and [*outcome.failures.values()] == ["not today"]
    assert TaskState(request.out, training).read()[0] == TaskState(request.out, cell).read()[0] == 1
    run_once(request, os.getcwd(), training)
    assert TaskState(request.out, training).read()[0] == 1


def test_killed_workers_are_replaced_three_times(request_of):
    request = request_of("signaled")
    training, cell = names(request)
    state = TaskState(request.out, training)
    state.write(ATTEMPTS)  # workers that began and left no outcome
    outcome = run_once(request, os.getcwd(), cell)
    assert not outcome.ok and "died 4 times" in next(iter(outcome.failures.values()))
    for name in (training, cell):
        TaskState(request.out, name).forget()
    state.write(ATTEMPTS - 1)
    assert run_once(request, os.getcwd(), cell).ok and state.read()[0] == ATTEMPTS


def test_preempted_training_resumes_where_it_stopped(request_of):
    request = request_of("signaled")
    training, _ = names(request)
    requeued = []
    handler = signal.signal(signal.SIGUSR2, lambda number, frame: requeued.append(number))  # in submitit's place
    try:
        Path("signaled").touch()
        with pytest.raises(SystemExit):
            SlurmTask()(request, os.getcwd(), training)
    finally:
        signal.signal(signal.SIGUSR2, handler)
    assert requeued == [signal.SIGUSR2] and TaskState(request.out, training).read() == (0, None)
    assert list(request.out.glob("artifacts/checkpoints/*/*/*")), "nothing was saved"
    SlurmTask()(request, os.getcwd(), training)
    outcome = TaskState(request.out, training).read()[1]
    assert outcome.ok and any("resuming at epoch 1, step 2" in text for _, text in outcome.lines)


def test_local_jobs_give_serial_rows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = [*TINY, "--executor", "slurm", "--slurm", "cluster=local", "--out", "jobs"]
    assert main(command) == 0
    assert main([*TINY, "--out", "serial"]) == 0
    jobs, serial = (pd.read_csv(Path(name) / "rows.csv").drop(columns=TIMES) for name in ("jobs", "serial"))
    pd.testing.assert_frame_equal(jobs, serial)
    submitted = sorted(Path("jobs/artifacts/slurm").iterdir())
    assert len([path for path in submitted if path.name.endswith("_submitted.pkl")]) == 2
    assert not list(Path("jobs/artifacts/tasks").iterdir())
    assert main(command) == 0  # everything is in the store: nothing is submitted
    assert sorted(Path("jobs/artifacts/slurm").iterdir()) == submitted


def test_missing_submitit_names_install_command(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "submitit", None)  # makes the import fail
    assert main(["compare", "--executor", "slurm"]) == 2
    assert "uv sync --extra slurm" in capsys.readouterr().err


def test_no_slurm_here_is_refused(monkeypatch, tmp_path):
    from robobench.execution import slurm_executor

    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RequestError, match="no sbatch on this machine"):
        slurm_executor.Queue(tmp_path, {}, type("Plan", (), {"device": "cpu", "threads": 1})())
