"""All eight defenses on CIFAR-10 photographs, trained alike at a small scale and attacked alike.

    python benchmarks/all_defenses.py --data-dir DIR [--out DIR] [--workers N]

DIR holds CIFAR-10 as parquet files or torchvision's archive. Every defense trains resnet20 for 8 epochs on the first
10,000 training images (3 inner steps of eps / 2; RoCL 2), the last 1,000 training images select the best epoch, and the
first 1,000 test images are attacked, white-box, with PGD-20 at Linf 8/255. N trainings run at once, each on one thread.
Exit status 1 where a line below the table does not hold.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

import robobench
from robobench.results import records
from robobench.statistics import WORST, Pair, pairs

FIRST = ("at", "standard", "trades", "rocl")  # the first two are in the store before what needs them begins
THEN = ("adaad", "iad", "mtard", "macd")
ROBUST, DISTILLED = ("at", "trades", "iad", "mtard", "adaad"), ("iad", "mtard", "adaad")
# Short training: loss scales of the `quick` preset (there is no time for KL / K), a ViT of its size, fewer steps.
SETS = [
    "run.train_images=10000",
    *(f"{name}.inner_steps=3" for name in ROBUST),
    *(f"{name}.relative_step=0.5" for name in (*ROBUST, "rocl")),
    *("mtard.lr=2", "mtard.weight_decay=5e-5", "adaad.reduction=batchmean"),
    *("rocl.inner_steps=2", "rocl.batch_size=128", "rocl.lr=10", "rocl.lr_warmup=1", "rocl.head_epochs=20"),
    *("macd.encoder_width=32", "macd.encoder_heads=2", "macd.decoder_width=16", "macd.decoder_heads=1"),
    *("macd.mae_epochs=4", "macd.feature_epochs=1", "macd.mae_batch_size=16", "macd.mae_blr=0.024"),
    *("macd.feature_rate=0.01", "macd.static_steps=10", "macd.batch_size=64"),
]

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--data-dir", type=Path, required=True)
parser.add_argument("--out", type=Path, default=Path("runs/all-defenses"))
parser.add_argument("--workers", type=int, default=2)
parser.add_argument("--seed", type=int, default=0)
chosen = parser.parse_args()


def command(name: str) -> list[str]:
    """The command line of one defense; what it needs of the others is in the store by then."""
    trained = {"run", name} | ({"at"} if name in DISTILLED else set())
    known = [s for s in SETS if s.split(".")[0] in trained]
    flags = ["--dataset", "cifar10", "--model", "resnet20", "--preset", "cifar", "--epochs", "8", "--threads", "1"]
    flags += ["--attacks", "pgd", "--eps", "8/255", "--protocol", "white-box", "--examples", "1000"]
    flags += ["--data-dir", str(chosen.data_dir), "--out", str(chosen.out), "--seed", str(chosen.seed)]
    return [sys.executable, "-m", "robobench", "compare", "--defenses", name, *flags, *(f"--set={s}" for s in known)]


def against(baseline: str) -> dict[str, Pair]:
    """Every network against one, image by image; p is Holm-corrected."""
    return {pair.network: pair for pair in pairs(records(chosen.out), baseline) if pair.column[0] != WORST}


began = time.perf_counter()
with ThreadPoolExecutor(chosen.workers) as pool:

    def start(name: str) -> Future[object]:
        return pool.submit(subprocess.run, command(name), check=True, stdout=subprocess.DEVNULL)

    begun = [start(name) for name in FIRST]
    wait(begun[:2])
    for future in [*begun, *map(start, THEN)]:
        future.result()
minutes = (time.perf_counter() - began) / 60

rows = robobench.leaderboard(chosen.out).set_index("defense")
to_at, to_standard = against("at"), against("standard")
stages = {r["defense"]: r["timing"]["stages"] for r in records(chosen.out)}
print("| defense | clean % | PGD-20 8/255 % | 95 % | McNemar against at | own min | own CPU min | flags |")
print("|---|---|---|---|---|---|---|---|")
for name, row in rows.iterrows():
    interval = f"[{100 * row['ci_low']:.1f}, {100 * row['ci_high']:.1f}]"
    figures = f"{100 * row['clean']:.1f} | {100 * row['worst']:.1f} | {interval}"
    cpu = sum(stage["cpu_seconds"] for stage in stages[name])
    cost = f"{row['own_seconds'] / 60:.1f} | {cpu / 60:.1f}"
    p = f"p = {to_at[name].p:.2g}" if name in to_at else ""
    print(f"| {name} | {figures} | {p} | {cost} | {row['flags'] if isinstance(row['flags'], str) else ''} |")
print(f"\n{minutes:.0f} minutes with {chosen.workers} at once (what was in the store already took none)")
worst = rows["worst"]
lines = {f"{n} at least 12 points above standard": worst[n] - worst["standard"] >= 0.12 for n in ROBUST}
for name in DISTILLED:
    lines[f"{name} not significantly below at"] = to_at[name].difference >= 0 or to_at[name].p >= 0.05
lines["rocl clean at least 20 %"] = rows["clean"]["rocl"] >= 0.20
lines["rocl above standard"] = to_standard["rocl"].difference > 0 and to_standard["rocl"].p < 0.05
for line, holds in lines.items():
    print(f"{'holds' if holds else 'FAILS'}: {line}")
sys.exit(int(not all(lines.values())))
