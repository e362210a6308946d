"""What a search in bfloat16 costs in strength: which images fall, beside the same search in float32.

    python benchmarks/rounded_search.py STORE FOLDER --data-dir DIR [--attack pgd] [--steps 40] [--eps 8/255]

FOLDER is a trained network of a store, such as at-resnet20-cifar10-s0-0123456789. Where the hardware has no bfloat16
units (or with --emulate) convolutions round their inputs, weights and results to bfloat16 instead, forward and
backward, and the linear head stays float32. That is close to bfloat16, not equal, nor as fast: batch norm and sums
between convolutions, which autocast rounds too, stay exact (mean error of the logits of an `at` resnet20: 0.0022
instead of 0.0025). Verdicts are float32 on both sides.
--all lets any attack search so, also those that stay in float32 otherwise.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robobench.attack_engine.accelerated import allow_bf16_search
from robobench.attack_engine.base import IterativeAttack
from robobench.core import provenance
from robobench.core.device import has_bf16
from robobench.core.module_state import attack_mode
from robobench.core.threat import ThreatModel, parse_eps
from robobench.data import load_dataset
from robobench.evaluation.accuracy import attack_rng, clean_outcomes
from robobench.execution.stored import load_trained
from robobench.plugins.discovery import load_attack

CHUNK = 256


class Round(torch.autograd.Function):
    """Round values to bfloat16, and their gradients on the way back."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return values.bfloat16().float()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0].bfloat16().float()


class Emulated(nn.Module):
    """A network whose convolutions compute with bfloat16 values."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        with rounding_convolutions():
            logits: Tensor = self.model(images)
        return logits


@contextmanager
def rounding_convolutions() -> Iterator[None]:
    """Let every 2-d convolution round its inputs, weights and results."""
    exact = F.conv2d

    def rounded(images: Tensor, weight: Tensor, bias: Tensor | None = None, *rest: Any, **more: Any) -> Tensor:
        out: Tensor = Round.apply(exact(Round.apply(images), Round.apply(weight), bias, *rest, **more))
        return out

    F.conv2d = rounded
    try:
        yield
    finally:
        F.conv2d = exact


def main() -> None:
    """Attack in float32 and rounded, and print who fell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("folder")
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--attack", default="pgd")
    parser.add_argument("--steps", type=int, help="of the attack")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--norm", default="Linf")
    parser.add_argument("--eps", default="8/255")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--emulate", action="store_true")
    parser.add_argument("--all", action="store_true", help="also attacks that compare losses or turn at a success")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    emulate = asked.emulate or not has_bf16(asked.device)
    if emulate:
        Bf16Model = Emulated  # type: ignore[misc, assignment]
    if asked.all:
        IterativeAttack.supports_bf16_search = True
    model = load_trained(asked.store, asked.folder)[0].to(asked.device).eval()
    test = load_dataset("cifar10", data_dir=asked.data_dir, need_train=False, device=asked.device).test
    cls = load_attack(asked.attack)
    config = cls.Config(**({"steps": asked.steps} if asked.steps else {}))
    attack = cls(config, ThreatModel(asked.norm, parse_eps(asked.eps, asked.norm)))
    index = torch.arange(asked.images)
    right = torch.cat([clean_outcomes(model, test, part, asked.device) for part in index.split(CHUNK)])
    index, fallen = index[right], []
    print(f"{provenance.hardware(asked.device)}, {asked.threads} threads, {'emulated' if emulate else 'bfloat16'}")
    for rounded in (False, True):
        begun, found = time.perf_counter(), []
        with attack_mode(model), allow_bf16_search(rounded):
            for part in index.split(CHUNK):
                labels, noise = test.labels[part].to(asked.device), attack_rng(attack, part, asked.device)
                found.append(attack.attack_early_stop(model, test.images(part), labels, noise).success.cpu())
        fallen.append(torch.cat(found))
        left, seconds = int((~fallen[-1]).sum()), time.perf_counter() - begun
        print(f"{'rounded' if rounded else 'float32'}: {left} of {asked.images} stand, {seconds:.0f} s", flush=True)
    exact, other = fallen
    print(f"fallen in float32 only: {int((exact & ~other).sum())}, rounded only: {int((other & ~exact).sum())}")


if __name__ == "__main__":
    main()
