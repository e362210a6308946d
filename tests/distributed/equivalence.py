"""Two gloo processes against one on the same batches, in float64: ten steps of a defense leave the same weights.

python tests/devices/steps.py [--only at,rocl]

Shares are unequal (6 and 5 images), the network has no BatchNorm, and `Tensor.float` is `Tensor.double` here, so that
no method's own cast hides a difference. Then a signal that reaches one process stops both at the same step, one process
alone goes on to the same weights; and a process that is killed ends the other with one line.
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
from robobench.training.base import Batch, DefenseSetup, FrozenModel, Loss, PrecomputedArray, Train
from robobench.training.checkpoint import Checkpoint
from robobench.training.context import TrainRuntime
from robobench.training.loop import run_train
from robobench.training.precompute import run_precompute

NAMES = ("standard", "at", "trades", "iad", "mtard", "adaad", "rocl", "macd")
IMAGES, BATCH = 55, 11  # two epochs are ten steps
TOLERANCE = 1e-6


class PlainNet(nn.Module):
    """Two convolutions without BatchNorm, `features` and `head`."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.body = nn.Sequential(nn.Conv2d(3, 6, 5, stride=4), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU())
        self.head = nn.Linear(8, 3)

    def features(self, images: Tensor) -> Tensor:
        return self.body(images).mean((2, 3))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))


def in_float64() -> None:
    """Compute everything in this process in float64, on one thread."""
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign]


def setup_of(name: str) -> tuple[Any, DefenseSetup]:
    """Build a defense and what it is handed: its quick preset, two epochs of every stage."""
    cls = load_defense(name)
    given = {**cls.presets.get("quick", {}), "lr": 0.05, "schedule": "constant", "augment": "none"}
    given |= {f.name: 2 for f in fields(cls.Config) if f.name.endswith("epochs")}
    given |= {f.name: BATCH for f in fields(cls.Config) if f.name.endswith("batch_size")}
    config = cls.Config(**given)
    defense = cls(config)
    teachers = {role: FrozenModel(PlainNet(1 + n)) for n, role in enumerate(sorted(defense.requires))}
    setup = DefenseSetup(
        model=PlainNet(), threat=ThreatModel("Linf", 0.05), config=config, num_classes=3, image_shape=(3, 32, 32),
        train_size=IMAGES, required_models=teachers,
    )  # fmt: skip
    return defense, setup


class Gathered(nn.Module):
    """A contrast whose gradient flows into the other images' embeddings too: what a stranger's loss may do."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> Loss:
        own = self.model(batch.images)
        everyone, begin = collectives.gather_batch(own)
        target = begin + torch.arange(len(own))
        loss = nn.functional.cross_entropy(own @ everyone.T, target)
        return Loss(loss, {"all": collectives.mean_over_batch(loss, len(own))})


def stages_of(name: str) -> tuple[list[Any], DefenseSetup]:
    """Return the stages of a defense, or of the contrast above."""
    if name != "gathered":
        defense, setup = setup_of(name)
        return defense.stages(setup), setup
    _, setup = setup_of("standard")
    return [setup.train("train", Gathered(setup.model))], setup


def trained(name: str) -> dict[str, Tensor]:
    """Train a defense through the core's own loop; return its weights and the metrics of every epoch."""
    (stages, setup), data, found = stages_of(name), Blobs(IMAGES), {}

    def log(stage: str, epoch: int, metrics: dict[str, float]) -> None:
        found.update({f"{stage} {epoch} {key}": torch.tensor(value) for key, value in metrics.items()})

    for stage in stages:
        if isinstance(stage, Train):
            run_train(TrainRuntime("cpu", "fp32", 0), stage, data, Stopwatch(), log)
        else:
            parts = run_precompute(TrainRuntime("cpu", "fp32", 0), stage, data, Stopwatch())[1]
            setup.precomputed[stage.name] = PrecomputedArray(np.concatenate(parts))
    return {**found, **setup.model.state_dict()}


class Struck(nn.Module):
    """An objective that sends its own process a signal at the third step of the second epoch, in one of two."""

    def __init__(self, objective: nn.Module, signum: int) -> None:
        super().__init__()
        self.objective, self.signum, self.seen = objective, signum, 0

    def forward(self, batch: Batch) -> Loss:
        self.seen += batch.epoch == 1
        if self.seen == 3 and collectives.rank() == 1:
            os.kill(os.getpid(), self.signum)
            time.sleep(0.1)  # until Python has seen it
        loss: Loss = self.objective(batch)
        return loss


def struck(place: Path, signum: int = 0) -> dict[str, Tensor]:
    """Train `at`, saved in `place`, and struck by a signal on the way in the second of two processes."""
    defense, setup = setup_of("at")
    (stage,) = defense.stages(setup)
    stage.objective = Struck(stage.objective, signum)
    checkpoint = Checkpoint(PartialResults(Store(place), "checkpoints/at"), 3600.0)
    run_train(TrainRuntime("cpu", "fp32", 0), stage, Blobs(IMAGES), Stopwatch(), checkpoint=checkpoint)
    return setup.model.state_dict()


def in_two(names: tuple[str, ...], place: Path, signum: int, device: str) -> None:
    """Do everything above in one of two processes; the first one writes what came out."""
    in_float64()
    made = {name: trained(name) for name in names}
    if made and collectives.is_rank_zero():
        torch.save(made, place / "made.pt")
    struck(place / "store", signum)


def furthest(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """Return the largest difference between two sets of tensors of the same names."""
    assert ours.keys() == theirs.keys()
    return max(float((value - theirs[name]).abs().max()) for name, value in ours.items())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default=",".join((*NAMES, "gathered")))
    names = tuple(parser.parse_args().only.split(","))
    wrong = []
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        try:
            launch.spawn_processes("cpu", 2, partial(in_two, names, place, signal.SIGTERM))
            wrong.append("a signal to one of two processes stopped nothing")
        except Interrupted as err:
            print(f"both left by {signal.Signals(err.signum).name}")
        in_float64()
        for name, theirs in torch.load(place / "made.pt").items():
            far = furthest(trained(name), theirs)
            print(f"{name}: two processes differ from one by {far:.1e}", flush=True)
            if far > TOLERANCE:
                wrong.append(f"{name} differs by {far}")
        far = furthest(struck(place / "store"), struck(place / "another"))
        print(f"saved by two, finished by one: differs by {far:.1e}")
        if far > TOLERANCE:
            wrong.append(f"a resumed training differs by {far}")
        try:
            launch.spawn_processes("cpu", 2, partial(in_two, (), place / "killed", signal.SIGKILL))
            wrong.append("a killed process went unnoticed")
        except ProcessError as err:
            print(err)
    print("\n".join(wrong) or "nothing differs")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
