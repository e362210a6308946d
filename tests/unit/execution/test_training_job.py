"""Trainings of a plan with torch.compile."""

from __future__ import annotations

import shutil

import pytest
import torch
from torch import nn

from robobench.core.console import Reporter
from robobench.execution import training_job
from robobench.execution.runner import Runner
from robobench.planning.planner import prepare
from robobench.planning.request import ExperimentConfig


@pytest.fixture
def compiled(monkeypatch) -> list[nn.Module]:
    """The modules for which `compile` was called; nothing is compiled."""
    modules: list[nn.Module] = []
    monkeypatch.setattr(shutil, "which", lambda name: name)
    monkeypatch.setattr(nn.Module, "compile", lambda module, **options: modules.append(module))
    return modules


def test_model_is_compiled_after_a_stored_stage(tmp_path, compiled):
    """In the second run only the head is trained, on a model that this stage does not register."""
    sets = ("run.train_images=16", "rocl.inner_steps=1", "rocl.head_epochs=1")
    request = ExperimentConfig(
        defenses=("rocl",), compile="on", epochs=1, sets=sets, protocol="white-box", out=tmp_path
    )
    runner = Runner(*prepare(request), Reporter(-1))
    (job,) = runner.plan.training_order()
    for _ in range(2):
        compiled.clear()
        runner.trainer.train(job)
        assert compiled
        shutil.rmtree(tmp_path / job.folder)


def test_teacher_is_compiled_before_it_is_measured(tmp_path, compiled, monkeypatch):
    """The first forward passes of a compiled model are slow, and the check of teachers is not timed."""

    def quick_accuracy(runtime, model, *arguments):
        assert model.net in compiled
        raise torch._dynamo.exc.InternalTorchDynamoError("odd")

    monkeypatch.setattr(training_job, "quick_accuracy", quick_accuracy)
    sets = ("run.train_images=16", "at.inner_steps=1")
    request = ExperimentConfig(defenses=("iad",), compile="on", epochs=1, sets=sets, out=tmp_path)
    runner = Runner(*prepare(request), Reporter(-1))
    runner.trainer.train_all()
    assert list(runner.context.failures.values()) == ["torch.compile failed (odd); use --compile off"]
