"""Strength of attacks with bfloat16 gradient steps: which images they succeed on, compared with float32 steps.

    python benchmarks/bf16_search.py STORE FOLDER --data-dir DIR [--attack pgd] [--steps 40] [--eps 8/255]

FOLDER is a trained model of a store, such as at-resnet20-cifar10-s0-0123456789. If the hardware has no bfloat16 units
(or with --emulate), convolutions round their inputs, weights and results to bfloat16, forward and backward, and the
linear head stays in float32. That is close to bfloat16, but neither equal nor as fast: batch norm and sums between
convolutions, which autocast rounds too, stay exact (mean error of the logits of an `at` resnet20: 0.0022 instead of
0.0025). Success is confirmed in float32 on both sides. --all also runs attacks that otherwise stay in float32.
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

from robobench.attack_engine import accelerated
from robobench.attack_engine.base import IterativeAttack
from robobench.attack_engine.options import AttackOptions
from robobench.core import provenance
from robobench.core.device import has_bf16
from robobench.core.module_state import attack_mode
from robobench.core.numbers import parse_eps
from robobench.core.threat import ThreatModel
from robobench.data import load_dataset
from robobench.evaluation.accuracy import attack_rng, clean_outcomes
from robobench.execution.load import load_trained
from robobench.plugins.discovery import load_attack

BATCH_SIZE = 256


class Round(torch.autograd.Function):
    """Rounds values to bfloat16, and their gradients in the backward pass."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return values.bfloat16().float()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0].bfloat16().float()


class EmulatedBf16Model(nn.Module):
    """A model whose convolutions compute with bfloat16 values."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        with bf16_convolutions():
            logits: Tensor = self.model(images)
        return logits


@contextmanager
def bf16_convolutions() -> Iterator[None]:
    """Make every 2-d convolution round its inputs, weights and results to bfloat16."""
    exact = F.conv2d

    def rounded(images: Tensor, weight: Tensor, bias: Tensor | None = None, *rest: Any, **more: Any) -> Tensor:
        out: Tensor = Round.apply(exact(Round.apply(images), Round.apply(weight), bias, *rest, **more))
        return out

    F.conv2d = rounded  # type: ignore[assignment]
    try:
        yield
    finally:
        F.conv2d = exact


def main() -> None:
    """Attack with float32 and with bfloat16 steps, and print on how many images each succeeds."""
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
    parser.add_argument("--all", action="store_true", help="also attacks that compare losses or change at a success")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    emulate = options.emulate or not has_bf16(options.device)
    if emulate:
        accelerated.Bf16Model = EmulatedBf16Model  # type: ignore[misc, assignment]
    if options.all:
        IterativeAttack.supports_bf16_search = True
    model = load_trained(options.store, options.folder)[0].to(options.device).eval()
    test = load_dataset("cifar10", data_dir=options.data_dir, need_train=False, device=options.device).test
    cls = load_attack(options.attack)
    config = cls.Config(**({"steps": options.steps} if options.steps else {}))
    attack = cls(config, ThreatModel(options.norm, parse_eps(options.eps, options.norm)))
    index = torch.arange(options.images)
    batches = torch.split(index, BATCH_SIZE)
    index = index[torch.cat([clean_outcomes(model, test, batch, options.device) for batch in batches])]
    print(f"{provenance.hardware(options.device)}, {options.threads} threads, {'emulated' if emulate else 'bfloat16'}")
    successes = []
    for bf16 in (False, True):
        begun, found = time.perf_counter(), []
        with attack_mode(model):
            for batch in torch.split(index, BATCH_SIZE):
                labels, rng = test.labels[batch].to(options.device), attack_rng(attack, batch, options.device)
                result = attack.attack_early_stop(
                    model, test.images(batch), labels, rng, AttackOptions(bf16_search=bf16)
                )
                found.append(result.success.cpu())
        successes.append(torch.cat(found))
        left, seconds = int((~successes[-1]).sum()), time.perf_counter() - begun
        print(f"{'bfloat16' if bf16 else 'float32'}: {left} of {options.images} correct, {seconds:.0f} s", flush=True)
    exact, other = successes
    print(f"success in float32 only: {int((exact & ~other).sum())}, in bfloat16 only: {int((other & ~exact).sum())}")


if __name__ == "__main__":
    main()
