"""Jobs of the board scripts: order, stopping and resuming, and the plans that use them."""

from __future__ import annotations

import importlib
import json
import sys
import time
from pathlib import Path

import pytest

from robobench.store.artifacts import Store

ROOT = Path(__file__).parents[3]


@pytest.fixture
def load(monkeypatch):
    for folder in ("benchmarks", "benchmarks/boards"):
        monkeypatch.syspath_prepend(str(ROOT / folder))
    yield importlib.import_module
    for name in ("jobs", "cpu_board", "gpu_board"):
        sys.modules.pop(name, None)


def test_jobs_run_once_after_dependencies(load, tmp_path):
    jobs = load("jobs")

    def job(name, after=(), code=""):
        text = f"open(r'{tmp_path / 'order'}', 'a').write('{name} '); {code}"
        return jobs.Job(name, ("-S", "-c", text), after)

    plan = [job("b", ("a",)), job("a"), job("bad", code="raise SystemExit(1)"), job("c", ("b", "bad"))]
    assert jobs.run_jobs(plan, tmp_path / "jobs", workers=2) == (1, 0)
    order = (tmp_path / "order").read_text().split()
    assert sorted(order) == ["a", "b", "bad", "c"] and order.index("a") < order.index("b") < order.index("c")
    assert jobs.run_jobs(plan, tmp_path / "jobs", workers=2) == (1, 0)  # only the failed one is repeated
    assert (tmp_path / "order").read_text().split()[4:] == ["bad"]


def test_stopped_jobs_are_resumed(load, tmp_path):
    jobs = load("jobs")
    flag = tmp_path / "flag"
    waits = f"import os, time\nwhile not os.path.exists(r'{flag}'): time.sleep(0.05)"
    plan = [jobs.Job("waits", ("-S", "-c", waits)), jobs.Job("next", ("-S", "-c", ""), ("waits",))]
    begun = time.monotonic()
    assert jobs.run_jobs(plan, tmp_path / "jobs", workers=2, minutes=0.01) == (0, 2)
    assert time.monotonic() - begun < 10
    flag.touch()
    assert jobs.run_jobs(plan, tmp_path / "jobs", workers=2, minutes=5) == (0, 0)


def test_cpu_plan_covers_board(load):
    board = load("cpu_board")
    jobs = board.plan(board.Scale(), Path("out"), Path("data"))
    names = [job.name for job in jobs]
    assert len(set(names)) == len(names)
    for number, job in enumerate(jobs):
        assert set(job.after) <= set(names[:number]), f"{job.name} is before its dependencies"
    trained = {f"{d}-{seed}" for d in ("standard", "at", "trades", "macd") for seed in (0, 1, 2)}
    trained |= {f"{d}-0" for d in ("fast-at", "rocl", "adaad", "iad", "mtard")}
    assert {name for name in names if f"cheap-{name}" in names} == trained
    words = next(job.words for job in jobs if job.name == "iad-0")
    assert "--set=at.inner_steps=3" in words and not any("macd" in word for word in words)


def test_gpu_run_resumes_on_another_machine(load, tmp_path):
    board = load("gpu_board")
    here, back, there = tmp_path / "here", tmp_path / "back", tmp_path / "there"
    with Store(here).create("model", "standard-resnet18-cifar10-s0-0123456789", {}) as work:
        (work / "model.safetensors").write_bytes(bytes(range(256)) * 1000)
    (here / "jobs").mkdir()
    for name in ("standard", "at", "autoattack-at", "autoattack-l2-at", "trades", "autoattack-trades"):
        (here / "jobs" / f"{name}-x.done").touch()
    for name in ("at", "trades"):
        with Store(here).create("model", f"{name}-resnet18-cifar10-s0-0123456789", {}) as work:
            (work / "model.safetensors").write_bytes(b"weights")
    board.MAX_FILE_BYTES = 100  # so that the weights come in several files
    board.bring_back(here, back)
    assert len(list(back.glob("weights.tar.gz.*"))) > 3
    board.unpack(back, there)
    assert (there / "jobs" / "standard-x.done").exists()
    folder = Store(there).find("model", "standard-resnet18-cifar10-s0-0123456789")
    assert folder and json.loads((folder / "artifact.json").read_text())["files"]
    assert Store(there).find("model", "trades-resnet18-cifar10-s0-0123456789")  # AutoAttack-L2 is left
    assert not list(there.glob("at-*"))  # all its attacks are done
