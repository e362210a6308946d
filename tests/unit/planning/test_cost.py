"""What a dry run profiles and counts."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from robobench.cli.dry_run import print_plan
from robobench.core.formatting import format_bytes
from robobench.planning import cost
from robobench.planning.planner import make_plan
from robobench.planning.request import ExperimentConfig


@pytest.mark.parametrize(
    ("device", "fits", "profiled"), [("cpu", 99, [32]), ("cuda", 99, [48]), ("cuda", 30, [48, 24])]
)
def test_gpu_profiles_largest_batch_that_fits(tmp_path, monkeypatch, device, fits, profiled):
    untrained_setup, taken = cost.untrained_setup, []

    def step(runtime, stage, data, index):
        taken.append(len(index))
        if len(index) > fits:
            raise MemoryError
        return 2.0, 100, 100 + len(index)

    plan = make_plan(
        ExperimentConfig(defenses=("at",), batch_size=48, out=tmp_path, protocol="white-box", device="cpu")
    )
    monkeypatch.setattr(cost, "_profile_step", step)
    monkeypatch.setattr(cost, "untrained_setup", lambda plan, job, device: untrained_setup(plan, job, "cpu"))
    (found,) = cost.profile_stages(replace(plan, device=device), plan.models[0])
    assert taken == profiled
    assert found.seconds_per_image == 2 / profiled[-1] and found.memory_bytes == pytest.approx(100 + 48)


def test_disk_estimate_counts_array_and_its_parts(tmp_path, monkeypatch):
    plan = make_plan(ExperimentConfig(defenses=("macd",), out=tmp_path, protocol="white-box"))
    monkeypatch.setattr(cost, "_profile_step", lambda *given: (1.0, 0, 0))
    print_plan(plan, console := Console(file=io.StringIO(), width=200))
    assert f"{format_bytes(2 * plan.train_images * 3 * 32 * 32 * 4)} of disk at most" in console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("fits", "batch_size", "named"),
    [
        (9999, 64, "1,280 images per second and step with --set run.eval_batch_size=256, 640 with 64"),
        (128, 64, "960 images per second and step with --set run.eval_batch_size=128, 640 with 64"),
        (9999, 256, None),
        (9999, 300, None),
        (0, 64, None),
    ],
)
def test_dry_run_suggests_fastest_batch_size(tmp_path, monkeypatch, fits, batch_size, named):
    taken = []

    def step(model, images, device):
        taken.append(len(images))
        if len(images) > fits:
            raise MemoryError
        return len(images) / {64: 640, 128: 960, 256: 1280}.get(len(images), 1300)

    setting = (f"run.eval_batch_size={batch_size}",)
    plan = make_plan(
        ExperimentConfig(defenses=("standard",), sets=setting, examples=360, out=tmp_path, protocol="white-box")
    )
    monkeypatch.setattr(cost, "attack_step_seconds", step)
    note = cost.suggest_batch_size(plan, plan.models[0], 0.001)
    assert max(taken) <= 360
    assert cost.batch_size_speeds(plan, plan.models[0], 1.0) == {}
    assert note is None if named is None else note is not None and named in note


def test_disk_estimate_counts_values_per_image(tmp_path):
    """Two float32 images for every training image, in at most four files."""
    request = ExperimentConfig(defenses=("fgsm-pgi",), out=tmp_path, protocol="white-box", threads=1)
    plan = make_plan(replace(request, sets=("run.train_images=64",)))
    (found,) = cost.profile_stages(plan, plan.models[0], 2)
    assert found.disk_bytes == 4 * 64 * 2 * 4 * 3 * 32 * 32
