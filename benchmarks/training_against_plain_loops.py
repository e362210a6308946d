"""Training in robobench against plain loops, as the methods' repositories train: float32, eager, images NCHW.

    python benchmarks/training_against_plain_loops.py [--data-dir DIR] [--models resnet20,resnet18] [--repeats 3]
    python benchmarks/training_against_plain_loops.py --accuracy [--seeds 3]

Every measurement is a process of its own, and the sides alternate: `ours` is `run_train`, `bare` the same objective and
optimizer over batches made beforehand (what the harness costs), `plain` a loop written as the repositories of AT
(locuslab/robust_overfitting), TRADES (yaodongyu/TRADES) and AdaAD (boyellow/AdaAD) have it: their forwards, their
BatchNorm modes, their backward passes; these stay float32 and eager whatever `--precision` and `--compile` give ours.
MACD has no published code; its distillation epoch is shown beside AT's. Ten inner steps, batches of 128. `--accuracy`
trains both sides for some epochs instead and attacks them with PGD-20. DIR holds CIFAR-10 as parquet files or
torchvision's archive; without it the embedded digits serve.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robobench import allocator, evaluation, models, provenance
from robobench import data as datasets
from robobench.api import Frozen, Produce, Produced, Setup, Train
from robobench.augment import augment
from robobench.plugins import load_attack, load_defense
from robobench.randomness import Noise, permutation
from robobench.threat import ThreatModel
from robobench.timing import Stopwatch
from robobench.training import Engine, build_objective, one_step, run_train

EPS, STEP, INNER = 8 / 255, 2 / 255, 10
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
    """Attack in train mode through a full backward, as locuslab; the parameters' gradients are thrown away."""

    def gradient(adv: Tensor) -> Tensor:
        F.cross_entropy(model(adv), labels).backward()
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


PLAIN = {"at": plain_at, "trades": plain_trades, "adaad": plain_adaad}


def stage_of(
    name: str, model: nn.Module, teacher: nn.Module, shape: tuple[int, int, int], count: int, epochs: int
) -> Train:
    """Build a defense's main stage; what it requires of other networks is the teacher."""
    cls = load_defense(name)
    config = cls.Config(epochs=epochs, batch_size=128, **({"schedule": "one-cycle"} if epochs > 1 else {}))
    setup = Setup(
        model=model,
        threat=ThreatModel("Linf", EPS),
        config=config,
        num_classes=10,
        image_shape=shape,
        train_size=count,
        required={role: Frozen(teacher) for role in cls.requires},
    )
    for stage in cls(config).stages(setup):
        if isinstance(stage, Produce):
            setup.produced[stage.name] = Produced(np.zeros((count, *shape), np.uint8), next(model.parameters()).device)
        elif stage.name in ("train", "distill"):
            return stage
    raise SystemExit(f"{name} has no stage 'train' or 'distill'")


def measured(options: argparse.Namespace) -> dict[str, float]:
    """Run one side once, in this process; return images a second and the peak in MiB, or accuracies."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    name, side = options.defenses, options.side
    device = options.device
    dataset = datasets.load("cifar10" if options.data_dir else "digits", data_dir=options.data_dir, device=device)
    assert dataset.train is not None
    train = dataset.train.first(options.train_images if options.accuracy else options.steps * 128)
    shape = tuple(train.images(torch.arange(1)).shape[1:])
    spec = models.ModelSpec(options.models, 10, 0, "cifar" if options.models == "resnet18" else "native")
    model = models.build(replace(spec, seed=options.seed)).to(device)
    teacher = models.build(replace(spec, seed=100)).to(device).eval()
    epochs = options.epochs if options.accuracy else 1
    engine = Engine(device, options.precision, options.seed, compiled=options.compile)
    watch = Stopwatch(device)
    stage = stage_of(name, model, teacher, shape, len(train), epochs)  # type: ignore[arg-type]
    if side == "plain":
        model, teacher = (m.to(memory_format=torch.contiguous_format) for m in (model, teacher))
        optimizer = torch.optim.SGD(
            model.parameters(), 0.1, 0.9, weight_decay=stage.optimizer(model).defaults["weight_decay"]
        )

        def step(index: Tensor, epoch: int) -> None:
            images = augment(train.images(index), Noise.of(index.to(device), epoch), stage.augment).contiguous()
            loss = PLAIN[name](model, teacher, images, train.labels[index].to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    else:
        allocator.keep_freed_memory()
        objective = build_objective(stage, device).train()
        if side == "bare":
            engine.compile(objective)
        optimizer = stage.optimizer(objective)
    if side == "ours":
        run_train(engine, stage, train, watch)
    else:
        rates = [group["lr"] for group in optimizer.param_groups]
        parts = [torch.split(permutation(len(train), epoch), 128) for epoch in range(epochs)]
        if side == "bare":
            batches = [engine.batch(train, index, stage.name, 0) for index in parts[0]]
            one_step(engine, objective, optimizer, batches[0])
        elif not options.accuracy:
            step(parts[0][0], 0)
        model.train()
        with watch.account("loop"):
            for epoch in range(epochs):
                for number, index in enumerate(parts[epoch]):
                    for group, rate in zip(optimizer.param_groups, rates, strict=True):
                        group["lr"] = rate * stage.schedule(epoch + number / len(parts[epoch]))
                    if side == "bare":
                        one_step(engine, objective, optimizer, batches[number])
                    else:
                        step(index, epoch)
    account = next(a for key, a in watch.accounts.items() if key != "warm-up")
    found = {"images": epochs * len(train) / account.seconds, "peak": account.peak_memory_bytes / 2**20}
    if options.accuracy:
        attack = load_attack("pgd")
        index = torch.arange(min(1000, len(dataset.test)))
        model.eval()
        clean = evaluation.clean_bits(model, dataset.test, index, device)
        pgd = attack(attack.Config(steps=20), ThreatModel("Linf", EPS))
        robust = evaluation.white_box_bits(model, pgd, dataset.test, index, clean, device)
        found |= {"clean": clean.float().mean().item(), "robust": robust.float().mean().item()}
    return found


def child(options: argparse.Namespace, **values: object) -> dict[str, float]:
    """Measure one side in a process of its own."""
    merged = {**vars(options), **values}
    switches = ("accuracy", "compile")
    flags = [f"--{k.replace('_', '-')}={v}" for k, v in merged.items() if k not in switches and v is not None]
    flags += [f"--{name}" for name in switches if merged[name]]
    done = subprocess.run([sys.executable, __file__, *flags], check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def spread(values: list[float], form: str = ".0f") -> str:
    """Write a median with the lowest and the highest."""
    return f"{statistics.median(values):{form}} ({min(values):{form}}-{max(values):{form}})"


def speeds(options: argparse.Namespace) -> None:
    """Print images a second of every side, the ratios and the memory."""
    print(
        "| network | defense | ours images/s | plain images/s | times faster | harness costs | peak MiB, ours / plain |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for model in options.models.split(","):
        ours: dict[str, list[float]] = {}
        for name in options.defenses.split(","):
            sides = ("ours", "bare", "plain") if name in PLAIN else ("ours", "bare")
            found: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
            for _ in range(options.repeats):
                for side in sides:
                    found[side].append(child(options, models=model, defenses=name, side=side))
            speed = {side: [f["images"] for f in each] for side, each in found.items()}
            ours[name] = speed["ours"]
            harness = [100 * (b / o - 1) for o, b in zip(speed["ours"], speed["bare"], strict=True)]
            ratio = [o / p for o, p in zip(speed["ours"], speed.get("plain", []), strict=False)]
            peaks = " / ".join(f"{statistics.median(f['peak'] for f in found[s]):.0f}" for s in sides if s != "bare")
            print(
                f"| {model} | {name} | {spread(speed['ours'])} | {spread(speed['plain']) if ratio else '-'} "
                f"| {spread(ratio, '.2f') if ratio else '-'} | {spread(harness, '.1f')} % | {peaks} |",
                flush=True,
            )
        if {"at", "macd"} <= ours.keys():
            ratios = [m / a for m, a in zip(ours["macd"], ours["at"], strict=True)]
            print(
                f"\n{model}: an epoch of MACD's distillation is {spread(ratios, '.1f')} times faster than one of AT.\n"
            )


def accuracies(options: argparse.Namespace) -> None:
    """Print what both sides' networks reach, seed by seed."""
    print("| network | defense | side | clean % | PGD-20 % |\n| --- | --- | --- | --- | --- |")
    for model in options.models.split(","):
        for name in (n for n in options.defenses.split(",") if n in PLAIN):
            for side in ("ours", "plain"):
                seeds = [child(options, models=model, defenses=name, side=side, seed=s) for s in range(options.seeds)]
                clean, robust = (", ".join(f"{100 * f[key]:.1f}" for f in seeds) for key in ("clean", "robust"))
                print(f"| {model} | {name} | {side} | {clean} | {robust} |", flush=True)


def main() -> None:
    """Measure, and print Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--models", default="resnet20,resnet18")
    parser.add_argument("--defenses", default="at,trades,adaad,macd")
    parser.add_argument("--steps", type=int, default=4, help="batches of 128 in a measurement")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", default="auto", help="of ours: auto, fp32 or bf16")
    parser.add_argument("--compile", action="store_true", help="compile our networks")
    parser.add_argument("--accuracy", action="store_true", help="train and attack instead of timing")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--train-images", type=int, default=2000)
    parser.add_argument("--side", choices=("ours", "bare", "plain"), help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.precision = provenance.resolve_precision(options.precision, options.device)
    if options.side:
        print(json.dumps(measured(options)))
        return
    began = time.perf_counter()
    how = f"{options.precision}{', compiled' if options.compile else ''}"
    print(f"{provenance.hardware(options.device)}, {options.threads} threads, ours {how}, torch {torch.__version__}.\n")
    accuracies(options) if options.accuracy else speeds(options)
    print(f"\n{(time.perf_counter() - began) / 60:.0f} minutes")


if __name__ == "__main__":
    main()
