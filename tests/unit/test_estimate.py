"""What a dry run rehearses, and what it counts."""

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
    ("device", "fits", "rehearsed"), [("cpu", 99, [32]), ("cuda", 99, [48]), ("cuda", 30, [48, 24])]
)
def test_a_gpu_rehearses_the_stage_s_own_batch_or_what_fits_of_it(tmp_path, monkeypatch, device, fits, rehearsed):
    blank, taken = cost.untrained_setup, []

    def step(engine, stage, data, index):
        taken.append(len(index))
        if len(index) > fits:
            raise MemoryError
        return 2.0, 100, 100 + len(index)

    plan = make_plan(
        ExperimentConfig(defenses=("at",), batch_size=48, out=tmp_path, protocol="white-box", device="cpu")
    )
    monkeypatch.setattr(estimate, "_rehearse_step", step)
    monkeypatch.setattr(estimate, "blank", lambda plan, training, device: blank(plan, training, "cpu"))
    (cost,) = cost.profile_stages(replace(plan, device=device), plan.trainings[0])
    assert taken == rehearsed
    assert cost.seconds_per_image == 2 / rehearsed[-1] and cost.memory_bytes == pytest.approx(100 + 48)


def test_an_array_stored_for_every_image_is_counted_on_disk_with_the_parts_it_is_made_of(tmp_path, monkeypatch):
    plan = make_plan(ExperimentConfig(defenses=("macd",), out=tmp_path, protocol="white-box"))
    monkeypatch.setattr(estimate, "_rehearse_step", lambda *given: (1.0, 0, 0))
    print_plan(plan, console := Console(file=io.StringIO(), width=200))
    assert f"{format_bytes(2 * plan.train_images * 3 * 32 * 32 * 4)} of disk at most" in console.file.getvalue()


@pytest.mark.parametrize(
    ("fits", "chunk", "named"),
    [
        (9999, 64, "1,280 images a second with --set run.eval_batch_size=256, on 640 with 64"),
        (128, 64, "960 images a second with --set run.eval_batch_size=128, on 640 with 64"),
        (9999, 256, None),
        (9999, 300, None),
        (0, 64, None),
    ],
)
def test_a_dry_run_names_the_chunk_that_gets_through_the_most_images(tmp_path, monkeypatch, fits, chunk, named):
    taken = []

    def step(model, images, device):
        taken.append(len(images))
        if len(images) > fits:
            raise MemoryError
        return len(images) / {64: 640, 128: 960, 256: 1280}.get(len(images), 1300)

    setting = (f"run.eval_batch_size={chunk}",)
    plan = make_plan(
        ExperimentConfig(defenses=("standard",), sets=setting, examples=360, out=tmp_path, protocol="white-box")
    )
    monkeypatch.setattr(estimate, "step_seconds", step)
    said = cost.suggest_batch_size(plan, plan.trainings[0], 0.001)
    assert max(taken) <= 360
    assert cost.batch_size_speeds(plan, plan.trainings[0], 1.0) == {}
    assert said is None if named is None else said is not None and named in said
