"""Training in robobench against plain loops, as the methods' repositories train: float32, eager, images NCHW.

    python benchmarks/training_against_plain_loops.py [--only speed,harness,cost] [--data-dir DIR] [--models resnet20]
    python benchmarks/training_against_plain_loops.py --only accuracy [--seeds 3]

Every defense has the values of the preset `cifar`, ten inner steps and batches of 128; `at` attacks in train mode, as
its published loop does and our default does not.

speed     `run_train` beside a loop written as the repositories of AT (locuslab/robust_overfitting), TRADES
          (yaodongyu/TRADES) and AdaAD (boyellow/AdaAD) have it: their forwards, their BatchNorm modes, their backward
          passes, float32 and eager whatever `--precision` and `--compile` give ours, on the same batches. The sides
          alternate, each in a process of its own. MACD has no published loop; its peer is Algorithm 2 of the paper
          written down plainly, with our teacher, which sees visible tokens only on both sides.
harness   `run_train` and the same steps in a bare loop, on batches that the engine made beforehand, alternate in one
          process.
cost      An epoch of MACD's distillation beside one of AT, in seconds and as robobench counts passes: forwards an
          image, of which a backward to the image is 1, to the weights 2, and a pass of a teacher or of half the
          autoencoder 1 like one of the network, over some of an image's tokens their share. All of MACD is the
          standard network, both phases of the autoencoder, the static attack and the distillation, each for its
          epochs in the preset, as AT's.
accuracy  Both sides train for some epochs and are attacked with PGD-20. AdaAD's teacher comes from our AT. MACD's
          distillation starts at our standard network, its teacher untrained and looking at clean images: its other
          stages have no plain form.

At the end stands which of the asked figures hold. DIR holds CIFAR-10 as parquet files or torchvision's archive; without
it the embedded digits serve.
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
import torch.nn.functional as F
from torch import Tensor, nn
from verdicts import verdict

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
from robobench.planning import presets
from robobench.plugins.discovery import load_attack, load_defense
from robobench.training.accumulation import batch_sizes, one_step
from robobench.training.base import DefenseSetup, FrozenModel, Precompute, PrecomputedArray, Stage, Train
from robobench.training.context import ImageSource, TrainRuntime, build_objective
from robobench.training.loop import run_train
from robobench.training.precompute import run_precompute

EPS, STEP, INNER, BATCH = 8 / 255, 2 / 255, 10, 128
ALIKE = {"at": {"attack_bn_mode": "train"}}  # what our default leaves to the published loop
BEFORE = {"adaad": "at", "macd": "standard"}  # the defense whose network a training for accuracy needs
Gradient = Callable[[Tensor], Tensor]


def climb(adv: Tensor, images: Tensor, gradient: Gradient) -> Tensor:
    """Take the inner steps of all three repositories."""
    for _ in range(INNER):
        adv = adv.detach().requires_grad_(True)
        adv = adv.detach() + STEP * gradient(adv).sign()
        adv = torch.min(torch.max(adv, images - EPS), images + EPS).clamp(0, 1)
    return adv.detach()


def climb_beside(model: nn.Module, images: Tensor, gradient: Gradient) -> Tensor:
    """Start 0.001 N(0, 1) beside the image, with the network in eval mode, as TRADES and AdaAD."""
    model.eval()
    adv = climb(images + 0.001 * torch.randn_like(images), images, gradient)
    model.train()
    return adv


def kl(target: Tensor, logits: Tensor, reduction: str) -> Tensor:
    """KL(target || logits) of two sets of logits."""
    return F.kl_div(F.log_softmax(logits, 1), F.softmax(target, 1), reduction=reduction)


def plain_at(model: nn.Module, teacher: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Attack in train mode through a full backward, as locuslab; the parameters' gradients are thrown away.

    Left out are two forwards of each step there, for restarts and the log, which would make the loop slower still.
    """

    def gradient(adv: Tensor) -> Tensor:
        F.cross_entropy(model(adv), labels).backward()  # type: ignore[no-untyped-call]
        assert adv.grad is not None
        return adv.grad

    start = (images + torch.empty_like(images).uniform_(-EPS, EPS)).clamp(0, 1)
    adv = climb(start, images, gradient)
    model.zero_grad()
    return F.cross_entropy(model(adv), labels)


def plain_trades(model: nn.Module, teacher: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Predict the clean images anew in every step and twice in the loss, as the repository."""

    def gradient(adv: Tensor) -> Tensor:
        return torch.autograd.grad(kl(model(images), model(adv), "sum"), [adv])[0]

    adv = climb_beside(model, images, gradient)
    clean_loss = F.cross_entropy(model(images), labels)
    return clean_loss + 6.0 * kl(model(images), model(adv), "batchmean")


def plain_adaad(model: nn.Module, teacher: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Run the clean term of weight zero too, forward and backward, as the repository."""

    def gradient(adv: Tensor) -> Tensor:
        return torch.autograd.grad(kl(teacher(adv), model(adv), "sum"), [adv])[0]

    adv = climb_beside(model, images, gradient)
    clean_logits, adv_logits = model(images), model(adv)
    with torch.no_grad():
        clean_target, adv_target = teacher(images), teacher(adv)
    return 1.0 * kl(adv_target, adv_logits, "mean") + 0.0 * kl(clean_target, clean_logits, "mean")


def plain_macd(model: Any, objective: Any, images: Tensor, labels: Tensor) -> Tensor:
    """Mask the student's blocks and the teacher's tokens, and descend eq. 5 and 6."""
    cfg, frozen_teacher = objective.config, objective.teacher.module
    side = images.shape[-1] // cfg.student_patch

    def kept(count: int, mask_ratio: float) -> Tensor:
        order = torch.rand(len(images), count, device=images.device).argsort(1)
        return order[:, : round(count * (1 - mask_ratio))]

    blocks = images.new_zeros(len(images), side * side)
    blocks.scatter_(1, kept(side * side, cfg.student_mask_ratio), 1.0)
    masked = images * F.interpolate(blocks.view(-1, 1, side, side), images.shape[-2:])
    features: Tensor = model.features(masked)
    with torch.no_grad():
        target = frozen_teacher(images, kept(frozen_teacher.encoder.count, cfg.teacher_mask_ratio))
    distance = (F.normalize(features) - F.normalize(target)).square().sum(1).mean()
    class_loss = F.cross_entropy(model.head(features), labels)
    return kl(target, features, "batchmean") + distance + class_loss


PLAIN = {"at": plain_at, "trades": plain_trades, "adaad": plain_adaad, "macd": plain_macd}


def stages_of(
    name: str, model: nn.Module, teacher: nn.Module, train: ImageSource, epochs: int | None = None
) -> list[Stage]:
    """Build a defense's stages; what it requires of other networks is the teacher."""
    cls, shape = load_defense(name), tuple(train.images(torch.arange(1)).shape[1:])
    values = {**presets.PRESETS["cifar"]["recipe"], **cls.presets.get("cifar", {}), **ALIKE.get(name, {})}
    values |= {"batch_size": BATCH}
    if epochs is not None:
        values |= {"epochs": epochs} | ({"attacked_images": False} if name == "macd" else {})
    config = cls.Config(**values)
    setup = DefenseSetup(
        model=model,
        threat=ThreatModel("Linf", EPS),
        config=config,
        num_classes=10,
        image_shape=shape,  # type: ignore[arg-type]
        train_size=len(train),
        required_models={role: FrozenModel(teacher) for role in cls.requires},
    )
    stages = cls(config).stages(setup)
    for stage in stages:
        if isinstance(stage, Precompute):
            empty = np.zeros((len(train), *shape), np.uint8)
            setup.precomputed[stage.name] = PrecomputedArray(empty, next(model.parameters()).device)
    return stages


def main_stage(stages: list[Stage]) -> Train:
    """Pick the stage that trains the network."""
    return next(stage for stage in stages if isinstance(stage, Train) and stage.name in ("train", "distill"))


def order(engine: TrainRuntime, stage: Train, train: ImageSource, epoch: int) -> list[Tensor]:
    """List the batches of an epoch as the engine does."""
    shuffled = permutation(len(train), engine.seed, stage.name, epoch)
    return list(torch.split(shuffled.to(train.labels.device), batch_sizes(len(train), stage.batch_size)))


def loop(optimizer: torch.optim.Optimizer, stage: Train, epoch: int, steps: Sequence[Callable[[], object]]) -> None:
    """Take the steps of an epoch at the stage's rates."""
    for number, step in enumerate(steps):
        for group in optimizer.param_groups:
            group["lr"] = optimizer.defaults["lr"] * stage.schedule(epoch + number / len(steps))
        step()


def run_plain(
    engine: TrainRuntime,
    stage: Train,
    train: ImageSource,
    watch: Stopwatch,
    gives: Callable[..., Tensor],
    *networks: nn.Module,
) -> None:
    """Train the first of the networks as the repositories do; `gives` is the loss on networks, images and labels."""
    model, teacher = (network.to(memory_format=torch.contiguous_format) for network in networks)
    optimizer = stage.optimizer(model.train())

    def step(index: Tensor, epoch: int) -> None:
        batch = engine.batch(train, index, stage.name, epoch, stage.augment)
        loss = gives(model, teacher, batch.images.contiguous(), batch.labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    if stage.epochs == 1:  # a timing: the first step is the warm-up's
        step(order(engine, stage, train, 0)[0], 0)
    for epoch in range(stage.epochs):
        steps = [partial(step, index, epoch) for index in order(engine, stage, train, epoch)]
        with watch.account(stage.name):
            loop(optimizer, stage, epoch, steps)


def harness(engine: TrainRuntime, stage: Train, train: ImageSource, rounds: int) -> list[float]:
    """Measure how much longer `run_train` takes than its steps in a bare loop, in percent, round by round."""
    watch, found = Stopwatch(engine.device), []
    batches = [engine.batch(train, index, stage.name, 0, stage.augment) for index in order(engine, stage, train, 0)]
    for number in range(rounds + 1):
        _, objective = run_train(engine, stage, train, watch)
        optimizer = stage.optimizer(objective)
        steps = [partial(one_step, engine, objective, optimizer, batch) for batch in batches]
        with watch.account(f"bare {number}") as bare:
            loop(optimizer, stage, 0, steps)
        found.append(100 * (watch.accounts[stage.name].seconds / bare.seconds - 1))
    return found[1:]  # the first round is the warm-up


def cost(engine: TrainRuntime, model: nn.Module, teacher: nn.Module, train: ImageSource) -> dict[str, list[float]]:
    """Measure an epoch of every stage of three defenses: epochs in the preset, forwards and seconds an image."""
    found: dict[str, list[float]] = {}
    for name in ("standard", "at", "macd"):
        for stage in stages_of(name, model, teacher, train):
            watch = Stopwatch(engine.device)
            if isinstance(stage, Train):
                epochs, record = stage.epochs, run_train(engine, replace(stage, epochs=1), train, watch)[0]
            else:
                epochs, record = 1, run_precompute(engine, stage, train, watch)[0]
            assert stage.passes is not None
            units = stage.passes.forward_equivalents + stage.passes.teacher_forward_equivalents
            found[f"{name} {stage.name}"] = [epochs, units, record.seconds / len(train)]
    return found


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """Run one side once, in this process; return images a second and the peak in MiB, accuracies, or what is asked."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    name, device, long = options.defenses, options.device, options.only == "accuracy"
    dataset = load_dataset("cifar10" if options.data_dir else "digits", data_dir=options.data_dir, device=device)
    assert dataset.train is not None
    train = dataset.train.first(options.train_images if long else options.steps * BATCH)
    spec = ModelSpec(options.models, 10, 0, "cifar" if options.models == "resnet18" else "native")
    model = build_model(replace(spec, seed=options.seed)).to(device)
    teacher = build_model(replace(spec, seed=100 + options.seed)).to(device).eval()
    epochs = options.epochs if long else 1
    engine, watch = TrainRuntime(device, options.precision, options.seed, compiled=options.compile), Stopwatch(device)
    if options.side != "plain":
        keep_freed_memory()
    if options.only == "cost":
        return cost(engine, model, teacher, train)
    if long and name in BEFORE:
        first = stages_of(BEFORE[name], teacher, teacher, train, epochs)
        run_train(engine, main_stage(first), train, Stopwatch(device))
    stage = main_stage(stages_of(name, model, teacher, train, epochs))
    if options.only == "harness":
        return {"percent": harness(engine, stage, train, options.repeats)}
    if options.side == "plain":
        beside = build_objective(stage, device) if name == "macd" else teacher
        run_plain(engine, stage, train, watch, PLAIN[name], model, beside)
    else:
        run_train(engine, stage, train, watch)
    account = watch.accounts[stage.name]
    if not long:
        return {"images": len(train) / account.seconds, "peak": account.peak_memory_bytes / 2**20}
    attack, index = load_attack("pgd"), torch.arange(min(1000, len(dataset.test)))
    clean = clean_outcomes(model.eval(), dataset.test, index, device)
    pgd = attack(attack.Config(steps=20), ThreatModel("Linf", EPS))
    robust = white_box_outcomes(model, pgd, dataset.test, index, clean, device)
    return {"clean": 100 * clean.float().mean().item(), "PGD-20": 100 * robust.float().mean().item()}


def child(options: argparse.Namespace, **values: object) -> dict[str, Any]:
    """Measure one side in a process of its own."""
    merged = {**vars(options), **values}
    flags = [f"--{k.replace('_', '-')}={v}" for k, v in merged.items() if k != "compile" and v is not None]
    flags += ["--compile"] if options.compile else []
    done = subprocess.run([sys.executable, __file__, *flags], check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def spread(values: list[float], form: str = ".0f") -> str:
    """Write a median with the lowest and the highest."""
    return f"{statistics.median(values):{form}} ({min(values):{form}}-{max(values):{form}})"


def speeds(options: argparse.Namespace, model: str) -> list[str]:
    """Print images a second of both sides, their ratio and the memory."""
    print("| network | defense | side | images/s | peak MiB |\n| --- | --- | --- | --- | --- |")
    on_gpu, said = options.device.startswith("cuda"), []
    units = on_gpu or (options.precision == "bf16" and has_bf16(options.device))
    for name in options.defenses.split(","):
        found: dict[str, list[dict[str, float]]] = {"ours": [], "plain": []}
        for number in range(options.repeats):
            for side in list(found)[:: 1 if number % 2 == 0 else -1]:
                found[side].append(child(options, models=model, defenses=name, side=side))
        peaks = [statistics.median(f["peak"] for f in each) for each in found.values()]
        for (side, each), peak in zip(found.items(), peaks, strict=True):
            print(
                f"| {model} | {name} | {side} | {spread([f['images'] for f in each], '.1f')} | {peak:.0f} |", flush=True
            )
        ratios = [o["images"] / p["images"] for o, p in zip(*found.values(), strict=True)]
        asked = 2.5 if on_gpu else {"resnet18": 3.5}.get(model, 2.2) if name == "at" else 2.0
        claim = f"{model}, {name}, times faster, {min(ratios):.2f} to {max(ratios):.2f}"
        said.append(verdict(claim, statistics.median(ratios), ">=", asked, units))
        said.append(verdict(f"{model}, {name}, memory as a share of the plain loop's", peaks[0] / peaks[1], "<=", 1))
    return said


def harnesses(options: argparse.Namespace, model: str) -> list[str]:
    """Compare `run_train` with its own steps in a bare loop."""
    said = []
    for name in options.defenses.split(","):
        percent = child(options, models=model, defenses=name, side="ours")["percent"]
        claim = f"{model}, {name}, % that the harness costs, {min(percent):.1f} to {max(percent):.1f}"
        said.append(verdict(claim, statistics.median(percent), "<=", 3))
    return said


def costs(options: argparse.Namespace, model: str) -> list[str]:
    """Print what every stage of MACD and AT costs, and compare them."""
    found = [child(options, models=model, side="ours") for _ in range(options.repeats)]
    print("| network | stage | epochs | forwards an image and epoch | ms an image and epoch |")
    print("| --- | --- | --- | --- | --- |")
    for stage, (epochs, forwards, _) in found[0].items():
        ms = spread([1000 * each[stage][2] for each in found], ".3f")
        print(f"| {model} | {stage} | {epochs:g} | {forwards:g} | {ms} |")
    said = []
    for what, column, asked in (("forwards", 1, 6), ("seconds", 2, 5)):
        at = [each["at train"][column] for each in found]
        ratios = [a / each["macd distill"][column] for a, each in zip(at, found, strict=True)]
        whole = [
            sum(v[0] * v[column] for stage, v in each.items() if stage != "at train") / (each["at train"][0] * a)
            for a, each in zip(at, found, strict=True)
        ]
        claim = f"{model}, {what} of AT's epoch over those of MACD's distillation (all of MACD over all of AT: "
        claim += f"{statistics.median(whole):.2f})"
        said.append(verdict(claim, statistics.median(ratios), ">=", asked))
    return said


def accuracies(options: argparse.Namespace, model: str) -> list[str]:
    """Print what both sides' networks reach, seed by seed, and whether their means differ by more than chance."""
    print("| network | defense | side | clean % | PGD-20 % |\n| --- | --- | --- | --- | --- |")
    said = []
    for name in options.defenses.split(","):
        found: dict[str, list[list[float]]] = {"clean": [], "PGD-20": []}
        for side in ("ours", "plain"):
            seeds = [child(options, models=model, defenses=name, side=side, seed=s) for s in range(options.seeds)]
            for key, values in found.items():
                values.append([f[key] for f in seeds])
            shown = " | ".join(", ".join(f"{value:.1f}" for value in each[-1]) for each in found.values())
            print(f"| {model} | {name} | {side} | {shown} |", flush=True)
        for key, (ours, plain) in found.items():
            difference = abs(statistics.mean(ours) - statistics.mean(plain))
            # Student's t for two times three seeds, 95 %: 2.8 standard errors.
            errors = [statistics.variance(side) / len(side) if len(side) > 1 else 0.0 for side in (ours, plain)]
            claim = f"{model}, {name}, {key}: points between the means of {options.seeds} seeds"
            said.append(verdict(claim, difference, "<=", 2.8 * sum(errors) ** 0.5, options.seeds >= 3))
    return said


PARTS = {"speed": speeds, "harness": harnesses, "cost": costs, "accuracy": accuracies}


def main() -> None:
    """Measure, and print Markdown tables and the verdicts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="speed,harness,cost", help=f"any of {','.join(PARTS)}")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--models", default="resnet20,resnet18")
    parser.add_argument("--defenses", default="at,trades,adaad,macd")
    parser.add_argument("--steps", type=int, default=4, help="batches of 128 in a measurement")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", default="auto", help="of ours: auto, fp32 or bf16")
    parser.add_argument("--compile", action="store_true", help="compile our networks")
    parser.add_argument("--seeds", type=int, default=3, help="for accuracy, as what follows")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--train-images", type=int, default=2000)
    parser.add_argument("--side", choices=("ours", "plain"), help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.precision = resolve_precision(options.precision, options.device)
    if options.side:
        print(json.dumps(measured(options)))
        return
    began, chosen, verdicts = time.perf_counter(), options.only.split(","), []
    how = f"{options.precision}{', compiled' if options.compile else ''}"
    print(f"{provenance.hardware(options.device)}, {options.threads} threads, ours {how}, torch {torch.__version__}.\n")
    for part, function in PARTS.items():
        options.only = part
        for model in options.models.split(","):
            verdicts += function(options, model) if part in chosen else [f"- {model}, {part}: not measured"]
    print(f"\n{(time.perf_counter() - began) / 60:.0f} minutes\n", *verdicts, sep="\n")


if __name__ == "__main__":
    main()
