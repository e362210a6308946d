"""Our attacks against torchattacks' and the reference AutoAttack: time, robust accuracy, agreement, memory, transfer.

    python benchmarks/attacks_against_peers.py [--data DIR] [--model resnet20] [--images 128] [--repeats 3]

Trains three small networks through robobench, once (`--out` keeps them): undefended, adversarially trained, and a
second undefended one for transfer. DIR holds CIFAR-10 as parquet files or torchvision's archive (Linf 8/255,
L2 0.5); without it the embedded digits serve (Linf 0.1, L2 1.0). Each pair of tools runs alternately in one process;
times are medians of `--repeats`. Memory is the rise of the resident set's high water in a process of its own, where
Square gets 20 queries, or the allocator's peak on a GPU. `--precision bf16` (auto: where the hardware has it) is for
our searches; verdicts are float32. The full size takes hours on two cores; `--pgd-images 16 --images 8 --queries 100`
minutes.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pyautoattack
import torch
import torchattacks
from torch import Tensor, nn

import robobench
from robobench import data as datasets
from robobench import provenance, results
from robobench.evaluation import clean_bits
from robobench.inner import frozen
from robobench.plugins import load_attack
from robobench.randomness import Noise
from robobench.search import in_bfloat16
from robobench.threat import ThreatModel

SOURCE, OTHER, TRAINED = ("standard", 0), ("standard", 1), ("at", 0)
PEERS = {"pgd": "torchattacks", "autoattack": "pyautoattack"}


def networks(options: argparse.Namespace) -> dict[tuple[str, int], nn.Module]:
    """Train what the store lacks, and load all three networks."""
    shared = {"dataset": options.dataset, "model": options.model, "out": options.out, "examples": 32, "attacks": "fgsm"}
    shared |= {"device": options.device, "threads": options.threads}
    if options.data:
        shared |= {"data_dir": options.data, "preset": "cifar"}
        shared["sets"] = ("run.train_images=5000", "at.inner_steps=7")
    if options.data or options.epochs:
        shared["epochs"] = options.epochs or 10
    made = {}
    for name, seed in (SOURCE, OTHER, TRAINED):
        rows = robobench.run(name, seeds=[seed], protocol="white-box", verbosity=0, **shared)
        digest = rows.iloc[0]["weights_digest"]
        folder = next(r["training"] for r in results.records(options.out) if r["weights_digest"] == digest)
        made[name, seed] = robobench.load(options.out, folder, device=options.device)
    return made


class Task:
    """One attack on one network, by our tool or theirs: images in, examples out."""

    def __init__(self, tool: str, kind: str, threat: ThreatModel, options: argparse.Namespace) -> None:
        self.tool, self.kind, self.threat, self.options = tool, kind, threat, options

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """Attack for verdicts; each tool gets the network as its own users give it."""
        if self.tool == "robobench":
            values = {"pgd": {"steps": 40}, "autoattack": {"queries": self.options.queries}}[self.kind]
            cls = load_attack(self.kind)
            noise = Noise.of(torch.arange(len(images), device=images.device), "attack", self.kind)
            with frozen(model), in_bfloat16(self.options.precision == "bf16"):
                return cls(cls.Config(**values), self.threat).find(model, images, labels, noise).adv
        if self.kind == "pgd":
            return torchattacks.PGD(model, eps=self.threat.eps, alpha=self.threat.eps / 4, steps=40)(images, labels)
        reference = pyautoattack.AutoAttack(
            model, norm=self.threat.norm, eps=self.threat.eps, version="standard", seed=0, device=images.device
        )
        reference.square.n_queries = self.options.queries
        return reference.run_standard_evaluation(images, labels, batch_size=len(images))[0]


def right(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Say which images the float32 network gets right."""
    with torch.no_grad():
        return model(images).argmax(1) == labels


@dataclass(frozen=True)
class Row:
    """A row of the table: an attack on a network of ours."""

    what: str
    kind: str
    threat: ThreatModel
    model: nn.Module
    images: Tensor
    labels: Tensor

    def run(self, tool: str, options: argparse.Namespace) -> Tensor:
        """Attack with one of the two tools."""
        return Task(tool, self.kind, self.threat, options)(self.model, self.images, self.labels)


def peak(row: Row, tool: str, options: argparse.Namespace) -> float:
    """Measure the rise of the memory's high water during one run, in MiB."""
    if row.images.is_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        row.run(tool, options)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    row.run(tool, options)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def peak_elsewhere(number: int, tool: str) -> float:
    """Measure in a process of its own, by this script's flags."""
    words = [sys.executable, __file__, *sys.argv[1:], "--queries", "20", "--peak", f"{number}:{tool}"]
    return float(subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def compare(number: int, row: Row, options: argparse.Namespace) -> str:
    """Run both tools in turn and return a line of the table."""
    peer = PEERS[row.kind]
    seconds: dict[str, list[float]] = {"robobench": [], peer: []}
    left: dict[str, Tensor] = {}
    memory = [peak_elsewhere(number, tool) for tool in seconds] if options.memory else []
    for _ in range(options.repeats):
        for tool, times in seconds.items():
            begun = time.perf_counter()
            adv = row.run(tool, options)
            if adv.is_cuda:
                torch.cuda.synchronize()
            times.append(time.perf_counter() - begun)
            left[tool] = right(row.model, adv, row.labels)
    ours, theirs = map(statistics.median, seconds.values())
    accuracy = " / ".join(f"{100 * stands.float().mean():.1f}" for stands in left.values())
    agree = (left["robobench"] == left[peer]).float().mean()
    used = " / ".join(f"{figure:.0f}" for figure in memory) or "-"
    return (
        f"| {row.what} | {row.threat} | {len(row.images)} | {peer} | {ours:.1f} / {theirs:.1f} | {theirs / ours:.2f} "
        f"| {accuracy} | {100 * agree:.1f} | {used} |"
    )


def transfer(source: nn.Module, other: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel) -> str:
    """Say what our PGD set and torchattacks' leave of another network."""
    cls, noise = load_attack("pgd"), Noise.of(torch.arange(len(images), device=images.device), "attack", "pgd")
    with frozen(source):
        ours = cls(cls.Config(steps=40), threat).perturb(source, images, labels, noise)
    theirs = torchattacks.PGD(source, eps=threat.eps, alpha=threat.eps / 4, steps=40)(images, labels)
    figures = [100 * right(other, adv, labels).float().mean().item() for adv in (ours, theirs)]
    return f"Transfer to another network, {threat}: ours leaves {figures[0]:.1f} %, torchattacks' {figures[1]:.1f} %."


def main() -> None:
    """Measure, and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="CIFAR-10; without it the embedded digits")
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--epochs", type=int, help="of each training; 10 on CIFAR-10, the preset's on the digits")
    parser.add_argument("--out", type=Path, default=Path("runs/attacks-against-peers"))
    parser.add_argument("--pgd-images", type=int, default=512)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--queries", type=int, default=5000, help="of Square, in both tools")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", default="auto", help="of our searches: auto, fp32 or bf16")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    parser.add_argument("--no-memory", dest="memory", action="store_false", help="skip the runs that measure memory")
    options = parser.parse_args()
    options.dataset = "cifar10" if options.data else "digits"
    options.precision = provenance.resolve_precision(options.precision, options.device)
    torch.set_num_threads(options.threads)
    if options.device.startswith("cuda"):
        torch.cuda.set_device(options.device)

    made = networks(options)
    data = datasets.load(options.dataset, data_dir=options.data, need_train=False, device=options.device).test
    linf, l2 = (ThreatModel("Linf", 8 / 255), ThreatModel("L2", 0.5)) if options.data else (
        ThreatModel("Linf", 0.1), ThreatModel("L2", 1.0)
    )  # fmt: skip
    count = min(max(options.pgd_images, options.images), len(data))
    index = torch.arange(count)
    images, labels = data.images(index), data.labels[index].to(options.device)
    many, few = slice(options.pgd_images), slice(options.images)

    rows = [
        Row(what, kind, threat, made[key], images[part], labels[part])
        for what, kind, threat, key, part in (
            ("PGD-40, undefended", "pgd", linf, SOURCE, many),
            ("PGD-40, AT", "pgd", linf, TRAINED, many),
            ("AutoAttack, AT", "autoattack", linf, TRAINED, few),
            ("AutoAttack, AT", "autoattack", l2, TRAINED, few),
        )
    ]
    if options.peak:
        number, tool = options.peak.split(":")
        print(peak(rows[int(number)], tool, options))
        return

    packages = ("torch", "torchattacks", "pyautoattack", "robobench")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    print(f"{provenance.hardware(options.device)}, {options.threads} threads, {options.precision}, {versions}.")
    print(f"{options.dataset}, {options.model}, medians of {options.repeats}; ours / theirs.")
    clean = {key: clean_bits(model, data, index, options.device).float().mean() for key, model in made.items()}
    shown = ", ".join(f"{name} (seed {seed}) {100 * value:.1f}" for (name, seed), value in clean.items())
    print(f"Clean accuracy: {shown}.")
    print()
    print("| attack | threat | images | peer | seconds | times faster | robust accuracy | agree, % | peak MiB |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for number, row in enumerate(rows):
        print(compare(number, row, options), flush=True)
    print()
    print(transfer(made[SOURCE], made[OTHER], images[many], labels[many], linf))
    sys.stdout.flush()


if __name__ == "__main__":
    main()
