"""AutoAttack against 20 restarts of 200 PGD steps on three losses: which finds more adversarial examples?

    python benchmarks/autoattack_strength.py RESULTS.json --board leaderboards/cifar10-jpeg-resnet20 --data-dir DIR
    python benchmarks/autoattack_strength.py RESULTS.json --model tests/gallery/gallery_certified.py:interval --eps 0.1
    python benchmarks/autoattack_strength.py RESULTS.json --print

Of a board, every model of seed 0 that AutoAttack has attacked at --eps is attacked on the same images; the outcomes of
AutoAttack are those of the record. A model of a factory is attacked on the digits (8 px) by both. The losses are the
cross-entropy, the margin and the difference of logits ratio; steps are a tenth of eps, starts are random in the ball.
Every restart attacks the images that are left, so the result is the worst case per image. RESULTS.json is written after
every five restarts, and the same command resumes. One model of the board takes about an hour of one core.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robobench.attack_engine.accelerated import compile_for_search
from robobench.attack_engine.options import AttackOptions
from robobench.attacks.autoattack import AutoAttack
from robobench.attacks.pgd import CW, PGD
from robobench.core.losses import margin
from robobench.core.module_state import attack_mode
from robobench.core.numbers import parse_eps
from robobench.core.rng import KeyedRng
from robobench.core.threat import ThreatModel
from robobench.data import load_dataset
from robobench.data.split import Split
from robobench.evaluation.accuracy import clean_outcomes, white_box_outcomes
from robobench.execution.load import load_trained
from robobench.models.build import build_model
from robobench.models.spec import ModelSpec
from robobench.models.wrapper import PreprocessedModel
from robobench.results.rows import read_records
from robobench.results.statistics import to_bitstring

STEPS, RELATIVE_STEP, RESTARTS, TOGETHER = 200, 0.1, 20, 5  # restarts run together


class DLR(PGD):  # type: ignore[misc]
    """PGD on the difference of logits ratio."""

    name = "pgd-dlr"

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the margin divided by the largest minus the third largest logit."""
        top = logits.topk(3, dim=1).values
        return margin(logits, labels) / (top[:, 0] - top[:, 2] + 1e-12)


LOSSES: dict[str, type[PGD]] = {"cross-entropy": PGD, "margin": CW, "dlr": DLR}


def attack(model: nn.Module, data: Split, clean: Tensor, threat: ThreatModel, found: dict[str, Any]) -> Iterator[None]:
    """Run what is left of the restarts; `found` gets the outcomes after each loss. Yields when it may be saved."""
    index = torch.arange(len(clean))
    left = torch.tensor([bit == "1" for bit in found.get("left", to_bitstring(clean))])
    options = AttackOptions()
    if isinstance(model, PreprocessedModel) and hasattr(model, "head"):
        with attack_mode(model):
            options = AttackOptions(compiled=(model, compile_for_search(model, data.images(index[:17]))))
    for number in range(found.get("done", 0), len(LOSSES) * RESTARTS // TOGETHER):
        name = list(LOSSES)[number * TOGETHER // RESTARTS]
        config = LOSSES[name].Config(steps=STEPS, relative_step=RELATIVE_STEP, restarts=TOGETHER)
        rows = index[left]
        if len(rows):
            rng = KeyedRng.of(rows, "strength", number)
            with attack_mode(model):
                images, labels = data.images(rows), data.labels[rows]
                result = LOSSES[name](config, threat).attack_early_stop(model, images, labels, rng, options)
            threat.check(result.adv, images, name)
            left[rows[result.success]] = False
        found |= {"left": to_bitstring(left), "done": number + 1, name: to_bitstring(left)}
        yield


def board_jobs(board: Path, data_dir: Path | None, eps: float) -> Iterator[tuple[str, Any]]:
    """Yield the name of every model of a board that AutoAttack attacked, and a function that returns what to attack."""
    records = [r for r in read_records(board) if r["status"] == "ok" and r["seed"] == 0]
    for record in records:
        at = (record["attack"], record["protocol"], record["threat_norm"])
        if at != (AutoAttack.name, "white-box", "Linf") or abs(record["threat_eps"] - eps) > 1e-9:
            continue

        def load(record: Any = record) -> tuple[nn.Module, Split, Tensor, str]:
            data = load_dataset(record["dataset"], data_dir=data_dir, need_train=False).test
            assert data.digest == record["data_digest"]
            clean = torch.tensor([bit == "1" for bit in record["clean_bits"]])
            return load_trained(board, record["training"])[0], data, clean, record["robust_bits"]

        yield record["defense"], load


def factory_job(name: str, eps: float) -> Any:
    """Return a function that loads a factory's model and attacks it with AutoAttack."""

    def load() -> tuple[nn.Module, Split, Tensor, str]:
        model = build_model(ModelSpec(name, 10)).eval()
        data = load_dataset("digits", resolution=8, need_train=False).test
        index = torch.arange(len(data))
        clean = clean_outcomes(model, data, index, "cpu")
        threat = ThreatModel("Linf", eps)
        robust = white_box_outcomes(model, AutoAttack(AutoAttack.Config(), threat), data, index, clean, "cpu")
        return model, data, clean, to_bitstring(robust)

    return load


def show(results: dict[str, Any]) -> None:
    """Print a Markdown table."""
    print("| model | images | clean | AutoAttack | PGD, 3 losses | AutoAttack - PGD | only AutoAttack | only PGD |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, r in results.items():
        if r.get("done", 0) < len(LOSSES) * RESTARTS // TOGETHER:
            continue
        count, pairs = len(r["left"]), list(zip(r["autoattack"], r["left"], strict=True))
        accuracies = [100 * r[key].count("1") / count for key in ("clean", "autoattack", "left")]
        cells = [f"{a:.1f}" for a in accuracies] + [f"{accuracies[1] - accuracies[2]:+.1f}"]
        cells += [str(sum(p == ("0", "1") for p in pairs)), str(sum(p == ("1", "0") for p in pairs))]
        print(f"| {name} | {count} | {' | '.join(cells)} |")


def main() -> int:
    """Attack what is left, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--board", type=Path)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--model", action="append", default=[], help="FILE.py:FUNCTION; on the digits")
    parser.add_argument("--eps", default="8/255")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--print", action="store_true", dest="only_print", help="attack nothing")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results: dict[str, Any] = json.loads(options.results.read_text()) if options.results.is_file() else {}
    eps = parse_eps(options.eps, "Linf")
    jobs = list(board_jobs(options.board, options.data_dir, eps)) if options.board else []
    jobs += [(f"{name.rpartition(':')[2]} (eps {options.eps})", factory_job(name, eps)) for name in options.model]
    for name, load in [] if options.only_print else jobs:
        found = results.setdefault(name, {})
        if found.get("done", 0) == len(LOSSES) * RESTARTS // TOGETHER:
            continue
        model, data, clean, autoattack = load()
        found |= {"clean": to_bitstring(clean), "autoattack": autoattack, "threat": f"Linf {options.eps}"}
        for _ in attack(model, data, clean, ThreatModel("Linf", eps), found):
            options.results.write_text(json.dumps(results, indent=1))
            print(f"{name}: {found['done']} of {len(LOSSES) * RESTARTS // TOGETHER}", flush=True)
    show(results)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
