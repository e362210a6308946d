"""Compare plain `at` with EMA and label smoothing, and with AWP, over seeds: last-epoch clean and PGD-20 accuracy.

    python benchmarks/training_services.py OUT --data-dir DIR                      # resnet20, 5,000 images, 30 epochs
    python benchmarks/training_services.py OUT --data-dir DIR --images 1000 --epochs 6 --steps 2 --pixels 16

Every training and evaluation is stored in OUT; a run that was stopped continues. The three variants have the same
epochs, images and inner steps, and values of their sources (label smoothing 0.4 and decay 0.9995 of FastAT's benchmark
would average over far more steps than a short run has; here 0.1 and 0.99 per 128 images).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import pandas as pd

VARIANTS = {
    "plain": (),
    "ema-smoothing": ("at.average=ema", "at.average_decay=0.99", "at.label_smoothing=0.1", "run.selection=all"),
    "awp": ("at.awp_gamma=0.005",),
}


def run_variant(name: str, args: argparse.Namespace) -> pd.DataFrame:
    """Train and attack a variant, or reuse what is stored; return its rows."""
    sets = (
        *(f"run.train_images={args.images}", "run.held_out=0", f"at.inner_steps={args.steps}"),
        *(f"at.relative_step={max(0.25, 1 / args.steps)}", "pgd.steps=20", "pgd.restarts=1"),
        *(f"run.image_size={args.pixels}", f"run.attack_resolution={args.pixels}", *VARIANTS[name]),
    )
    command = [
        sys.executable,
        "-m",
        "robobench",
        "run",
        "--defense",
        "at",
        "--dataset",
        "cifar10",
        "--model",
        "resnet20",
    ]
    command += [
        "--preset",
        "fast",
        "--epochs",
        str(args.epochs),
        "--batch-size",
        str(args.batch),
        "--seeds",
        args.seeds,
    ]
    command += [
        "--threads",
        "1",
        "--precision",
        "fp32",
        "--attacks",
        "pgd",
        "--eps",
        "8/255",
        "--protocol",
        "white-box",
    ]
    command += ["--examples", str(args.examples), "--out", str(args.out / name), "--data-dir", str(args.data_dir), "-q"]
    subprocess.run([*command, *(part for text in sets for part in ("--set", text))], check=True, stdout=sys.stderr)
    return pd.read_csv(args.out / name / "rows.csv").assign(variant=name)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data-dir", type=Path, required=True)
    for flag, value in (("images", 5000), ("epochs", 30), ("steps", 10), ("pixels", 32), ("batch", 128)):
        parser.add_argument(f"--{flag}", type=int, default=value)
    parser.add_argument("--examples", type=int, default=1000)
    parser.add_argument("--seeds", default="0,1,2")
    args = parser.parse_args()
    rows = pd.concat([run_variant(name, args) for name in VARIANTS])
    rows = rows[rows["status"] == "ok"]
    by = rows.groupby(["variant", "selection"], sort=False)
    table = 100 * by[["clean_accuracy", "robust_accuracy"]].agg(["mean", "std", "count"])
    for name in ("clean_accuracy", "robust_accuracy"):
        table[name, "count"] /= 100
    print(table.round(1).to_string())
    return 0


if __name__ == "__main__":
    sys.exit(main())
