"""A training step on a GPU, run on fake tensors, so that no GPU is needed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from robobench.core.threat import ThreatModel
from robobench.core.timing import Stopwatch
from robobench.data.split import dataset_from_arrays
from robobench.defenses.macd import distill
from robobench.plugins.discovery import load_defense
from robobench.testing import SmallNet
from robobench.training import loop
from robobench.training.base import DefenseSetup, FrozenModel, Precompute, PrecomputedArray
from robobench.training.context import TrainRuntime
from robobench.training.loop import run_train

CONFIGS = {
    "at": {},
    # torch's cumulative average of BatchNorm reads a counter on the host, once a batch of the one clean pass.
    "macd": {
        **{"teacher_patch": 8, "encoder_width": 12, "encoder_depth": 1, "feature_target": "stopgrad"},
        "bn_recalibrate": False,
    },
    "rocl": {"projection": 8},
}


class Copies(TorchDispatchMode):
    """Records every operation with tensors of more than one device."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, Tensor)]
        # A kernel takes a single number from the host like its other arguments.
        devices = {t.device.type for t in tensors if t.dim() or "copy" in str(func)}
        self.found += [str(func)] if len(devices) > 1 else []
        return out


class StepTakenError(Exception):
    """Ends the training after its first step."""


@pytest.mark.parametrize("name", CONFIGS)
def test_gpu_step_copies_nothing_from_or_to_host(name, monkeypatch):
    # Fake tensors have no backward pass and no stream without a GPU. All else of a step is real.
    monkeypatch.setattr(torch.autograd, "grad", lambda of, by: (torch.zeros_like(by),))
    monkeypatch.setattr(torch.autograd, "backward", lambda total: None)
    monkeypatch.setattr(nn.Module, "to", lambda module, device: module)
    monkeypatch.setattr(loop, "warm_up", lambda *given: 0.0)
    monkeypatch.setattr(distill, "fork_stream", lambda device: None)
    step, copies, cls = loop._TrainRun._step, Copies(), load_defense(name)

    def first_step(run, *arguments):
        for p in run.objective.parameters():
            p.grad = torch.zeros_like(p) if p.requires_grad else None
        with copies:
            step(run, *arguments)
        raise StepTakenError

    monkeypatch.setattr(loop._TrainRun, "_step", first_step)
    with FakeTensorMode(allow_non_fake_inputs=True):
        images = np.zeros((32, 32, 32, 3), np.uint8), np.arange(32) % 10
        split = dataset_from_arrays("npz:", images, images, resolution=None, need_train=True, device="cuda").train
        with torch.device("cuda"):
            config = cls.Config(batch_size=16, **CONFIGS[name])
            setup = DefenseSetup(
                model=SmallNet(num_classes=10), threat=ThreatModel("Linf", 8 / 255), num_classes=10,
                image_shape=(3, 32, 32), train_size=32, is_uint8_exact=True,
                required_models={role: FrozenModel(SmallNet(num_classes=10)) for role in cls.requires},
            )  # fmt: skip
            stages = cls(config).stages(setup)
        for stage in stages:
            if isinstance(stage, Precompute):
                setup.precomputed[stage.name] = PrecomputedArray(
                    np.zeros((32, *(stage.shape or (3, 32, 32))), np.uint8), "cuda"
                )
                continue
            with torch.device("cuda"):
                stage.objective = stage.objective if isinstance(stage.objective, nn.Module) else stage.objective()
            with pytest.raises(StepTakenError):
                run_train(TrainRuntime("cuda", "fp32", 0), stage, split, Stopwatch())
            assert copies.found == [], stage.name
