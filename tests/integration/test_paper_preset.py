"""The preset `paper` (224 px): its plan, and one optimizer step of each stage (slow: run with -m slow)."""

from __future__ import annotations

import pytest

from robobench.planning.cost import profile_stages
from robobench.planning.planner import Planner, make_plan
from robobench.planning.request import ExperimentConfig


@pytest.fixture
def plan(tmp_path, monkeypatch):
    monkeypatch.setenv("ROBOBENCH_DATA", str(tmp_path))
    request = ExperimentConfig(
        defenses=("macd",),
        model="wrn50",
        preset="paper",
        dataset="cifar10",
        out=tmp_path / "runs",
        sets=("run.baseline_control=false",),
    )
    return make_plan(request, dry=True)


def test_paper_preset_matches_section_4_1(plan):
    macd, (standard,) = plan.models[0], plan.transfer_sources
    c = macd.config
    assert (c.epochs, c.lr, c.momentum, c.weight_decay) == (10, 0.003, 0.9, 0.0005)
    assert (c.mae_epochs, c.feature_epochs, c.encoder_depth, c.decoder_depth) == (100, 20, 12, 8)
    assert (c.teacher_patch, c.teacher_mask_ratio, c.student_patch, c.student_mask_ratio) == (16, 0.75, 8, 0.7)
    assert (c.mae_mask_ratio, c.static_steps) == (0.85, 40)
    assert macd.threat.eps == 8 / 255
    s = standard.config
    assert (s.epochs, s.lr, s.momentum, s.weight_decay) == (20, 0.003, 0.9, 0.0005)
    assert (macd.spec.image_size, plan.run.attack_resolution, macd.spec.pretrained) == (224, 224, True)
    assert sorted({spec.threat.eps for spec in plan.attacks}) == [8 / 255, 16 / 255]


def test_dry_run_lists_unavailable_data(plan):
    assert any("cifar10" in line for line in plan.unavailable_data)


def test_unavailable_data_are_refused(tmp_path):
    with pytest.raises(ValueError, match="cifar10"):
        Planner(ExperimentConfig(defenses=("standard",), dataset="cifar10", data_dir=tmp_path, out=tmp_path / "runs"))


@pytest.mark.slow
def test_one_step_of_each_stage_fits_16_gib(plan):
    for job in plan.training_order():
        for cost in profile_stages(plan, job, batch_size=job.config.batch_size):
            print(job.name, cost)
            assert cost.measured_bytes < 16 * 2**30
