"""Compare two gloo processes with one on the same batches, in float64: ten training steps give the same weights.

    python tests/distributed/equivalence.py [--only at,rocl]

The shards have unequal sizes (6 and 5 images), the model has no BatchNorm, and `Tensor.float` is replaced by
`Tensor.double`, so that a method's cast cannot hide a difference. Then a signal to one process stops both at the same
step, and one process resumes to the same weights. Last, one process is killed, and the parent reports it in one line.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robobench.core.threat import ThreatModel
from robobench.core.timing import Stopwatch
from robobench.distributed import collectives, launch
from robobench.errors import Interrupted, ProcessError
from robobench.plugins.discovery import load_defense
from robobench.store.artifacts import Store
from robobench.store.partial import PartialResults
from robobench.testing import Blobs
from robobench.training.base import (
    Batch,
    Defense,
    DefenseSetup,
    FrozenModel,
    Loss,
    PrecomputedArray,
    Train,
    train_stage,
)
from robobench.training.checkpoint import Checkpoint
from robobench.training.context import TrainRuntime
from robobench.training.loop import run_train
from robobench.training.precompute import run_precompute

NAMES = ("standard", "at", "trades", "iad", "mtard", "adaad", "rocl", "macd")
IMAGES, BATCH = 55, 11  # two epochs are ten steps
TOLERANCE = 1e-6


class PlainNet(nn.Module):
    """Two convolutions without BatchNorm, with `features` and `head`."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.body = nn.Sequential(nn.Conv2d(3, 6, 5, stride=4), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU())
        self.head = nn.Linear(8, 3)

    def features(self, images: Tensor) -> Tensor:
        return self.body(images).mean((2, 3))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))


def use_float64() -> None:
    """Compute in float64 on one thread in this process."""
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign]


def build_defense(name: str) -> tuple[Defense, DefenseSetup]:
    """Return a defense with its quick preset and two epochs per stage, and its setup."""
    cls = load_defense(name)
    values = {**cls.presets.get("quick", {}), "lr": 0.05, "schedule": "constant", "augment": "none"}
    values |= {f.name: 2 for f in fields(cls.Config) if f.name.endswith("epochs")}
    values |= {f.name: BATCH for f in fields(cls.Config) if f.name.endswith("batch_size")}
    defense = cls(cls.Config(**values))
    teachers = {role: FrozenModel(PlainNet(1 + n)) for n, role in enumerate(sorted(defense.requires))}
    setup = DefenseSetup(
        model=PlainNet(), threat=ThreatModel("Linf", 0.05), num_classes=3, image_shape=(3, 32, 32),
        train_size=IMAGES, required_models=teachers,
    )  # fmt: skip
    return defense, setup


class GatheredContrast(nn.Module):
    """A contrastive loss with gradients to the embeddings of the whole batch, as a user's plug-in may have."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> Loss:
        local = self.model(batch.images)
        gathered, begin = collectives.gather_batch(local)
        target = begin + torch.arange(len(local))
        loss = nn.functional.cross_entropy(local @ gathered.T, target)
        return Loss(loss, {"all": collectives.mean_over_batch(loss, len(local))})


def build_stages(name: str) -> tuple[list[Any], DefenseSetup]:
    """Return the stages of a defense, or of the contrastive loss above, and their setup."""
    if name != "gathered":
        defense, setup = build_defense(name)
        return list(defense.stages(setup)), setup
    defense, setup = build_defense("standard")
    return [train_stage(defense.config, "train", GatheredContrast(setup.model))], setup


def train(name: str) -> dict[str, Tensor]:
    """Train a defense with the training loop of robobench; return the weights and the metrics of every epoch."""
    (stages, setup), data, found = build_stages(name), Blobs(IMAGES), {}

    def log(stage: str, epoch: int, metrics: dict[str, float]) -> None:
        found.update({f"{stage} {epoch} {key}": torch.tensor(value) for key, value in metrics.items()})

    for stage in stages:
        if isinstance(stage, Train):
            run_train(TrainRuntime("cpu", "fp32", 0), stage, data, Stopwatch(), log)
        else:
            parts = run_precompute(TrainRuntime("cpu", "fp32", 0), stage, data, Stopwatch())[1]
            setup.precomputed[stage.name] = PrecomputedArray(np.concatenate(parts))
    return {**found, **setup.model.state_dict()}


class SignalObjective(nn.Module):
    """An objective that sends a signal to its process at step 3 of epoch 2, on rank 1 only."""

    def __init__(self, objective: nn.Module, signum: int) -> None:
        super().__init__()
        self.objective, self.signum, self.seen = objective, signum, 0

    def forward(self, batch: Batch) -> Loss:
        self.seen += batch.epoch == 1
        if self.seen == 3 and collectives.rank() == 1:
            os.kill(os.getpid(), self.signum)
            time.sleep(0.1)  # until Python has run the handler
        loss: Loss = self.objective(batch)
        return loss


def train_with_signal(folder: Path, signum: int = 0) -> dict[str, Tensor]:
    """Train `at` with checkpoints in `folder`. With two processes, the second one receives a signal."""
    defense, setup = build_defense("at")
    (stage,) = defense.stages(setup)
    stage.objective = SignalObjective(stage.objective, signum)
    checkpoint = Checkpoint(PartialResults(Store(folder), "checkpoints/at"), 3600.0)
    run_train(TrainRuntime("cpu", "fp32", 0), stage, Blobs(IMAGES), Stopwatch(), checkpoint=checkpoint)
    return setup.model.state_dict()


def train_in_process(names: tuple[str, ...], folder: Path, signum: int, device: str) -> None:
    """Run all trainings in one of two processes; rank 0 writes the results."""
    use_float64()
    results = {name: train(name) for name in names}
    if results and collectives.is_rank_zero():
        torch.save(results, folder / "results.pt")
    train_with_signal(folder / "store", signum)


def max_difference(one: dict[str, Tensor], two: dict[str, Tensor]) -> float:
    """Return the largest difference between two dictionaries of tensors with the same names."""
    assert one.keys() == two.keys()
    return max(float((value - two[name]).abs().max()) for name, value in one.items())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default=",".join((*NAMES, "gathered")))
    names = tuple(parser.parse_args().only.split(","))
    problems = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            launch.spawn_processes("cpu", 2, partial(train_in_process, names, folder, signal.SIGTERM))
            problems.append("a signal to one of two processes did not stop them")
        except Interrupted as err:
            print(f"both processes stopped by {signal.Signals(err.signum).name}")
        use_float64()
        for name, of_two in torch.load(folder / "results.pt").items():
            difference = max_difference(train(name), of_two)
            print(f"{name}: two processes differ from one by {difference:.1e}", flush=True)
            if difference > TOLERANCE:
                problems.append(f"{name} differs by {difference}")
        difference = max_difference(train_with_signal(folder / "store"), train_with_signal(folder / "other"))
        print(f"saved by two processes, resumed by one: differs by {difference:.1e}")
        if difference > TOLERANCE:
            problems.append(f"a resumed training differs by {difference}")
        try:
            launch.spawn_processes("cpu", 2, partial(train_in_process, (), folder / "killed", signal.SIGKILL))
            problems.append("a killed process was not detected")
        except ProcessError as err:
            print(err)
    print("\n".join(problems) or "no differences")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
