"""Two processes against one on the embedded digits: final accuracies in float32 with BatchNorm, and the time.

    python benchmarks/devices.py [--out DIR] [--seeds 3] [--defenses standard,at] [--set NAME.FIELD=VALUE]

Trains each defense with one process and with two (gloo, one thread each, the same batches) for every seed, and attacks
with PGD-20. With BatchNorm the two are different trainings: each process normalizes its half of a batch. Then checks
the cost model of docs/howto/devices.md on `at`: a step of N processes takes as long as a step of one on B / N images
plus the exchange of the gradients, which is timed separately. Exit status 1 if a defense's mean accuracies differ by
more than the spread over seeds can explain (two-sided t-test, 1 %), or if an evaluation in two processes has another
outcome on any image than in one.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from scipy.stats import ttest_ind
from torch.multiprocessing.spawn import spawn

import robobench
from robobench.training.sampling import batch_sizes


def compare(options: argparse.Namespace, devices: int, out: Path) -> pd.DataFrame:
    """Train and attack with a number of processes; return the rows."""
    return robobench.compare(
        options.defenses.split(","),
        seeds=range(options.seeds),
        devices=devices,
        threads=1,
        out=out,
        attacks="pgd",
        eps=("0.05", "0.1"),
        protocol="white-box",
        examples=options.examples,
        sets=("run.eval_batch_size=36", "pgd.steps=20", *options.set),
        device="cpu",
        precision="fp32",
        verbosity=0,
    )


def outcomes(store: Path) -> dict[str, str]:
    """Return the clean and robust outcomes of every cell of a store, by key."""
    records = (json.loads(path.read_text()) for path in store.glob("artifacts/evaluations/*/record.json"))
    return {r["key"]: r["clean_bits"] + r["robust_bits"] for r in records}


def time_per_image(out: Path) -> str:
    """Return the time of a store's trainings per image: wall time, and CPU time of all processes."""
    stages = [s for path in out.glob("*/timing.json") for s in json.loads(path.read_text())["stages"]]
    images = sum(s["images"] for s in stages)
    wall, cpu = (1000 * sum(s[name] for s in stages) / images for name in ("seconds", "cpu_seconds"))
    return f"{wall:.2f} ms and {cpu:.2f} CPU ms per training image"


def time_step(options: argparse.Namespace, out: Path, devices: int, batch_size: int) -> tuple[float, int]:
    """Train `at` once; return the seconds per step, and the number of values in the model's state."""
    sets = tuple(text for text in options.set if text.startswith(("run.", "at.")))
    flags = {"threads": 1, "device": "cpu", "precision": "fp32", "protocol": "white-box", "attacks": "fgsm"}
    robobench.run("at", devices=devices, batch_size=batch_size, examples=8, out=out, sets=sets, verbosity=0, **flags)
    (stage,) = json.loads(next(out.glob("at-*/timing.json")).read_text())["stages"]
    weights = load_file(next(out.glob("at-*/model.safetensors")))
    per_epoch = len(batch_sizes(stage["images"] // stage["epochs"], batch_size))
    return stage["seconds"] / (stage["epochs"] * per_epoch), sum(value.numel() for value in weights.values())


def time_exchange(rank: int, rendezvous: str, count: int, repeats: int, queue: Any) -> None:
    """Time an all-reduce of `count` float32 values and two short ones over two processes; rank 0 puts the seconds."""
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    torch.set_num_threads(1)
    values = torch.zeros(count)
    for number in range(repeats + 3):
        if number == 3:  # the first ones set up the connections
            begun = time.perf_counter()
        for message in (values, torch.zeros(1), torch.zeros(8)):
            dist.all_reduce(message)
    if rank == 0:
        queue.put((time.perf_counter() - begun) / repeats)
    dist.destroy_process_group()


def check_cost_model(options: argparse.Namespace, batch_size: int = 128) -> None:
    """Predict the time of a step of two processes from steps of one and the exchange, and measure it."""
    with tempfile.TemporaryDirectory() as place:
        out = Path(place)
        whole, count = time_step(options, out / "whole", 1, batch_size)
        half, _ = time_step(options, out / "half", 1, batch_size // 2)
        both, _ = time_step(options, out / "both", 2, batch_size)
        queue = multiprocessing.get_context("spawn").Queue()
        spawn(time_exchange, (str(out / "rendezvous"), count, 50, queue), nprocs=2)  # type: ignore[no-untyped-call]
        exchange = queue.get()
    print(
        f"a step of at, {batch_size} images: {1000 * whole:.1f} ms in one process; in two {1000 * both:.1f} ms, "
        f"predicted {1000 * (half + exchange):.1f} = {1000 * half:.1f} for half the images + {1000 * exchange:.2f} for "
        f"the exchange of {count:,} values"
    )


def evaluate(options: argparse.Namespace, devices: int, out: Path) -> tuple[float, dict[str, str]]:
    """Attack a stored model as an external one; return the seconds of its evaluations, and the outcomes."""
    weights = next(out.glob("at-*-s0-*/model.safetensors"))
    again = out / f"again-{devices}"
    shutil.rmtree(again, ignore_errors=True)
    begun = time.perf_counter()
    flags = {
        "attacks": options.attacks.split(","),
        "eps": "0.1",
        "examples": options.examples,
        "threads": 1,
        "device": "cpu",
        "precision": "fp32",
        "devices": devices,
    }
    robobench.evaluate(weights, out=again, sets=("run.eval_batch_size=36",), **flags)
    print(f"evaluation, {devices} processes: {time.perf_counter() - begun:.1f} s including start-up")
    records = [json.loads(path.read_text()) for path in again.glob("artifacts/evaluations/*/record.json")]
    return sum(r["seconds"] for r in records), outcomes(again)


def main() -> int:
    """Run all comparisons and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/devices"))
    parser.add_argument("--defenses", default="standard,at")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--examples", type=int, default=360)
    parser.add_argument("--attacks", default="pgd,autoattack", help="of the sharded evaluation")
    parser.add_argument("--set", action="append", default=[])
    options = parser.parse_args()
    made = [compare(options, n, options.out / str(n)).assign(devices=n) for n in (1, 2)]
    rows = pd.concat(made)
    for n in (1, 2):
        print(f"{n} process{'es' * (n > 1)}: {time_per_image(options.out / str(n))}")
    columns = ["clean_accuracy", "robust_accuracy", "train_seconds"]
    print(rows.groupby(["defense", "threat_eps", "devices"])[columns].agg(["mean", "std"]).round(3).to_string())
    wrong = []
    for (defense, eps), group in rows.groupby(["defense", "threat_eps"]):
        for column in columns[:2]:
            one, two = (group.loc[group["devices"] == n, column] for n in (1, 2))
            p = ttest_ind(one, two).pvalue
            print(f"{defense} {column} at {eps}: {one.mean():.3f} and {two.mean():.3f}, p = {p:.2g}")
            if p < 0.01:
                wrong.append(f"{defense} {column} at {eps}")
    check_cost_model(options)
    alone, ours = evaluate(options, 1, options.out / "1")
    both, theirs = evaluate(options, 2, options.out / "1")
    print(f"attacks on one model: {alone:.1f} s in one process, {both:.1f} s in two ({alone / both:.2f} times as fast)")
    if ours != theirs:
        wrong.append("outcomes of the sharded evaluation")
    print("\n".join(f"differs: {line}" for line in wrong) or "no difference beyond the spread of seeds; equal outcomes")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
