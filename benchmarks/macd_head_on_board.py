"""MACD of a committed board before and after the head phase. The distillation is not repeated.

    python benchmarks/macd_head_on_board.py --data-dir DIR [--board cifar10-jpeg-resnet20] [--images 200]

The stored models are those of Algorithm 2 (version 1 of `macd`). The head phase is run on copies of them, on the
training images of the board. Attack: PGD-40, Linf 8/255, white-box and from the standard model of seed 0. The standard
models of other seeds are the undefended baselines. Prints a line per model, and the means.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

import robobench
from robobench.core.threat import ThreatModel
from robobench.core.timing import Stopwatch
from robobench.data import load_dataset
from robobench.data.split import Split
from robobench.evaluation.accuracy import clean_outcomes, transfer_examples, transfer_outcomes, white_box_outcomes
from robobench.plugins.discovery import load_attack, load_defense
from robobench.training.base import DefenseSetup, PrecomputedArray, Train
from robobench.training.context import TrainRuntime
from robobench.training.loop import run_train
from robobench.training.precompute import run_precompute

READINGS: dict[str, dict[str, object]] = {
    "Algorithm 2": {"bn_recalibrate": False, "head_epochs": 0},
    "statistics": {"head_epochs": 0},
    "statistics and head": {},
}


def run_head_phase(model: nn.Module, train: Split, seed: int, changes: dict[str, object]) -> nn.Module:
    """Run the stages of the head phase on a model."""
    from robobench.defenses.macd import head

    config = replace(load_defense("macd").Config(), **changes)
    setup = DefenseSetup(
        model=model, threat=ThreatModel("Linf", 8 / 255), num_classes=10, image_shape=(3, 32, 32),
        train_size=len(train), seed=seed,
    )  # fmt: skip
    runtime = TrainRuntime("cpu", "fp32", seed)
    for stage in head.stages(setup, config):
        if isinstance(stage, Train):
            run_train(runtime, stage, train, Stopwatch())
        else:
            parts = run_precompute(runtime, stage, train, Stopwatch())[1]
            setup.precomputed[stage.name] = PrecomputedArray(torch.cat([torch.as_tensor(p) for p in parts]).numpy())
    return model


def main() -> None:
    """Measure every model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--board", default="cifar10-jpeg-resnet20")
    parser.add_argument("--images", type=int, default=200)
    options = parser.parse_args()
    torch.set_num_threads(1)
    board = Path(robobench.__file__).parents[1] / "leaderboards" / options.board
    trained = json.loads(next(board.glob("macd-*-s0-*/config.json")).read_text())["train_images"]
    data = load_dataset("cifar10", data_dir=options.data_dir, resolution=32)
    assert data.train is not None
    train, index = data.train.first(trained), torch.arange(options.images)
    attack_class = load_attack("pgd")
    attack = attack_class(attack_class.Config(), ThreatModel("Linf", 8 / 255))
    source = robobench.load(board, next(board.glob("standard-*-s0-*")).name)
    adv = transfer_examples(source, attack, data.test, index, "cpu")
    found: dict[str, list[tuple[float, ...]]] = {}

    def measure(name: str, seed: str, model: nn.Module) -> None:
        clean = clean_outcomes(model, data.test, index, "cpu")
        outcomes = (
            clean,
            transfer_outcomes(model, adv, data.test.labels[index], clean),
            white_box_outcomes(model, attack, data.test, index, clean, "cpu"),
        )
        found.setdefault(name, []).append(tuple(100 * float(o.float().mean()) for o in outcomes))
        print(name, seed, found[name][-1], flush=True)

    for folder in sorted(board.glob("standard-*-s[1-9]-*")):
        measure("standard", folder.name, robobench.load(board, folder.name))
    for folder in sorted(board.glob("macd-*")):
        seed = json.loads((folder / "config.json").read_text())["seed"]
        for name, changes in READINGS.items():
            measure(name, folder.name, run_head_phase(robobench.load(board, folder.name), train, seed, changes))
    for name, lines in found.items():
        print(f"| {name} | {len(lines)} | " + " | ".join(f"{statistics.mean(v):.1f}" for v in zip(*lines, strict=True)))


if __name__ == "__main__":
    main()
