"""Our attacks against torchattacks' and the reference AutoAttack: time, robust accuracy, agreement, memory, transfer.

    python benchmarks/attacks_against_peers.py --data DIR --networks PLACE [--only pgd] [--threads 2]

PLACE is a store or a board with trained networks `standard` of seeds 0 and 1 and `at` of seed 0, DIR holds their
CIFAR-10 as parquet files or torchvision's archive (Linf 8/255, L2 0.5). Without both, networks are trained on the
embedded digits (Linf 0.1, L2 1.0). Peers get a copy of the network in PyTorch's usual memory layout (NCHW), in float32
and with contiguous images, as their users have it. `--precision bf16` (auto: where the hardware has it) is for our
searches; verdicts are float32, each on the network that was attacked. `--compile auto` compiles for AutoAttack on a CPU
with a C++ compiler, as robobench does for searches so long; it takes what the line above the table says, once for all
networks of a kind, and is in no time of the table.

Both tools run in one process after a warm-up, the first of them in turn; times and their ratio are medians of
`--repeats`. An image that falls leaves our search at once and stays in torchattacks' to the end: the ratio falls as
the robust accuracy rises, which stands beside it. What is left of ours is compared with every repeat of the peer, whose
seed changes. Memory (PGD only) is that of one run in a process of its own, beyond what was held before: resident
memory, or the allocator's peak on a GPU. At the end stands which of the asked figures hold; `--only` chooses lines by
the beginning of their name, so that pieces can run side by side.
"""

from __future__ import annotations

import argparse
import copy
import importlib.metadata
import statistics
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pyautoattack
import torch
import torchattacks
from torch import Tensor, nn
from verdicts import verdict

import robobench
from robobench.attack_engine.accelerated import allow_bf16_search, compile_for_search, use_compiled_model
from robobench.core import provenance
from robobench.core.device import has_bf16, has_compiler, resolve_precision
from robobench.core.module_state import attack_mode
from robobench.core.threat import ThreatModel
from robobench.core.timing import Stopwatch, peak_memory, reset_peak_memory
from robobench.data import load_dataset
from robobench.data.split import Split
from robobench.evaluation.accuracy import attack_rng, clean_outcomes, transfer_examples
from robobench.plugins.discovery import load_attack

SOURCE, OTHER, TRAINED = ("standard", 0), ("standard", 1), ("at", 0)
PEERS = {"pgd": "torchattacks", "autoattack": "pyautoattack"}
QUERIES = 5000  # of Square, in the standard AutoAttack


def networks(options: argparse.Namespace) -> dict[tuple[str, int], nn.Module]:
    """Load the three networks; where no place is given, train on the digits what is missing."""
    place, made = options.networks or Path("runs/attacks-against-peers"), {}
    for name, seed in (SOURCE, OTHER, TRAINED):
        if not options.networks:
            chosen = {"model": options.model, "device": options.device, "threads": options.threads}
            few = {"attacks": "fgsm", "examples": 32, "protocol": "white-box"}
            robobench.run(name, seeds=[seed], dataset="digits", out=place, verbosity=0, **chosen, **few)
        found = [folder.name for folder in place.glob(f"{name}-{options.model}-{options.dataset}-s{seed}-*")]
        if len(found) != 1:
            raise SystemExit(f"'{place}' holds {len(found)} networks '{name}' of seed {seed}, one is needed")
        made[name, seed] = robobench.load(place, found[0], device=options.device)
    return made


def right(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Say which images the float32 network gets right."""
    with torch.no_grad():
        logits: Tensor = model(images)
    return logits.argmax(1) == labels


@dataclass(frozen=True)
class Row:
    """A row of the table: an attack on a network of ours and on the peers' copy of it, and what is asked."""

    name: str
    kind: str
    threat: ThreatModel
    model: nn.Module
    copied: nn.Module
    images: Tensor
    labels: Tensor
    asked: float  # times faster
    fair: bool  # whether these are the images and the budget that are asked about
    units: bool  # whether this is the hardware that the speed is asked of
    twin: nn.Module | None = None  # our network compiled

    def run(self, tool: str, options: argparse.Namespace, seed: int = 0, steps: int = 40) -> Tensor:
        """Attack with one of the two tools; `steps` is PGD's."""
        torch.manual_seed(seed)
        images, labels, eps = self.images, self.labels, self.threat.eps
        if tool == "robobench":
            cls = load_attack(self.kind)
            attack = cls(
                cls.Config(**({"steps": steps} if self.kind == "pgd" else {"queries": options.queries})), self.threat
            )
            rng = attack_rng(attack, torch.arange(len(images)), options.device)
            with (
                attack_mode(self.model),
                allow_bf16_search(options.precision == "bf16"),
                use_compiled_model(self.model, self.twin),
            ):
                return attack.attack_early_stop(self.model, images, labels, rng).adv
        images = images.contiguous()
        if self.kind == "pgd":
            adv: Tensor = torchattacks.PGD(self.copied, eps=eps, alpha=eps / 4, steps=steps)(images, labels)
            return adv
        reference = pyautoattack.AutoAttack(
            self.copied, norm=self.threat.norm, eps=eps, version="standard", seed=seed, device=images.device
        )
        reference.square.n_queries = options.queries
        adv = reference.run_standard_evaluation(images, labels, batch_size=len(images))[0]
        return adv

    def stands(self, tool: str, adv: Tensor) -> Tensor:
        """Say which images stand, (B,) bool, on the network that was attacked."""
        return right(self.model if tool == "robobench" else self.copied, adv, self.labels)


def peak(row: Row, tool: str, options: argparse.Namespace) -> int:
    """Measure what a run needs beyond what is held before it, in bytes, once the libraries' lazy parts are loaded."""
    replace(row, images=row.images[:8], labels=row.labels[:8]).run(tool, options, steps=2)
    reset_peak_memory(options.device)
    before = peak_memory(options.device)
    row.run(tool, options)
    return peak_memory(options.device) - before


def peak_elsewhere(row: Row, tool: str) -> float:
    """Measure in a process of its own, by this script's flags; in MiB."""
    words = [sys.executable, __file__, *sys.argv[1:], "--peak", f"{row.name}:{tool}"]
    return int(subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]) / 2**20


def compare(row: Row, options: argparse.Namespace) -> tuple[str, list[str]]:
    """Run both tools in turn and return a line of the table and its verdicts."""
    peer, count = PEERS[row.kind], len(row.images)
    seconds: dict[str, list[float]] = {"robobench": [], peer: []}
    stands: dict[str, list[Tensor]] = {tool: [] for tool in seconds}
    memory = [peak_elsewhere(row, tool) for tool in seconds] if row.kind == "pgd" else []
    for tool in seconds:
        replace(row, kind="pgd").run(tool, options, steps=2)
    for repeat in range(options.repeats):
        for tool in list(seconds)[:: 1 if repeat % 2 == 0 else -1]:
            watch = Stopwatch(options.device)
            with watch.account(tool) as account:
                adv = row.run(tool, options, seed=repeat)
            seconds[tool].append(account.seconds)
            stands[tool].append(row.stands(tool, adv))
    pairs = list(zip(stands["robobench"], stands[peer], strict=True))
    ours, theirs = map(statistics.median, seconds.values())
    faster = statistics.median(t / o for o, t in zip(*seconds.values(), strict=True))
    accuracy = " / ".join(f"{100 * torch.stack(each).float().mean():.1f}" for each in stands.values())
    above = [int(o.sum() - t.sum()) for o, t in pairs]
    agree = min(100 * (o == t).float().mean().item() for o, t in pairs)
    line = (
        f"| {row.name} | {row.threat} | {count} | {peer} | {ours:.1f} / {theirs:.1f} | {faster:.2f} | {accuracy} "
        f"| {', '.join(f'{n:+d}' for n in above)} | {agree:.1f} | {' / '.join(f'{m:.0f}' for m in memory) or '-'} |"
    )
    what = f"{row.name}, {count} images"
    allowed = max(1.0, 0.002 * count) if row.kind == "pgd" and count >= 1000 else 1.0
    said = [
        verdict(f"{what}, times faster", faster, ">=", row.asked, row.fair and row.units),
        verdict(f"{what}, images left above {peer}'s (the most of all repeats)", max(above), "<=", allowed, row.fair),
    ]
    if memory:
        said.append(verdict(f"{what}, memory above {peer}'s, MiB", memory[0] - memory[1], "<=", 0, row.fair))
    else:
        said.append(verdict(f"{what}, verdicts that agree, %", agree, ">=", 99, row.fair))
    return line, said


def transfer(
    made: dict[tuple[str, int], nn.Module],
    test: Split,
    index: Tensor,
    threat: ThreatModel,
    options: argparse.Namespace,
) -> list[str]:
    """Compare what our PGD set and torchattacks' leave of other networks."""
    cls, source, labels, said = load_attack("pgd"), made[SOURCE], test.labels[index].to(options.device), []
    ours = transfer_examples(source, cls(cls.Config(steps=40), threat), test, index, options.device)
    attack = torchattacks.PGD(contiguous(source), eps=threat.eps, alpha=threat.eps / 4, steps=40)
    theirs = attack(test.images(index).contiguous(), labels)
    for name, seed in (OTHER, TRAINED):
        left = [100 * right(made[name, seed], adv, labels).float().mean().item() for adv in (ours, theirs)]
        what = f"transfer to {name} (seed {seed}), {len(index)} images, {threat}"
        claim = f"{what}: ours leaves {left[0]:.1f} %, torchattacks' {left[1]:.1f} %, points apart"
        said.append(verdict(claim, abs(left[0] - left[1]), "<=", 2, options.data is not None and len(index) >= 512))
    return said


def contiguous(model: nn.Module) -> nn.Module:
    """Copy a network into PyTorch's usual memory layout, as peers have it."""
    return copy.deepcopy(model).to(memory_format=torch.contiguous_format)


def main() -> None:
    """Measure, and print a Markdown table and the verdicts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="CIFAR-10, for --networks; without both the embedded digits")
    parser.add_argument("--networks", type=Path, help="store or board to take the networks from")
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--only", default="", help="names or their beginnings, such as pgd,autoattack-l2,transfer")
    parser.add_argument("--pgd-images", type=int, default=512)
    parser.add_argument("--images", type=int, default=128, help="for AutoAttack")
    parser.add_argument("--queries", type=int, default=QUERIES, help="of Square, in both tools")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", default="auto", help="of our searches: auto, fp32 or bf16")
    parser.add_argument("--compile", choices=("auto", "on", "off"), default="auto", help="for our AutoAttack")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if (options.data is None) != (options.networks is None):
        parser.error("--data and --networks go together")
    options.dataset = "cifar10" if options.data else "digits"
    options.precision = resolve_precision(options.precision, options.device)
    torch.set_num_threads(options.threads)
    on_gpu = options.device.startswith("cuda")

    made = networks(options)
    test = load_dataset(options.dataset, data_dir=options.data, need_train=False, device=options.device).test
    linf, l2 = (ThreatModel("Linf", 8 / 255), ThreatModel("L2", 0.5)) if options.data else (
        ThreatModel("Linf", 0.1), ThreatModel("L2", 1.0)
    )  # fmt: skip
    units = on_gpu or (options.precision == "bf16" and has_bf16(options.device))
    rows = []
    for name, threat, key, asked in (
        ("pgd-standard", linf, SOURCE, 10.0),
        ("pgd-at", linf, TRAINED, 2.5),
        ("autoattack-linf", linf, TRAINED, 3.0 if on_gpu else 2.0),
        ("autoattack-l2", l2, TRAINED, 3.0 if on_gpu else 2.0),
    ):
        kind = name.partition("-")[0]
        wanted, least = (options.pgd_images, 512) if kind == "pgd" else (options.images, 128)
        index = torch.arange(min(wanted, len(test)))
        images, labels = test.images(index), test.labels[index].to(options.device)
        fair = options.data is not None and len(index) >= least and options.queries >= QUERIES
        copied = contiguous(made[key])
        rows.append(Row(name, kind, threat, made[key], copied, images, labels, asked, fair, units or kind == "pgd"))
    if options.peak:
        name, _, tool = options.peak.partition(":")
        print(peak(next(row for row in rows if row.name == name), tool, options))
        return

    packages = ("torch", "torchattacks", "pyautoattack", "robobench")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    print(f"{provenance.hardware(options.device)}, {options.threads} threads, {options.precision}, {versions}.")
    print(f"{options.dataset}, {options.model}, medians of {options.repeats}; ours / theirs.")
    index = torch.arange(min(max(options.pgd_images, options.images), len(test)))
    clean = {key: clean_outcomes(model, test, index, options.device).float().mean() for key, model in made.items()}
    shown = ", ".join(f"{name} (seed {seed}) {100 * value:.1f}" for (name, seed), value in clean.items())
    print(f"Clean accuracy: {shown}.")
    chosen, verdicts = tuple(options.only.split(",")), []
    automatic = options.compile == "auto" and not on_gpu and has_compiler()
    if (automatic or options.compile == "on") and any(row.name.startswith(chosen) for row in rows[2:]):
        watch = Stopwatch(options.device)
        with watch.account("compile") as account, attack_mode(made[TRAINED]):
            twin = compile_for_search(made[TRAINED], rows[2].images[:17])
        rows = [replace(row, twin=twin) if row.kind == "autoattack" else row for row in rows]
        print(f"Compiled for AutoAttack in {account.seconds:.0f} s.")
    print()
    print(
        "| attack | threat | images | peer | seconds | times faster | robust accuracy | images above | agree, % | MiB |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for row in rows:
        said = [f"- {row.name}: not measured"]
        if row.name.startswith(chosen):
            line, said = compare(row, options)
            print(line, flush=True)
        verdicts += said
    if "transfer".startswith(chosen):
        index = torch.arange(min(options.pgd_images, len(test)))
        verdicts += transfer(made, test, index, linf, options)
    else:
        verdicts.append("- transfer: not measured")
    print("", *verdicts, sep="\n", flush=True)


if __name__ == "__main__":
    main()
