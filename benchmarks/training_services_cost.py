"""Measure what EMA, AWP and extra images cost in a training step, and the memory of a million extra images.

    python benchmarks/training_services_cost.py [--model cnn] [--batch 64] [--rounds 9] [--million DIR]

CPU time of this process on one thread, variants alternating; medians and ratios. Inner steps: 10. `--million` writes a
sparse file of 3 GB to DIR and reads 100,000 random images of it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from robobench.core.threat import ThreatModel
from robobench.data.extra import load_extra
from robobench.defenses.at import ATConfig, ATObjective
from robobench.models.build import build_model
from robobench.models.spec import ModelSpec
from robobench.testing import Blobs
from robobench.training.accumulation import one_step
from robobench.training.averaging import WeightAverage
from robobench.training.context import ImageSource, TrainRuntime
from robobench.training.optimizer import make_optimizer
from robobench.training.sampling import MixedImages, epoch_batches

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "ema": {"average": "ema", "average_start": 0.0},
    "awp": {"awp_gamma": 0.005},
    "extra": {},
}


class Variant:
    """A training with its own model and optimizer."""

    def __init__(self, model: str, data: ImageSource, batch: int, **services: Any) -> None:
        self.config = ATConfig(augment="crop-flip", inner_steps=10, batch_size=batch, **services)
        net = build_model(ModelSpec(model, 10, image_size=32))
        self.objective = ATObjective(net, ThreatModel("Linf", 8 / 255), self.config).train()
        self.optimizer, self.data, self.count = make_optimizer(self.config)(self.objective), data, 0
        self.average = WeightAverage(net, self.config, 1) if self.config.average != "none" else None
        self.runtime = TrainRuntime("cpu", "fp32", 0)

    def step(self) -> float:
        """Take a step; return its CPU seconds."""
        index = epoch_batches(self.data, self.config.batch_size, self.count, 0, "train")[0]
        begin = time.process_time()
        batch = self.runtime.batch(self.data, index, "train", self.count, self.config.augment)
        one_step(self.runtime, self.objective, self.optimizer, batch, services=self.config)
        self.count += 1
        if self.average:
            self.average.after_step(self.count, 100, len(index))
        return time.process_time() - begin


def write_images(folder: Path, count: int) -> Path:
    """Write `count` black images and their labels as .npy files; the images take no space on disk."""
    np.lib.format.open_memmap(folder / "image.npy", "w+", np.uint8, (count, 32, 32, 3)).flush()
    np.save(folder / "label.npy", np.arange(count) % 10)
    return folder


def resident_bytes() -> int:
    """Return the resident memory of this process, file mappings included."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measure_million(folder: Path) -> None:
    """Print the growth of resident memory by reading many of a million images."""
    begin, before = time.perf_counter(), resident_bytes()
    extra = load_extra(write_images(folder, 1_000_000), num_classes=10, resolution=32)
    opened, grown = time.perf_counter() - begin, 0
    for part in torch.randint(len(extra), (100_000,)).reshape(-1, 80):
        extra.images(part)
        grown = max(grown, resident_bytes() - before)
    begin = time.perf_counter()
    load_extra(folder, num_classes=10, resolution=32)
    print(f"1,000,000 images: {grown / 2**20:.0f} MiB of resident growth after 100,000 random reads")
    print(f"opened in {opened:.1f} s (with the digest), again in {time.perf_counter() - begin:.2f} s")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="cnn")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--million", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.million:
        args.million.mkdir(parents=True, exist_ok=True)
        measure_million(args.million)
    with tempfile.TemporaryDirectory() as name:
        real = Blobs(2000)
        extra = load_extra(write_images(Path(name), 20_000), num_classes=10, resolution=32)
        variants = {
            variant: Variant(args.model, MixedImages(real, extra, 0.7) if variant == "extra" else real, args.batch, **v)
            for variant, v in VARIANTS.items()
        }
        seconds: dict[str, list[float]] = {variant: [] for variant in variants}
        for number in range(args.rounds + 1):
            for variant, training in variants.items():
                spent = training.step()
                if number:  # the first step warms up
                    seconds[variant].append(spent)
    plain = statistics.median(seconds["plain"])
    for variant, values in seconds.items():
        ratios = [value / base for value, base in zip(values, seconds["plain"], strict=True)]
        text = f"{variant}: median {statistics.median(values):.3f} s, ratio {statistics.median(values) / plain:.3f}"
        print(f"{text}, median of the ratios {statistics.median(ratios):.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
