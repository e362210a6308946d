"""Our attacks against torchattacks' and the reference AutoAttack: time, robust accuracy, agreement, memory, transfer.

    python benchmarks/attacks_against_peers.py --data DIR --store PLACE [--only pgd] [--threads 2]

PLACE is a store or a board with the trained models `standard` of seeds 0 and 1 and `at` of seed 0. DIR holds their
CIFAR-10 as parquet files or torchvision's archive (Linf 8/255, L2 0.5, L1 12). Without both, models are trained on the
embedded digits (Linf 0.1, L2 1.0, L1 20). Peers get a copy of the model in PyTorch's usual memory layout (NCHW), in
float32, and contiguous images, as their users have them. `--precision bf16` (auto: if the hardware has it) is for our
gradient steps; success is always confirmed in float32. `--compile auto` compiles the model for our AutoAttack on a CPU
with a C++ compiler, as robobench does for long attacks. The time to compile is printed above the table and is in no
time of the table.

Both tools run in one process after a warm-up, in alternating order; times and their ratio are medians of `--repeats`.
Our attack removes an image at its first success and torchattacks keeps it to the end, so the ratio is smaller for a
more robust model. The robust accuracy of ours is compared with that of every repeat of the peer, each with another
seed. Memory (PGD only) is that of one run in a separate process, beyond what was used before: resident memory, or the
allocator's peak on a GPU. The targets that are met are printed at the end. `--only` selects rows by the beginning of
their name, so that parts can run in parallel.
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
from jobs import check_claim
from torch import Tensor, nn

import robobench
from robobench.attack_engine.accelerated import compile_for_search
from robobench.attack_engine.options import AttackOptions
from robobench.core import provenance
from robobench.core.device import has_bf16, has_compiler, resolve_precision
from robobench.core.module_state import attack_mode
from robobench.core.threat import ThreatModel
from robobench.core.timing import Stopwatch, peak_memory, reset_peak_memory
from robobench.data import load_dataset
from robobench.data.split import Split
from robobench.evaluation.accuracy import attack_rng, clean_outcomes, transfer_examples
from robobench.models.wrapper import PreprocessedModel
from robobench.plugins.discovery import load_attack

SOURCE, OTHER, TRAINED = ("standard", 0), ("standard", 1), ("at", 0)
PEERS = {"pgd": "torchattacks", "autoattack": "pyautoattack"}
QUERIES = 5000  # of Square, in the standard AutoAttack


def load_models(options: argparse.Namespace) -> dict[tuple[str, int], nn.Module]:
    """Load the three models; without a store, train those that are missing on the digits."""
    place, models = options.store or Path("runs/attacks-against-peers"), {}
    for name, seed in (SOURCE, OTHER, TRAINED):
        if not options.store:
            chosen = {"model": options.model, "device": options.device, "threads": options.threads}
            few = {"attacks": "fgsm", "examples": 32, "protocol": "white-box"}
            robobench.run(name, seeds=[seed], dataset="digits", out=place, verbosity=0, **chosen, **few)
        found = [folder.name for folder in place.glob(f"{name}-{options.model}-{options.dataset}-s{seed}-*")]
        if len(found) != 1:
            raise SystemExit(f"'{place}' holds {len(found)} models '{name}' of seed {seed}, one is needed")
        models[name, seed] = robobench.load(place, found[0], device=options.device)
    return models


def is_correct(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Return which images the float32 model classifies correctly, (B,) bool."""
    with torch.no_grad():
        logits: Tensor = model(images)
    return logits.argmax(1) == labels


@dataclass(frozen=True)
class Row:
    """A row of the table: an attack on our model and on the peers' copy of it, and the target."""

    name: str
    kind: str  # pgd or autoattack
    threat: ThreatModel
    model: nn.Module
    peer_model: nn.Module
    images: Tensor
    labels: Tensor
    speedup: float  # target
    fair: bool  # the targets are for these images and this budget
    fair_speed: bool  # the speedup is for this hardware
    compiled: nn.Module | None = None  # compiled copy of our model

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
            compiled = (self.model, self.compiled) if self.compiled is not None else None
            how = AttackOptions(bf16_search=options.precision == "bf16", compiled=compiled)
            with attack_mode(self.model):
                ours: Tensor = attack.attack_early_stop(self.model, images, labels, rng, how).adv
            return ours
        images = images.contiguous()
        if self.kind == "pgd":
            adv: Tensor = torchattacks.PGD(self.peer_model, eps=eps, alpha=eps / 4, steps=steps)(images, labels)
            return adv
        reference = pyautoattack.AutoAttack(
            self.peer_model, norm=self.threat.norm, eps=eps, version="standard", seed=seed, device=images.device
        )
        reference.square.n_queries = options.queries
        adv = reference.run_standard_evaluation(images, labels, batch_size=len(images))[0]
        return adv

    def survives(self, tool: str, adv: Tensor) -> Tensor:
        """Return which images stay correct, (B,) bool, on the model that was attacked."""
        return is_correct(self.model if tool == "robobench" else self.peer_model, adv, self.labels)


def measure_memory(row: Row, tool: str, options: argparse.Namespace) -> int:
    """Return the memory that a run needs beyond what was used before, in bytes, after a warm-up."""
    replace(row, images=row.images[:8], labels=row.labels[:8]).run(tool, options, steps=2)
    reset_peak_memory(options.device)
    before = peak_memory(options.device)
    row.run(tool, options)
    return peak_memory(options.device) - before


def memory_in_subprocess(row: Row, tool: str) -> float:
    """Return the memory of a run in MiB, measured in a separate process with this script's flags."""
    words = [sys.executable, __file__, *sys.argv[1:], "--peak", f"{row.name}:{tool}"]
    return int(subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]) / 2**20


def compare(row: Row, options: argparse.Namespace) -> tuple[str, list[str]]:
    """Run both tools alternately; return a line of the table and its checked claims."""
    peer, count = PEERS[row.kind], len(row.images)
    seconds: dict[str, list[float]] = {"robobench": [], peer: []}
    correct: dict[str, list[Tensor]] = {tool: [] for tool in seconds}
    memory = [memory_in_subprocess(row, tool) for tool in seconds] if row.kind == "pgd" else []
    for tool in seconds:
        replace(row, kind="pgd").run(tool, options, steps=2)
    for repeat in range(options.repeats):
        for tool in list(seconds)[:: 1 if repeat % 2 == 0 else -1]:
            stopwatch = Stopwatch(options.device)
            with stopwatch.account(tool) as account:
                adv = row.run(tool, options, seed=repeat)
            seconds[tool].append(account.seconds)
            correct[tool].append(row.survives(tool, adv))
    pairs = list(zip(correct["robobench"], correct[peer], strict=True))
    ours, theirs = map(statistics.median, seconds.values())
    faster = statistics.median(t / o for o, t in zip(*seconds.values(), strict=True))
    accuracy = " / ".join(f"{100 * torch.stack(each).float().mean():.1f}" for each in correct.values())
    above = [int(o.sum() - t.sum()) for o, t in pairs]
    agree = min(100 * (o == t).float().mean().item() for o, t in pairs)
    line = (
        f"| {row.name} | {row.threat} | {count} | {peer} | {ours:.1f} / {theirs:.1f} | {faster:.2f} | {accuracy} "
        f"| {', '.join(f'{n:+d}' for n in above)} | {agree:.1f} | {' / '.join(f'{m:.0f}' for m in memory) or '-'} |"
    )
    what = f"{row.name}, {count} images"
    allowed = max(1.0, 0.002 * count) if row.kind == "pgd" and count >= 1000 else 1.0
    claims = [
        check_claim(f"{what}, times faster", faster, ">=", row.speedup, row.fair and row.fair_speed),
        check_claim(
            f"{what}, correct images more than {peer}'s (largest of all repeats)", max(above), "<=", allowed, row.fair
        ),
    ]
    if memory:
        claims.append(check_claim(f"{what}, memory above {peer}'s, MiB", memory[0] - memory[1], "<=", 0, row.fair))
    else:
        claims.append(check_claim(f"{what}, equal outcomes, %", agree, ">=", 99, row.fair))
    return line, claims


def compare_transfer(
    models: dict[tuple[str, int], nn.Module],
    test: Split,
    index: Tensor,
    threat: ThreatModel,
    options: argparse.Namespace,
) -> list[str]:
    """Compare the accuracy of other models on our PGD transfer examples and on torchattacks'."""
    cls, source, labels, claims = load_attack("pgd"), models[SOURCE], test.labels[index].to(options.device), []
    ours = transfer_examples(source, cls(cls.Config(steps=40), threat), test, index, options.device)
    attack = torchattacks.PGD(contiguous(source), eps=threat.eps, alpha=threat.eps / 4, steps=40)
    theirs = attack(test.images(index).contiguous(), labels)
    for name, seed in (OTHER, TRAINED):
        left = [100 * is_correct(models[name, seed], adv, labels).float().mean().item() for adv in (ours, theirs)]
        what = f"transfer to {name} (seed {seed}), {len(index)} images, {threat}"
        claim = f"{what}: accuracy {left[0]:.1f} % on ours, {left[1]:.1f} % on torchattacks', difference in points"
        claims.append(
            check_claim(claim, abs(left[0] - left[1]), "<=", 2, options.data is not None and len(index) >= 512)
        )
    return claims


def contiguous(model: nn.Module) -> nn.Module:
    """Return a copy of a model in PyTorch's usual memory layout, which peers use."""
    return copy.deepcopy(model).to(memory_format=torch.contiguous_format)


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="CIFAR-10, for --store; without both: the embedded digits")
    parser.add_argument("--store", type=Path, help="store or board with the models")
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--only", default="", help="beginnings of row names, such as pgd,autoattack-l2,transfer")
    parser.add_argument("--pgd-images", type=int, default=512)
    parser.add_argument("--images", type=int, default=128, help="for AutoAttack")
    parser.add_argument("--queries", type=int, default=QUERIES, help="of Square, in both tools")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", default="auto", help="of our gradient steps: auto, fp32 or bf16")
    parser.add_argument("--compile", choices=("auto", "on", "off"), default="auto", help="for our AutoAttack")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if (options.data is None) != (options.store is None):
        parser.error("--data and --store must be given together")
    options.dataset = "cifar10" if options.data else "digits"
    options.precision = resolve_precision(options.precision, options.device)
    return options


def main() -> None:
    """Measure, and print a Markdown table and the claims."""
    options = parse_options()
    torch.set_num_threads(options.threads)
    on_gpu = options.device.startswith("cuda")

    models = load_models(options)
    test = load_dataset(options.dataset, data_dir=options.data, need_train=False, device=options.device).test
    linf, l2 = (ThreatModel("Linf", 8 / 255), ThreatModel("L2", 0.5)) if options.data else (
        ThreatModel("Linf", 0.1), ThreatModel("L2", 1.0)
    )  # fmt: skip
    fast_hardware = on_gpu or (options.precision == "bf16" and has_bf16(options.device))
    rows = []
    for name, threat, key, speedup in (
        ("pgd-standard", linf, SOURCE, 10.0),
        ("pgd-at", linf, TRAINED, 2.5),
        ("autoattack-linf", linf, TRAINED, 3.0 if on_gpu else 2.0),
        ("autoattack-l2", l2, TRAINED, 3.0 if on_gpu else 2.0),
        ("autoattack-l1", ThreatModel("L1", 12.0 if options.data else 20.0), TRAINED, 3.0 if on_gpu else 2.0),
    ):
        kind = name.partition("-")[0]
        wanted, least = (options.pgd_images, 512) if kind == "pgd" else (options.images, 128)
        index = torch.arange(min(wanted, len(test)))
        images, labels = test.images(index), test.labels[index].to(options.device)
        fair = options.data is not None and len(index) >= least and options.queries >= QUERIES
        model, fair_speed = models[key], fast_hardware or kind == "pgd"
        rows.append(Row(name, kind, threat, model, contiguous(model), images, labels, speedup, fair, fair_speed))
    if options.peak:
        name, _, tool = options.peak.partition(":")
        print(measure_memory(next(row for row in rows if row.name == name), tool, options))
        return

    packages = ("torch", "torchattacks", "pyautoattack", "robobench")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    print(f"{provenance.hardware(options.device)}, {options.threads} threads, {options.precision}, {versions}.")
    print(f"{options.dataset}, {options.model}, medians of {options.repeats}; ours / theirs.")
    index = torch.arange(min(max(options.pgd_images, options.images), len(test)))
    clean = {key: clean_outcomes(model, test, index, options.device).float().mean() for key, model in models.items()}
    shown = ", ".join(f"{name} (seed {seed}) {100 * value:.1f}" for (name, seed), value in clean.items())
    print(f"Clean accuracy: {shown}.")
    chosen, claims = tuple(options.only.split(",")), list[str]()
    automatic = options.compile == "auto" and not on_gpu and has_compiler()
    if (automatic or options.compile == "on") and any(row.name.startswith(chosen) for row in rows[2:]):
        model, stopwatch = models[TRAINED], Stopwatch(options.device)
        assert isinstance(model, PreprocessedModel)
        with stopwatch.account("compile") as account, attack_mode(model):
            compiled = compile_for_search(model, rows[2].images[:17])
        rows = [replace(row, compiled=compiled) if row.kind == "autoattack" else row for row in rows]
        print(f"Compiled for AutoAttack in {account.seconds:.0f} s.")
    print()
    print(
        "| attack | threat | images | peer | seconds | times faster | robust accuracy | more correct | equal, % | MiB |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for row in rows:
        checked = [f"- {row.name}: not measured"]
        if row.name.startswith(chosen):
            line, checked = compare(row, options)
            print(line, flush=True)
        claims += checked
    if "transfer".startswith(chosen):
        index = torch.arange(min(options.pgd_images, len(test)))
        claims += compare_transfer(models, test, index, linf, options)
    else:
        claims.append("- transfer: not measured")
    print("", *claims, sep="\n", flush=True)


if __name__ == "__main__":
    main()
