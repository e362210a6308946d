"""Several networks under transfer against making the examples once and forwarding them through each, by hand.

    python benchmarks/shared_transfer.py [--data-dir DIR] [--model resnet20] [--networks 8] [--images 512] [--repeats 3]

The networks are untrained ones of several seeds: a transfer set spends its full budget whatever it meets, so its cost
does not depend on training. `ours` is `robobench.compare` in this process with everything it does (plan, load, clean
accuracies, records, rows), `plain` the loop; the sides alternate. DIR holds CIFAR-10 as parquet files or torchvision's
archive; without it the embedded digits serve, of which there are 360.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

import robobench
from robobench.core import provenance
from robobench.core.threat import ThreatModel
from robobench.data import load_dataset
from robobench.evaluation.accuracy import transfer_examples, transfer_outcomes
from robobench.plugins.discovery import load_attack
from robobench.results.rows import read_records

CHUNK = 256


def main() -> None:
    """Measure both sides in turn, and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--networks", type=int, default=8)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    asked = parser.parse_args()
    dataset = "cifar10" if asked.data_dir else "digits"
    test = load_dataset(dataset, data_dir=asked.data_dir, need_train=False, device=asked.device).test
    count = min(asked.images, len(test))
    seconds: dict[str, list[float]] = {"ours": [], "plain": []}
    with tempfile.TemporaryDirectory() as place:

        def compare(eps: str, sets: tuple[str, ...] = (), **more: object) -> None:
            robobench.compare(
                ["standard"],
                seeds=range(asked.networks),
                epochs=0,
                dataset=dataset,
                data_dir=asked.data_dir,
                model=asked.model,
                preset="cifar",
                device=asked.device,
                threads=asked.threads,
                protocol="transfer",
                eps=(eps,),
                sets=(f"run.eval_batch_size={CHUNK}", "run.held_out=0", "run.baseline_control=false", *sets),
                out=Path(place),
                verbosity=-1,
                **more,
            )

        compare("8/255", attacks="fgsm", examples=1)
        folders = {r["seed"]: r["training"] for r in read_records(Path(place))}
        networks = [robobench.load(place, folder, device=asked.device) for _, folder in sorted(folders.items())]
        cls = load_attack("pgd")
        for number in range(asked.repeats):
            begun = time.perf_counter()
            # A larger radius each time, so that nothing is at hand.
            compare(f"{8 + number}/255", sets=("pgd.steps=40",), attacks="pgd", examples=count)
            seconds["ours"].append(time.perf_counter() - begun)
            attack = cls(cls.Config(steps=40), ThreatModel("Linf", (8 + number) / 255))
            begun = time.perf_counter()
            for index in torch.arange(count).split(CHUNK):
                adv = transfer_examples(networks[0], attack, test, index, asked.device)
                for network in networks:
                    transfer_outcomes(network, adv, test.labels[index], torch.ones(len(index), dtype=torch.bool))
            if asked.device.startswith("cuda"):
                torch.cuda.synchronize()
            seconds["plain"].append(time.perf_counter() - begun)
    ratios = [ours / plain for ours, plain in zip(*seconds.values(), strict=True)]
    print(f"{provenance.hardware(asked.device)}, {asked.threads} threads, torch {torch.__version__}")
    print(
        f"{dataset}, {asked.networks} x {asked.model}, PGD-40, {count} images: ours "
        f"{statistics.median(seconds['ours']):.1f} s, plain {statistics.median(seconds['plain']):.1f} s, "
        f"{statistics.median(ratios):.2f} times ({min(ratios):.2f}-{max(ratios):.2f})"
    )


if __name__ == "__main__":
    main()
