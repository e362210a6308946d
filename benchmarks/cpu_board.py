"""The CPU board: nine defenses on CIFAR-10 photographs, trained alike at a small scale and attacked alike.

    python benchmarks/cpu_board.py --data-dir DIR [--out STORE] [--minutes 150]

DIR holds CIFAR-10 as parquet files or torchvision's archive. Every defense trains resnet20 for 8 epochs on the first
10,000 training images (3 inner steps of eps / 2; RoCL 2), four of them with three seeds. PGD-40, FGSM and Jitter at
Linf 8/255 and 16/255 attack the first 1,000 test images, they and AutoAttack at Linf 8/255 the first 200, as does
AutoAttack at L2 0.5 (seed 0), white-box and under transfer, beside an undefended control. N workers, a thread each;
some nine hours of one core. The eight defenses of the MACD paper's comparison and their PGD-40 come first, in 90
minutes of two cores.

When time is up it saves and exits with status 75: the same command goes on. When all is done it writes the board and
says which expectations hold; status 1 where one does not, or a job failed. --small tries it on the digits in minutes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pieces import STOPPED, Job, work

SOURCE = "standard"  # undefended; transfer examples are made on seed 0, seed 1 is the control
NEEDS = {"iad": ("at",), "mtard": ("at", SOURCE), "adaad": ("at",), "macd": (SOURCE,)}
# In an order that keeps two workers busy to the end.
DEFENSES = (SOURCE, "at", "rocl", "iad", "mtard", "adaad", "trades", "macd", "fast-at")
SEEDED = (SOURCE, "at", "trades", "macd")  # with three seeds
ROBUST, DISTILLED = ("at", "trades", "iad", "mtard", "adaad"), ("iad", "mtard", "adaad")
# Short training: loss scales of the `quick` preset (there is no time for KL / K), a ViT of its size, fewer steps.
SETS = [
    *("run.train_images=10000", "run.held_out=0"),  # only the last epoch is kept: no time to look at each
    *(f"{name}.inner_steps=3" for name in ROBUST),
    *(f"{name}.relative_step=0.5" for name in (*ROBUST, "rocl")),
    *("mtard.lr=2", "mtard.weight_decay=5e-5", "adaad.reduction=batchmean"),
    *("rocl.inner_steps=2", "rocl.batch_size=128", "rocl.lr=10", "rocl.lr_warmup=1/8", "rocl.head_epochs=10"),
    *("macd.encoder_width=32", "macd.encoder_heads=2", "macd.decoder_width=16", "macd.decoder_heads=1"),
    *("macd.mae_epochs=4", "macd.feature_epochs=1", "macd.mae_batch_size=16", "macd.mae_blr=0.024"),
    *("macd.feature_rate=0.01", "macd.static_steps=10", "macd.batch_size=64"),
]
LESS = ["run.train_images=200", "rocl.head_epochs=2", "rocl.lr_warmup=0", "macd.mae_epochs=1", "macd.static_steps=2"]
PGD_STEPS = 40
INTRO = """
Measured by `python benchmarks/cpu_board.py --data-dir DIR`, where DIR holds CIFAR-10 as parquet files. Here its images
were stored as JPEG, which changes pixels: figures of other copies of CIFAR-10, and published ones, are not comparable.
A copy with another digest is refused by `robobench verify`.

Against the published settings this board is small: 10,000 training images, 8 epochs under a one-cycle rate, inner
maximizations of 3 steps of eps / 2, a network of 0.27 million weights, 1,000 test images (200 for AutoAttack). It
compares methods at one small cost; it says little of what they reach at their own.
"""


@dataclass(frozen=True)
class Scale:
    """How large the board is."""

    dataset: str = "cifar10"
    model: str = "resnet20"
    epochs: int = 8
    examples: int = 1000
    strong: int = 200  # images for AutoAttack
    seeds: tuple[int, ...] = (0, 1, 2)
    sets: tuple[str, ...] = tuple(SETS)


SMALL = Scale("digits", "cnn", 2, 32, 8, (0, 1, 2), (*SETS, *LESS))


def plan(scale: Scale, out: Path, data_dir: Path | None) -> list[Job]:
    """Every job in the order of its worth, so that a board cut short lacks the least."""

    def job(name: str, defenses: tuple[str, ...], seeds: tuple[int, ...], *flags: str, after: tuple[str, ...]) -> Job:
        trained = {"run", *defenses, *(need for d in defenses for need in NEEDS.get(d, ()))}
        values = {text.split("=")[0]: text for text in scale.sets if text.split(".")[0] in trained}
        words = ["-m", "robobench", "compare", "-q", "--defenses", ",".join(defenses), "--dataset", scale.dataset]
        words += ["--model", scale.model, "--preset", "cifar", "--epochs", str(scale.epochs), "--threads", "1"]
        words += ["--device", "cpu", "--precision", "fp32", "--compile", "on"]
        words += ["--seeds", ",".join(map(str, seeds)), "--out", str(out)]
        words += ["--data-dir", str(data_dir)] if data_dir else []
        return Job(name, (*words, *flags, *(f"--set={text}" for text in values.values())), after)

    def cheap(protocol: str) -> tuple[str, ...]:
        attacks = ("--attacks", "pgd,fgsm,jitter", "--eps", "8/255,16/255", "--examples", str(scale.examples))
        return (*attacks, "--protocol", protocol, f"--set=pgd.steps={PGD_STEPS}")

    def strong(attack: str, protocol: str) -> tuple[str, ...]:
        l2 = attack.endswith("l2")  # in Linf the cheap ones see the same images: a worst case over all four
        attacks = (
            ("--attacks", attack) if l2 else ("--attacks", f"pgd,fgsm,jitter,{attack}", f"--set=pgd.steps={PGD_STEPS}")
        )
        eps = "L2:0.5" if l2 else "8/255"
        return (
            *attacks,
            "--eps",
            eps,
            "--examples",
            str(scale.strong),
            "--protocol",
            protocol,
            "--set=run.eval_batch_size=100",
        )

    def trainings(defenses: tuple[str, ...], seed: int) -> list[Job]:
        first = ("--attacks", "pgd", "--eps", "8/255", "--examples", str(scale.examples), "--protocol", "white-box")
        return [
            job(f"{d}-{seed}", (d,), (seed,), *first, f"--set=pgd.steps={PGD_STEPS}",
                after=tuple(f"{n}-{seed}" for n in NEEDS.get(d, ())))
            for d in defenses
        ]  # fmt: skip

    def attacked(defenses: tuple[str, ...], seed: int) -> list[Job]:
        # The source under both protocols: with it goes the control, which is its seed 1.
        return [
            job(f"cheap-{d}-{seed}", (d,), (seed,), *cheap("both" if (d, seed) == (SOURCE, 0) else "white-box"),
                after=(f"{d}-{seed}",))
            for d in defenses
        ]  # fmt: skip

    def names(jobs: list[Job]) -> tuple[str, ...]:
        return tuple(j.name for j in jobs)

    jobs = [*trainings(DEFENSES, 0), *attacked(DEFENSES, 0)]
    jobs += [job("transfer-0", DEFENSES, (0,), *cheap("transfer"), after=names(jobs))]
    rest = [j for seed in scale.seeds[1:] for part in (trainings, attacked) for j in part(SEEDED, seed)]
    for attack in ("autoattack", "autoattack-l2"):
        if attack.endswith("l2"):
            jobs += [
                *rest,
                job("transfer-seeds", SEEDED, scale.seeds[1:], *cheap("transfer"), after=names([*jobs, *rest])),
            ]
        hard = [
            job(f"{attack}-{d}", (d,), (0,), *strong(attack, "both" if d == SOURCE else "white-box"), after=(f"{d}-0",))
            for d in DEFENSES
        ]
        jobs += [*hard, job(f"{attack}-transfer", DEFENSES, (0,), *strong(attack, "transfer"), after=names(hard))]
    return jobs


def belongs(record: dict[str, Any]) -> bool:
    """Whether a cell of the store is the board's; PGD with other steps may lie beside."""
    return record["attack"] != "pgd" or record["steps"] == PGD_STEPS


def expectations(out: Path, scale: Scale) -> dict[str, bool]:
    """What a sound tool finds on photographs, from the worst case of the cheap attacks at 8/255; a hole holds not."""
    from robobench.results.rows import read_records
    from robobench.results.statistics import (
        WORST_CASE,
        PairedDifference,
        PerImageOutcomes,
        outcomes,
        paired_differences,
    )

    found = [r for r in read_records(out) if belongs(r) and r["examples"] == scale.examples and r["seed"] == 0]
    column = (WORST_CASE, "Linf", 8 / 255)
    worst = {d: outcomes([r for r in found if r["defense"] == d]).get(column) for d in DEFENSES}
    clean = {r["defense"]: PerImageOutcomes.parse(r["clean_bits"]).accuracy for r in found if r["status"] == "ok"}
    compared = {
        (pair.baseline, pair.network): pair
        for baseline in ("at", SOURCE)
        for pair in paired_differences(found, baseline)
        if pair.column == column
    }

    def above(name: str, points: float) -> bool:
        one, other = worst[name], worst[SOURCE]
        return one is not None and other is not None and one.accuracy - other.accuracy >= points

    def holds(baseline: str, name: str, line: Callable[[PairedDifference], bool]) -> bool:
        return (baseline, name) in compared and line(compared[baseline, name])

    lines = {"at at least 18 points above standard": above("at", 0.18)}
    lines |= {f"{n} at least 12 points above standard": above(n, 0.12) for n in ROBUST}
    lines |= {
        f"{n} not significantly below at": holds("at", n, lambda p: p.difference >= 0 or p.p >= 0.05) for n in DISTILLED
    }
    lines["rocl clean at least 20 %"] = clean.get("rocl", 0.0) >= 0.20
    lines["rocl above standard"] = holds(SOURCE, "rocl", lambda p: p.difference > 0 and p.p < 0.05)
    return lines


def main() -> int:
    """Do what is left, then write the board."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/cpu-board"), help="the store")
    parser.add_argument("--board", type=Path, help="folder of the board; default leaderboards/cifar10-jpeg-resnet20")
    parser.add_argument("--minutes", type=float, help="stop then; the same command goes on")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--small", action="store_true", help="digits, a small network, two epochs: to try this script")
    parser.add_argument("--write", action="store_true", help="run nothing; write the board of what is there")
    parser.add_argument("--list", action="store_true", help="print the jobs and run nothing")
    chosen = parser.parse_args()
    scale = SMALL if chosen.small else Scale()
    if not (chosen.data_dir or chosen.small or chosen.write or chosen.list):
        parser.error("--data-dir is needed: a folder with CIFAR-10")
    jobs = plan(scale, chosen.out, chosen.data_dir)
    if chosen.list:
        for job in jobs:
            print(f"{job.name}: {' '.join(job.words)}")
        return 0
    failed = left = 0
    if not chosen.write:
        failed, left = work(jobs, chosen.out / "jobs", workers=chosen.workers, minutes=chosen.minutes)
    if left:
        print(f"{left} of {len(jobs)} jobs are left; the same command goes on: {' '.join(sys.argv)}")
        return STOPPED
    from robobench.report.board_folder import publish

    board = chosen.board or (chosen.out / "board" if chosen.small else Path("leaderboards/cifar10-jpeg-resnet20"))
    for line in publish(chosen.out, board, keep=belongs, intro=INTRO):
        print(f"left out: {line}")
    print(f"board: {board}")
    lines = {} if chosen.write or chosen.small else expectations(chosen.out, scale)
    for line, holds in lines.items():
        print(f"{'holds' if holds else 'FAILS'}: {line}")
    return int(failed > 0 or not all(lines.values()))


if __name__ == "__main__":
    sys.exit(main())
