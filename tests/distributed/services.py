"""Train every defense with services of the training loop, and compare two gloo processes with one.

    python tests/distributed/services.py [--only at,macd]

In float64, with averaging, AWP, label smoothing, clipping and extra images. The shards have unequal sizes (6 and 5
images) and the model has no BatchNorm. The averaged weights are compared too.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
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
from robobench.plugins.discovery import load_defense
from robobench.testing import Blobs, SmallNet
from robobench.training.averaging import WeightAverage
from robobench.training.base import DefenseSetup, FrozenModel, PrecomputedArray, Train
from robobench.training.context import ImageSource, TrainRuntime
from robobench.training.loop import run_train
from robobench.training.precompute import run_precompute
from robobench.training.sampling import MixedImages

TOLERANCE = 1e-6
THREAT = ThreatModel("Linf", 0.05)
DEFENSES = ("standard", "at", "fast-at", "trades", "iad", "mtard", "adaad", "rocl", "macd")
SHARDED = ("fat", "fgsm-pgi", "liet", "mimir")  # newer ones with draws, states or losses of a whole batch
SMALL: dict[str, dict[str, Any]] = {
    "rocl": {"inner_steps": 2, "projection": 16},
    "acl": {"tune_inner_steps": 2},
    "mimir": {"decoder_width": 8, "decoder_heads": 2},
    "liet": {"update_steps": 2},
    "macd": {
        **dict.fromkeys(("teacher_patch", "student_patch"), 4),
        **dict.fromkeys(("encoder_width", "decoder_width"), 8),
        **dict.fromkeys(("encoder_depth", "encoder_heads", "decoder_depth", "decoder_heads"), 1),
        "static_steps": 2,
    },
}

REFUSED = {"free-at": "awp_gamma", "liet": "label_smoothing"}  # services that a method does not work with


def small_config(name: str, batch: int, services: dict[str, Any]) -> Any:
    """Return a defense's quick preset with one epoch per stage and batches of `batch` images."""
    cls = load_defense(name)
    values = {**cls.presets.get("quick", {}), "lr": 0.05, "schedule": "constant", "augment": "none"}
    values |= {f.name: 1 for f in fields(cls.Config) if f.name.endswith("epochs")}
    values |= {f.name: batch for f in fields(cls.Config) if f.name.endswith("batch_size")}
    values |= {"inner_steps": 2} if "inner_steps" in values else {}
    refused = REFUSED.get(name)
    return cls.Config(**{**values, **SMALL.get(name, {}), **{k: v for k, v in services.items() if k != refused}})


def train_with_services(
    name: str,
    net: nn.Module,
    teachers: list[nn.Module],
    data: ImageSource,
    batch: int,
    precision: str,
    *,
    threat: ThreatModel = THREAT,
    **services: Any,
) -> dict[str, Tensor]:
    """Train a defense; return the weights, and those of the average under "average."."""
    config = small_config(name, batch, services)
    defense = load_defense(name)(config)
    roles = {role: FrozenModel(teachers[n]) for n, role in enumerate(sorted(defense.requires))}
    facts: dict[str, Any] = {"num_classes": 3, "image_shape": (3, 32, 32), "train_size": len(data)}
    setup = DefenseSetup(model=net, threat=threat, required_models=roles, **facts)
    runtime, stages = TrainRuntime("cpu", precision, 0, threat=threat), defense.stages(setup)
    average = WeightAverage(net, config, 1) if config.average != "none" else None
    for stage in stages:
        if isinstance(stage, Train):
            run_train(runtime, stage, data, Stopwatch(), average=average if stage is stages[-1] else None)
        else:
            setup.precomputed[stage.name] = PrecomputedArray(
                np.concatenate(run_precompute(runtime, stage, data, Stopwatch())[1])
            )
    averaged = {} if average is None else average.module.state_dict()
    return {**net.state_dict(), **{f"average.{name}": value for name, value in averaged.items()}}


SERVICES = {
    "average": "ema",
    "average_start": 0.0,
    "awp_gamma": 0.01,
    "label_smoothing": 0.1,
    "clip_grad": 1.0,
}


def plain_net(seed: int = 0) -> nn.Module:
    """Return SmallNet without BatchNorm, which would see other shards."""
    net = SmallNet(seed=seed).double()
    net.body[1] = net.body[4] = nn.Identity()
    return net


def use_float64() -> None:
    """Compute in float64 on one thread in this process; a method's cast to float32 cannot hide a difference."""
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign]


def train(name: str) -> dict[str, Tensor]:
    """Train a defense with all services on 33 real and 44 extra images, in batches of 11."""
    data = MixedImages(Blobs(33), Blobs(44), 0.7)
    return train_with_services(name, plain_net(), [plain_net(1), plain_net(2)], data, 11, "fp32", **SERVICES)


def train_in_process(names: tuple[str, ...], file: Path, device: str) -> None:
    """Run all trainings in one of two processes; rank 0 writes the results."""
    use_float64()
    results = {name: train(name) for name in names}
    if collectives.is_rank_zero():
        torch.save(results, file)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default=",".join((*DEFENSES, *SHARDED)))
    names, problems = tuple(parser.parse_args().only.split(",")), []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "results.pt"
        launch.spawn_processes("cpu", 2, partial(train_in_process, names, file))
        of_two = torch.load(file)
    use_float64()
    for name in names:
        one, two = train(name), of_two[name]
        difference = max(float((one[key] - two[key]).abs().max()) for key in one)
        print(f"{name}: two processes differ from one by {difference:.1e}", flush=True)
        if not difference <= TOLERANCE:
            problems.append(name)
    print(f"different: {', '.join(problems)}" if problems else "no differences")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
