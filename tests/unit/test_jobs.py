"""Jobs of the board scripts: order, what is done, stopping in time, and the plans that use them."""

from __future__ import annotations

import importlib
import json
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def load(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    yield importlib.import_module
    for name in ("pieces", "cpu_board", "gpu_board"):
        sys.modules.pop(name, None)


def test_jobs_run_after_what_they_need_and_once(load, tmp_path):
    pieces = load("pieces")

    def job(name, after=(), code=""):
        text = f"open(r'{tmp_path / 'said'}', 'a').write('{name} '); {code}"
        return pieces.Job(name, ("-S", "-c", text), after)

    jobs = [job("b", ("a",)), job("a"), job("bad", code="raise SystemExit(1)"), job("c", ("b", "bad"))]
    assert pieces.work(jobs, tmp_path / "jobs", workers=2) == (1, 0)
    said = (tmp_path / "said").read_text().split()
    assert sorted(said) == ["a", "b", "bad", "c"] and said.index("a") < said.index("b") < said.index("c")
    assert pieces.work(jobs, tmp_path / "jobs", workers=2) == (1, 0)  # only what failed is done again
    assert (tmp_path / "said").read_text().split()[4:] == ["bad"]


def test_time_up_stops_a_job_and_the_next_call_goes_on(load, tmp_path):
    pieces = load("pieces")
    flag = tmp_path / "flag"
    waits = f"import os, time\nwhile not os.path.exists(r'{flag}'): time.sleep(0.05)"
    jobs = [pieces.Job("waits", ("-S", "-c", waits)), pieces.Job("next", ("-S", "-c", ""), ("waits",))]
    begun = time.monotonic()
    assert pieces.work(jobs, tmp_path / "jobs", workers=2, minutes=0.01) == (0, 2)
    assert time.monotonic() - begun < 10
    flag.touch()
    assert pieces.work(jobs, tmp_path / "jobs", workers=2, minutes=5) == (0, 0)


def test_the_cpu_plan_covers_the_board(load):
    board = load("cpu_board")
    jobs = board.plan(board.Scale(), Path("out"), Path("data"))
    names = [job.name for job in jobs]
    assert len(set(names)) == len(names)
    for number, job in enumerate(jobs):
        assert set(job.after) <= set(names[:number]), f"{job.name} is before what it needs"
    trained = {f"{d}-{seed}" for d in ("standard", "at", "trades", "macd") for seed in (0, 1, 2)}
    trained |= {f"{d}-0" for d in ("fast-at", "rocl", "adaad", "iad", "mtard")}
    assert {name for name in names if f"cheap-{name}" in names} == trained
    words = next(job.words for job in jobs if job.name == "iad-0")
    assert "--set=at.inner_steps=3" in words and not any("macd" in word for word in words)


def test_what_a_gpu_piece_brings_back_is_taken_up_elsewhere(load, tmp_path):
    board, store = load("gpu_board"), pytest.importorskip("robobench.store")
    here, back, there = tmp_path / "here", tmp_path / "back", tmp_path / "there"
    with store.Store(here).building("model", "standard-resnet18-cifar10-s0-0123456789", {}) as work:
        (work / "model.safetensors").write_bytes(bytes(range(256)) * 1000)
    (here / "jobs").mkdir()
    for name in ("standard", "at", "autoattack-at", "autoattack-l2-at", "trades", "autoattack-trades"):
        (here / "jobs" / f"{name}-x.done").touch()
    for name in ("at", "trades"):
        with store.Store(here).building("model", f"{name}-resnet18-cifar10-s0-0123456789", {}) as work:
            (work / "model.safetensors").write_bytes(b"weights")
    board.PART = 100  # so that the weights come in several files
    board.bring_back(here, back)
    assert len(list(back.glob("weights.tar.gz.*"))) > 3
    board.unpack(back, there)
    assert (there / "jobs" / "standard-x.done").exists()
    folder = store.Store(there).find("model", "standard-resnet18-cifar10-s0-0123456789")
    assert folder and json.loads((folder / "artifact.json").read_text())["files"]
    assert store.Store(there).find("model", "trades-resnet18-cifar10-s0-0123456789")  # AutoAttack-L2 is to come
    assert not list(there.glob("at-*"))  # over
