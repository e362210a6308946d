"""Check that adversarial training works: `at` against `standard` on CIFAR-10 images.

    python benchmarks/at_against_standard.py --data-dir DIR [--out DIR] [--threads N]

DIR holds CIFAR-10 as parquet files or torchvision's archive. Trains `standard` and `at` (7 inner steps) with resnet20
on the first 5,000 training images and attacks the first 1,000 test images, white-box, with PGD-20 at Linf 8/255. Exit
status 1 unless AT is at least 20 points above standard.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import robobench


def main() -> int:
    """Train and attack both, and print their accuracies."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/at-against-standard"))
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    rows = robobench.compare(
        ["standard", "at"],
        dataset="cifar10",
        model="resnet20",
        preset="cifar",
        data_dir=options.data_dir,
        out=options.out,
        epochs=options.epochs,
        threads=options.threads,
        examples=1000,
        attacks="pgd",
        eps="8/255",
        protocol="white-box",
        sets=("run.train_images=5000", "at.inner_steps=7"),
        verbosity=0,
    )
    columns = ["defense", "clean_accuracy", "robust_accuracy", "ci_low", "ci_high", "train_seconds", "hardware"]
    print(rows[columns].to_string(index=False))
    robust = rows.set_index("defense")["robust_accuracy"]
    difference = float(robust["at"] - robust["standard"])
    print(f"AT minus standard under PGD-20 at 8/255: {100 * difference:.1f} points")
    return int(difference < 0.20)


if __name__ == "__main__":
    sys.exit(main())
