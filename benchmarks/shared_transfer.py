"""Time of `robobench.compare` with the transfer protocol, against a plain loop that makes the examples once.

    python benchmarks/shared_transfer.py [--data-dir DIR] [--model resnet20] [--count 8] [--images 512] [--repeats 3]

The models are untrained, of several seeds: transfer examples take the full budget on any model, so their cost does not
depend on training. `ours` is `robobench.compare` in this process with everything it does (plan, load, clean accuracies,
records, rows), `plain` is the loop; the sides alternate. DIR holds CIFAR-10 as parquet files or torchvision's archive;
default: the embedded digits, which have 360 test images.
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

BATCH_SIZE = 256


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--count", type=int, default=8, help="number of models")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args()


def main() -> None:
    """Time both sides in turn, and print the ratio."""
    options = parse_options()
    dataset = "cifar10" if options.data_dir else "digits"
    test = load_dataset(dataset, data_dir=options.data_dir, need_train=False, device=options.device).test
    count = min(options.images, len(test))
    seconds: dict[str, list[float]] = {"ours": [], "plain": []}
    with tempfile.TemporaryDirectory() as place:

        def compare(eps: str, sets: tuple[str, ...] = (), **more: object) -> None:
            robobench.compare(
                ["standard"],
                seeds=range(options.count),
                epochs=0,
                dataset=dataset,
                data_dir=options.data_dir,
                model=options.model,
                preset="cifar",
                device=options.device,
                threads=options.threads,
                protocol="transfer",
                eps=(eps,),
                sets=(f"run.eval_batch_size={BATCH_SIZE}", "run.held_out=0", "run.baseline_control=false", *sets),
                out=Path(place),
                verbosity=-1,
                **more,
            )

        compare("8/255", attacks="fgsm", examples=1)  # so that the models are stored
        folders = {r["seed"]: r["training"] for r in read_records(Path(place))}
        models = [robobench.load(place, folder, device=options.device) for _, folder in sorted(folders.items())]
        cls = load_attack("pgd")
        for number in range(options.repeats):
            begun = time.perf_counter()
            # A larger radius each time, so that no examples are in the store.
            compare(f"{8 + number}/255", sets=("pgd.steps=40",), attacks="pgd", examples=count)
            seconds["ours"].append(time.perf_counter() - begun)
            attack = cls(cls.Config(steps=40), ThreatModel("Linf", (8 + number) / 255))
            begun = time.perf_counter()
            for index in torch.split(torch.arange(count), BATCH_SIZE):
                adv = transfer_examples(models[0], attack, test, index, options.device)
                for model in models:
                    transfer_outcomes(model, adv, test.labels[index], torch.ones(len(index), dtype=torch.bool))
            if options.device.startswith("cuda"):
                torch.cuda.synchronize()
            seconds["plain"].append(time.perf_counter() - begun)
    ratios = [ours / plain for ours, plain in zip(*seconds.values(), strict=True)]
    print(f"{provenance.hardware(options.device)}, {options.threads} threads, torch {torch.__version__}")
    print(
        f"{dataset}, {options.count} x {options.model}, PGD-40, {count} images: ours "
        f"{statistics.median(seconds['ours']):.1f} s, plain {statistics.median(seconds['plain']):.1f} s, "
        f"{statistics.median(ratios):.2f} times ({min(ratios):.2f}-{max(ratios):.2f})"
    )


if __name__ == "__main__":
    main()
