"""Training in robobench against plain loops, as the methods' repositories train: float32, eager, images NCHW.

    python benchmarks/training_against_plain_loops.py [--only speed,harness,cost] [--data-dir DIR] [--models resnet20]
    python benchmarks/training_against_plain_loops.py --only accuracy [--seeds 3]

Every defense has the values of the preset `cifar`, ten inner steps and batches of 128. `at` attacks in train mode, as
its published loop does; our default is eval mode.

speed     `run_train` against a loop written as in the repositories of AT (locuslab/robust_overfitting), TRADES
          (yaodongyu/TRADES) and AdaAD (boyellow/AdaAD): their forward passes, BatchNorm modes and backward passes, on
          the same batches. The loop is float32 and eager, whatever `--precision` and `--compile` set for ours. The
          sides alternate, each in a separate process. MACD has no published loop; its peer is a plain version of the
          paper's Algorithm 2 with our teacher, which sees visible tokens only on both sides.
harness   `run_train` against the same steps in a bare loop, on batches made in advance; they alternate in one process.
cost      An epoch of MACD's distillation against one of AT, in seconds and in forward passes per image, as robobench
          counts them: an input gradient counts 1 and a weight gradient 2. A pass of a teacher, or of half the
          autoencoder, counts like one of the model, and one over some of an image's tokens counts their share. All of
          MACD is the standard model, both phases of the autoencoder, the static attack and the distillation, each for
          its epochs in the preset, as for AT.
accuracy  Both sides train for some epochs and are attacked with PGD-20. AdaAD's teacher is trained by our AT. MACD's
          distillation starts at our standard model, with an untrained teacher and clean images, since its other stages
          have no plain form.

The targets that are met are printed at the end. DIR holds CIFAR-10 as parquet files or torchvision's archive; default:
the embedded digits.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jobs import check_claim
from plain_losses import EPS, PLAIN
from torch import Tensor, nn

from robobench.core import provenance
from robobench.core.device import has_bf16, resolve_precision
from robobench.core.memory import keep_freed_memory
from robobench.core.rng import permutation
from robobench.core.threat import ThreatModel
from robobench.core.timing import Stopwatch
from robobench.data import load_dataset
from robobench.evaluation.accuracy import clean_outcomes, white_box_outcomes
from robobench.models.build import build_model
from robobench.models.spec import ModelSpec
from robobench.planning.presets import PRESETS
from robobench.plugins.discovery import load_attack, load_defense
from robobench.training.accumulation import one_step
from robobench.training.base import DefenseSetup, FrozenModel, Precompute, PrecomputedArray, Stage, Train
from robobench.training.context import ImageSource, TrainRuntime, build_objective
from robobench.training.loop import run_train
from robobench.training.precompute import run_precompute
from robobench.training.sampling import batch_sizes

BATCH = 128
AS_PUBLISHED = {"at": {"attack_bn_mode": "train"}}  # settings of the published loop that differ from our default
TEACHERS = {"adaad": "at", "macd": "standard"}  # defense that trains the teacher or the start, for accuracy


def stages_of(
    name: str, model: nn.Module, teacher: nn.Module, train: ImageSource, epochs: int | None = None
) -> list[Stage]:
    """Return a defense's stages. `teacher` is every model it requires."""
    cls, shape = load_defense(name), tuple(train.images(torch.arange(1)).shape[1:])
    values = {**PRESETS["cifar"]["training"], **cls.presets.get("cifar", {}), **AS_PUBLISHED.get(name, {})}
    values |= {"batch_size": BATCH}
    if epochs is not None:
        values |= {"epochs": epochs} | ({"attacked_images": False} if name == "macd" else {})
    config = cls.Config(**values)
    setup = DefenseSetup(
        model=model,
        threat=ThreatModel("Linf", EPS),
        num_classes=10,
        image_shape=shape,  # type: ignore[arg-type]
        train_size=len(train),
        required_models={role: FrozenModel(teacher) for role in cls.requires},
    )
    stages: list[Stage] = cls(config).stages(setup)
    for stage in stages:
        if isinstance(stage, Precompute):
            empty = np.zeros((len(train), *shape), np.uint8)
            setup.precomputed[stage.name] = PrecomputedArray(empty, next(model.parameters()).device)
    return stages


def main_stage(stages: list[Stage]) -> Train:
    """Return the stage that trains the model."""
    return next(stage for stage in stages if isinstance(stage, Train) and stage.name in ("train", "distill"))


def epoch_batches(runtime: TrainRuntime, stage: Train, train: ImageSource, epoch: int) -> list[Tensor]:
    """Return the batches of an epoch, as `run_train` draws them."""
    shuffled = permutation(len(train), runtime.seed, stage.name, epoch)
    return list(torch.split(shuffled.to(train.labels.device), batch_sizes(len(train), stage.batch_size)))


def loop(optimizer: torch.optim.Optimizer, stage: Train, epoch: int, steps: Sequence[Callable[[], object]]) -> None:
    """Take the steps of an epoch at the stage's rates."""
    for number, step in enumerate(steps):
        for group in optimizer.param_groups:
            group["lr"] = optimizer.defaults["lr"] * stage.schedule(epoch + number / len(steps))
        step()


def run_plain(
    runtime: TrainRuntime,
    stage: Train,
    train: ImageSource,
    stopwatch: Stopwatch,
    compute_loss: Callable[..., Tensor],
    *models: nn.Module,
) -> None:
    """Train the first of two models, the second being its teacher, as the repositories do.

    Args:
        compute_loss: returns the loss of (model, teacher, images, labels).
    """
    model, teacher = (module.to(memory_format=torch.contiguous_format) for module in models)
    optimizer = stage.optimizer(model.train())

    def step(index: Tensor, epoch: int) -> None:
        batch = runtime.batch(train, index, stage.name, epoch, stage.augment)
        loss = compute_loss(model, teacher, batch.images.contiguous(), batch.labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    if stage.epochs == 1:  # for speed: the first step is the warm-up
        step(epoch_batches(runtime, stage, train, 0)[0], 0)
    for epoch in range(stage.epochs):
        steps = [partial(step, index, epoch) for index in epoch_batches(runtime, stage, train, epoch)]
        with stopwatch.account(stage.name):
            loop(optimizer, stage, epoch, steps)


def harness(runtime: TrainRuntime, stage: Train, train: ImageSource, rounds: int) -> list[float]:
    """Return how much longer `run_train` takes than its steps in a bare loop, in percent, for every round."""
    stopwatch, found = Stopwatch(runtime.device), []
    batches = [
        runtime.batch(train, index, stage.name, 0, stage.augment) for index in epoch_batches(runtime, stage, train, 0)
    ]
    for number in range(rounds + 1):
        _, objective = run_train(runtime, stage, train, stopwatch)
        optimizer = stage.optimizer(objective)
        steps = [partial(one_step, runtime, objective, optimizer, batch) for batch in batches]
        with stopwatch.account(f"bare {number}") as bare:
            loop(optimizer, stage, 0, steps)
        found.append(100 * (stopwatch.accounts[stage.name].seconds / bare.seconds - 1))
    return found[1:]  # the first round is the warm-up


def cost(runtime: TrainRuntime, model: nn.Module, teacher: nn.Module, train: ImageSource) -> dict[str, list[float]]:
    """Time an epoch of every stage of three defenses; return epochs in the preset, forwards and seconds per image."""
    found: dict[str, list[float]] = {}
    for name in ("standard", "at", "macd"):
        for stage in stages_of(name, model, teacher, train):
            stopwatch = Stopwatch(runtime.device)
            if isinstance(stage, Train):
                epochs, record = stage.epochs, run_train(runtime, replace(stage, epochs=1), train, stopwatch)[0]
            else:
                epochs, record = 1, run_precompute(runtime, stage, train, stopwatch)[0]
            assert stage.passes is not None
            forwards = stage.passes.forward_equivalents + stage.passes.teacher_forward_equivalents
            found[f"{name} {stage.name}"] = [epochs, forwards, record.seconds / len(train)]
    return found


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run one side once, in this process; return what the part of `--only` needs."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    name, device, for_accuracy = options.defenses, options.device, options.only == "accuracy"
    dataset = load_dataset("cifar10" if options.data_dir else "digits", data_dir=options.data_dir, device=device)
    assert dataset.train is not None
    train = dataset.train.first(options.train_images if for_accuracy else options.steps * BATCH)
    spec = ModelSpec(options.models, 10, 0, "cifar" if options.models == "resnet18" else "native")
    model = build_model(replace(spec, seed=options.seed)).to(device)
    teacher = build_model(replace(spec, seed=100 + options.seed)).to(device).eval()
    epochs = options.epochs if for_accuracy else 1
    runtime, stopwatch = (
        TrainRuntime(device, options.precision, options.seed, compiled=options.compile),
        Stopwatch(device),
    )
    if options.side != "plain":
        keep_freed_memory()
    if options.only == "cost":
        return cost(runtime, model, teacher, train)
    if for_accuracy and name in TEACHERS:
        first = stages_of(TEACHERS[name], teacher, teacher, train, epochs)
        run_train(runtime, main_stage(first), train, Stopwatch(device))
    stage = main_stage(stages_of(name, model, teacher, train, epochs))
    if options.only == "harness":
        return {"percent": harness(runtime, stage, train, options.repeats)}
    if options.side == "plain":
        other = build_objective(stage, device) if name == "macd" else teacher
        run_plain(runtime, stage, train, stopwatch, PLAIN[name], model, other)
    else:
        run_train(runtime, stage, train, stopwatch)
    account = stopwatch.accounts[stage.name]
    if not for_accuracy:
        return {"images": len(train) / account.seconds, "peak": account.peak_memory_bytes / 2**20}
    attack, index = load_attack("pgd"), torch.arange(min(1000, len(dataset.test)))
    clean = clean_outcomes(model.eval(), dataset.test, index, device)
    pgd = attack(attack.Config(steps=20), ThreatModel("Linf", EPS))
    robust = white_box_outcomes(model, pgd, dataset.test, index, clean, device)
    return {"clean": 100 * clean.float().mean().item(), "PGD-20": 100 * robust.float().mean().item()}


def measure_in_subprocess(options: argparse.Namespace, **values: object) -> dict[str, Any]:
    """Call `measure` in a separate process."""
    merged = {**vars(options), **values}
    flags = [f"--{k.replace('_', '-')}={v}" for k, v in merged.items() if k != "compile" and v is not None]
    flags += ["--compile"] if options.compile else []
    done = subprocess.run([sys.executable, __file__, *flags], check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def spread(values: list[float], form: str = ".0f") -> str:
    """Format the median of values, with their range."""
    return f"{statistics.median(values):{form}} ({min(values):{form}}-{max(values):{form}})"


def speeds(options: argparse.Namespace, model: str) -> list[str]:
    """Print images per second and memory of both sides; return the checked claims."""
    print("| model | defense | side | images/s | peak MiB |\n| --- | --- | --- | --- | --- |")
    on_gpu, claims = options.device.startswith("cuda"), []
    fast_hardware = on_gpu or (options.precision == "bf16" and has_bf16(options.device))
    for name in options.defenses.split(","):
        found: dict[str, list[dict[str, float]]] = {"ours": [], "plain": []}
        for number in range(options.repeats):
            for side in list(found)[:: 1 if number % 2 == 0 else -1]:
                found[side].append(measure_in_subprocess(options, models=model, defenses=name, side=side))
        peaks = [statistics.median(f["peak"] for f in each) for each in found.values()]
        for (side, each), peak in zip(found.items(), peaks, strict=True):
            print(
                f"| {model} | {name} | {side} | {spread([f['images'] for f in each], '.1f')} | {peak:.0f} |", flush=True
            )
        ratios = [o["images"] / p["images"] for o, p in zip(*found.values(), strict=True)]
        target = 2.5 if on_gpu else {"resnet18": 3.5}.get(model, 2.2) if name == "at" else 2.0
        claim = f"{model}, {name}, times faster, {min(ratios):.2f} to {max(ratios):.2f}"
        claims.append(check_claim(claim, statistics.median(ratios), ">=", target, fast_hardware))
        claims.append(
            check_claim(f"{model}, {name}, memory as a share of the plain loop's", peaks[0] / peaks[1], "<=", 1)
        )
    return claims


def harnesses(options: argparse.Namespace, model: str) -> list[str]:
    """Compare `run_train` with its steps in a bare loop; return the checked claims."""
    claims = []
    for name in options.defenses.split(","):
        percent = measure_in_subprocess(options, models=model, defenses=name, side="ours")["percent"]
        claim = f"{model}, {name}, overhead of run_train in %, {min(percent):.1f} to {max(percent):.1f}"
        claims.append(check_claim(claim, statistics.median(percent), "<=", 3))
    return claims


def costs(options: argparse.Namespace, model: str) -> list[str]:
    """Print the cost of every stage of MACD and AT; return the checked claims."""
    found = [measure_in_subprocess(options, models=model, side="ours") for _ in range(options.repeats)]
    print("| model | stage | epochs | forwards per image and epoch | ms per image and epoch |")
    print("| --- | --- | --- | --- | --- |")
    for stage, (epochs, forwards, _) in found[0].items():
        ms = spread([1000 * each[stage][2] for each in found], ".3f")
        print(f"| {model} | {stage} | {epochs:g} | {forwards:g} | {ms} |")
    claims = []
    for what, column, target in (("forwards", 1, 6), ("seconds", 2, 5)):
        at = [each["at train"][column] for each in found]
        ratios = [a / each["macd distill"][column] for a, each in zip(at, found, strict=True)]
        whole = [
            sum(v[0] * v[column] for stage, v in each.items() if stage != "at train") / (each["at train"][0] * a)
            for a, each in zip(at, found, strict=True)
        ]
        claim = f"{model}, {what} of an epoch, AT over MACD's distillation (all of MACD over all of AT: "
        claim += f"{statistics.median(whole):.2f})"
        claims.append(check_claim(claim, statistics.median(ratios), ">=", target))
    return claims


def accuracies(options: argparse.Namespace, model: str) -> list[str]:
    """Print the accuracies of both sides for every seed; return whether their means differ by more than chance."""
    print("| model | defense | side | clean % | PGD-20 % |\n| --- | --- | --- | --- | --- |")
    claims = []
    for name in options.defenses.split(","):
        found: dict[str, list[list[float]]] = {"clean": [], "PGD-20": []}
        for side in ("ours", "plain"):
            seeds = [
                measure_in_subprocess(options, models=model, defenses=name, side=side, seed=s)
                for s in range(options.seeds)
            ]
            for key, values in found.items():
                values.append([f[key] for f in seeds])
            shown = " | ".join(", ".join(f"{value:.1f}" for value in each[-1]) for each in found.values())
            print(f"| {model} | {name} | {side} | {shown} |", flush=True)
        for key, (ours, plain) in found.items():
            difference = abs(statistics.mean(ours) - statistics.mean(plain))
            # Student's t for two times three seeds, 95 %: 2.8 standard errors.
            errors = [statistics.variance(side) / len(side) if len(side) > 1 else 0.0 for side in (ours, plain)]
            claim = f"{model}, {name}, {key}: difference of the means of {options.seeds} seeds in points"
            claims.append(check_claim(claim, difference, "<=", 2.8 * sum(errors) ** 0.5, options.seeds >= 3))
    return claims


PARTS = {"speed": speeds, "harness": harnesses, "cost": costs, "accuracy": accuracies}


def main() -> None:
    """Measure, and print Markdown tables and the claims."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="speed,harness,cost", help=f"any of {','.join(PARTS)}")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--models", default="resnet20,resnet18")
    parser.add_argument("--defenses", default="at,trades,adaad,macd")
    parser.add_argument("--steps", type=int, default=4, help="batches of 128 per measurement")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", default="auto", help="of our side: auto, fp32 or bf16")
    parser.add_argument("--compile", action="store_true", help="compile our models")
    parser.add_argument("--seeds", type=int, default=3, help="for accuracy; so are --epochs and --train-images")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--train-images", type=int, default=2000)
    parser.add_argument("--side", choices=("ours", "plain"), help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.precision = resolve_precision(options.precision, options.device)
    if options.side:
        print(json.dumps(measure(options)))
        return
    began, chosen, claims = time.perf_counter(), options.only.split(","), list[str]()
    how = f"{options.precision}{', compiled' if options.compile else ''}"
    print(f"{provenance.hardware(options.device)}, {options.threads} threads, ours {how}, torch {torch.__version__}.\n")
    for part, function in PARTS.items():
        options.only = part
        for model in options.models.split(","):
            claims += function(options, model) if part in chosen else [f"- {model}, {part}: not measured"]
    print(f"\n{(time.perf_counter() - began) / 60:.0f} minutes\n", *claims, sep="\n")


if __name__ == "__main__":
    main()
