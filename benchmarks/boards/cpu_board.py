"""The CPU board: nine defenses on CIFAR-10 images, trained alike at a small scale and attacked alike.

    python benchmarks/boards/cpu_board.py --data-dir DIR [--out STORE] [--minutes 150]

DIR holds CIFAR-10 as parquet files or torchvision's archive. Every defense trains resnet20 for 8 epochs on the first
10,000 training images (3 inner steps of eps / 2; RoCL 2), four of them with three seeds. All are attacked white-box and
under transfer, with an undefended baseline: the first 1,000 test images with PGD-40, FGSM and Jitter at Linf 8/255 and
16/255, the first 200 with these and AutoAttack at Linf 8/255, and with AutoAttack at L2 0.5 (seed 0). Each worker uses
one thread; the total is some nine hours of one core. The eight defenses of the MACD paper's comparison and their PGD-40
come first, in 90 minutes of two cores.

After --minutes it saves and exits with status 75; the same command resumes. At the end it writes the board and prints
which expectations are met. Exit status 1 if one is not, or if a job failed. --small runs it on the digits in minutes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.append(str(Path(__file__).parents[1]))
from jobs import STOPPED, Job, run_jobs

if TYPE_CHECKING:
    from robobench.results.records import EvaluationRecord
    from robobench.results.statistics import PairedDifference

SOURCE = "standard"  # undefended; transfer examples are made on seed 0, seed 1 is the baseline
REQUIRES = {"iad": ("at",), "mtard": ("at", SOURCE), "adaad": ("at",), "macd": (SOURCE,)}
# In an order that keeps two workers busy until the end.
DEFENSES = (SOURCE, "at", "rocl", "iad", "mtard", "adaad", "trades", "macd", "fast-at")
SEVERAL_SEEDS = (SOURCE, "at", "trades", "macd")
ROBUST, DISTILLED = ("at", "trades", "iad", "mtard", "adaad"), ("iad", "mtard", "adaad")
# For a short training: loss scales of the `quick` preset (KL / K trains too slowly), a ViT of its size, fewer steps.
SETS = [
    *("run.train_images=10000", "run.held_out=0"),  # the last epoch is evaluated; selecting one would take time
    *(f"{name}.inner_steps=3" for name in ROBUST),
    *(f"{name}.relative_step=0.5" for name in (*ROBUST, "rocl")),
    *("mtard.lr=2", "mtard.weight_decay=5e-5", "adaad.reduction=batchmean"),
    *("rocl.inner_steps=2", "rocl.batch_size=128", "rocl.lr=10", "rocl.lr_warmup=1/8"),
    *("macd.encoder_width=32", "macd.encoder_heads=2", "macd.decoder_width=16", "macd.decoder_heads=1"),
    *("macd.mae_epochs=4", "macd.feature_epochs=1", "macd.mae_batch_size=16", "macd.mae_blr=0.024"),
    *("macd.feature_rate=0.01", "macd.static_steps=10", "macd.batch_size=64"),
]
SMALL_SETS = [
    "run.train_images=200",
    "rocl.head_epochs=2",
    "rocl.lr_warmup=0",
    "macd.mae_epochs=1",
    "macd.static_steps=2",
]
PGD_STEPS = 40
INTRO = """
Measured by `python benchmarks/boards/cpu_board.py --data-dir DIR`. DIR holds CIFAR-10 as parquet files, with images
stored as JPEG. JPEG changes pixels, so other copies of CIFAR-10 and published results are not comparable.
`robobench reproduce` refuses a copy with another digest.

This board is smaller than published settings: 10,000 training images, 8 epochs with a one-cycle schedule, 3 inner steps
of eps / 2, a model of 0.27 million parameters, 1,000 test images (200 for AutoAttack). It compares methods at one small
training budget, not at the budgets of their papers.
"""


@dataclass(frozen=True)
class Scale:
    """Size of the board."""

    dataset: str = "cifar10"
    model: str = "resnet20"
    epochs: int = 8
    examples: int = 1000
    strong_examples: int = 200  # images for AutoAttack
    seeds: tuple[int, ...] = (0, 1, 2)
    sets: tuple[str, ...] = tuple(SETS)


SMALL = Scale("digits", "cnn", 2, 32, 8, (0, 1, 2), (*SETS, *SMALL_SETS))


def plan(scale: Scale, out: Path, data_dir: Path | None) -> list[Job]:
    """Return all jobs, the most important first, so that a board that is stopped early lacks the least."""

    def job(name: str, defenses: tuple[str, ...], seeds: tuple[int, ...], *flags: str, after: tuple[str, ...]) -> Job:
        trained = {"run", *defenses, *(need for d in defenses for need in REQUIRES.get(d, ()))}
        values = {text.split("=")[0]: text for text in scale.sets if text.split(".")[0] in trained}
        words = ["-m", "robobench", "compare", "-q", "--defenses", ",".join(defenses), "--dataset", scale.dataset]
        words += ["--model", scale.model, "--preset", "cifar", "--epochs", str(scale.epochs), "--threads", "1"]
        words += ["--device", "cpu", "--precision", "fp32", "--compile", "on"]
        words += ["--seeds", ",".join(map(str, seeds)), "--out", str(out)]
        words += ["--data-dir", str(data_dir)] if data_dir else []
        return Job(name, (*words, *flags, *(f"--set={text}" for text in values.values())), after)

    def cheap(protocol: str) -> tuple[str, ...]:
        flags = ("--attacks", "pgd,fgsm,jitter", "--eps", "8/255,16/255", "--examples", str(scale.examples))
        return (*flags, "--protocol", protocol, f"--set=pgd.steps={PGD_STEPS}")

    def strong(attack: str, protocol: str) -> tuple[str, ...]:
        flags = ("--examples", str(scale.strong_examples), "--protocol", protocol, "--set=run.eval_batch_size=100")
        if attack.endswith("l2"):
            return ("--attacks", attack, "--eps", "L2:0.5", *flags)
        # With the cheap attacks on the same images, for a worst case over all four.
        linf = ("--attacks", f"pgd,fgsm,jitter,{attack}", f"--set=pgd.steps={PGD_STEPS}")
        return (*linf, "--eps", "8/255", *flags)

    def trainings(defenses: tuple[str, ...], seed: int) -> list[Job]:
        first = ("--attacks", "pgd", "--eps", "8/255", "--examples", str(scale.examples), "--protocol", "white-box")
        return [
            job(f"{d}-{seed}", (d,), (seed,), *first, f"--set=pgd.steps={PGD_STEPS}",
                after=tuple(f"{n}-{seed}" for n in REQUIRES.get(d, ())))
            for d in defenses
        ]  # fmt: skip

    def attacks(defenses: tuple[str, ...], seed: int) -> list[Job]:
        # The source under both protocols, which adds the undefended baseline of seed 1.
        return [
            job(f"cheap-{d}-{seed}", (d,), (seed,), *cheap("both" if (d, seed) == (SOURCE, 0) else "white-box"),
                after=(f"{d}-{seed}",))
            for d in defenses
        ]  # fmt: skip

    def names(jobs: list[Job]) -> tuple[str, ...]:
        return tuple(j.name for j in jobs)

    jobs = [*trainings(DEFENSES, 0), *attacks(DEFENSES, 0)]
    jobs += [job("transfer-0", DEFENSES, (0,), *cheap("transfer"), after=names(jobs))]
    rest = [j for seed in scale.seeds[1:] for part in (trainings, attacks) for j in part(SEVERAL_SEEDS, seed)]
    for attack in ("autoattack", "autoattack-l2"):
        if attack.endswith("l2"):
            jobs += [
                *rest,
                job("transfer-seeds", SEVERAL_SEEDS, scale.seeds[1:], *cheap("transfer"), after=names([*jobs, *rest])),
            ]
        hard = [
            job(f"{attack}-{d}", (d,), (0,), *strong(attack, "both" if d == SOURCE else "white-box"), after=(f"{d}-0",))
            for d in DEFENSES
        ]
        jobs += [*hard, job(f"{attack}-transfer", DEFENSES, (0,), *strong(attack, "transfer"), after=names(hard))]
    return jobs


def belongs_to_board(record: EvaluationRecord) -> bool:
    """Return whether a record belongs to the board; the store may also hold PGD with other steps."""
    return record["attack"] != "pgd" or record["steps"] == PGD_STEPS


def expectations(out: Path, scale: Scale) -> dict[str, bool]:
    """Return which expected results are met, by the worst case of the cheap attacks at 8/255. A missing one is not."""
    from robobench.results.rows import read_records
    from robobench.results.statistics import WORST_CASE, clean_outcomes_of, column_outcomes, paired_differences

    found = [r for r in read_records(out) if belongs_to_board(r) and r["examples"] == scale.examples and r["seed"] == 0]
    column = (WORST_CASE, "Linf", 8 / 255)
    worst = {d: column_outcomes([r for r in found if r["defense"] == d]).get(column) for d in DEFENSES}
    clean = {r["defense"]: clean_outcomes_of(r).accuracy for r in found if r["status"] == "ok"}
    compared = {
        (pair.baseline, pair.model): pair
        for baseline in ("at", SOURCE)
        for pair in paired_differences(found, baseline)
        if pair.column == column
    }

    def above(name: str, points: float) -> bool:
        one, other = worst[name], worst[SOURCE]
        return one is not None and other is not None and bool(one.accuracy - other.accuracy >= points)

    def is_met(baseline: str, name: str, condition: Callable[[PairedDifference], bool]) -> bool:
        return (baseline, name) in compared and condition(compared[baseline, name])

    lines = {"at at least 18 points above standard": above("at", 0.18)}
    lines |= {f"{n} at least 12 points above standard": above(n, 0.12) for n in ROBUST}
    lines |= {
        f"{n} not significantly below at": is_met("at", n, lambda p: p.difference >= 0 or p.p >= 0.05)
        for n in DISTILLED
    }
    lines["rocl clean at least 20 %"] = clean.get("rocl", 0.0) >= 0.20
    lines["rocl above standard"] = is_met(SOURCE, "rocl", lambda p: p.difference > 0 and p.p < 0.05)
    return lines


def main() -> int:
    """Run the jobs that are left, then write the board."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/cpu-board"), help="the store")
    parser.add_argument("--board", type=Path, help="folder of the board; default leaderboards/cifar10-jpeg-resnet20")
    parser.add_argument("--minutes", type=float, help="stop after this time; the same command resumes")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--small", action="store_true", help="digits, a small model, two epochs: to try this script")
    parser.add_argument("--write", action="store_true", help="run nothing; write the board from the store")
    parser.add_argument("--list", action="store_true", help="print the jobs and run nothing")
    options = parser.parse_args()
    scale = SMALL if options.small else Scale()
    if not (options.data_dir or options.small or options.write or options.list):
        parser.error("--data-dir is needed: a folder with CIFAR-10")
    jobs = plan(scale, options.out, options.data_dir)
    if options.list:
        for job in jobs:
            print(f"{job.name}: {' '.join(job.words)}")
        return 0
    failed = left = 0
    if not options.write:
        failed, left = run_jobs(jobs, options.out / "jobs", workers=options.workers, minutes=options.minutes)
    if left:
        print(f"{left} of {len(jobs)} jobs are left; resume with: {' '.join(sys.argv)}")
        return STOPPED
    from robobench.report.board_folder import write_snapshot

    board = options.board or (options.out / "board" if options.small else Path("leaderboards/cifar10-jpeg-resnet20"))
    for line in write_snapshot(options.out, board, keep=belongs_to_board, intro=INTRO):
        print(f"not copied: {line}")
    print(f"board: {board}")
    lines = {} if options.write or options.small else expectations(options.out, scale)
    for line, met in lines.items():
        print(f"{'met' if met else 'NOT MET'}: {line}")
    return int(failed > 0 or not all(lines.values()))


if __name__ == "__main__":
    sys.exit(main())
