"""Screening against AutoAttack on a board: robust accuracy on the same images, and seconds side by side.

    python benchmarks/screening.py RESULTS.json --board leaderboards/cifar10-jpeg-resnet20 --data-dir DIR
    python benchmarks/screening.py RESULTS.json --board ... --data-dir DIR --time at --time trades --images 60
    python benchmarks/screening.py RESULTS.json --print

Every model of seed 0 that AutoAttack has attacked at Linf 8/255 or L2 0.5 is screened on the images that AutoAttack
found, by its record. Draws are keyed by image, so these are the outcomes of screening all images; the others can only
lower screening's accuracy. With --time, a model's first --images images are attacked by both, in parts of 5, one after
the other, with the same compiled model. RESULTS.json is written after every part, and the same command resumes.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robobench.attack_engine.accelerated import compile_for_search
from robobench.attack_engine.options import AttackOptions
from robobench.attacks.autoattack import AutoAttack
from robobench.attacks.screen import Screen
from robobench.core.module_state import attack_mode
from robobench.core.threat import ThreatModel
from robobench.data import load_dataset
from robobench.data.split import Split
from robobench.evaluation.accuracy import white_box_outcomes
from robobench.evaluation.model_checks import tell_about_masking
from robobench.execution.load import load_trained
from robobench.models.wrapper import PreprocessedModel
from robobench.results.rows import read_records
from robobench.results.statistics import to_bitstring

PART = 5  # images that the two attacks take in turn
THREATS = {"Linf": 8 / 255, "L2": 0.5}


def board_records(board: Path) -> Iterator[Any]:
    """Yield AutoAttack's record of every model of seed 0, at the radii of THREATS."""
    for r in read_records(board):
        standard = r["attack"].startswith("autoattack") and r["protocol"] == "white-box" and r["status"] == "ok"
        if standard and r["seed"] == 0 and abs(r["threat_eps"] - THREATS[r["threat_norm"]]) < 1e-9:
            yield r


def prepare(board: Path, data_dir: Path | None, record: Any) -> tuple[PreprocessedModel, Split, Tensor]:
    """Return the model, its test images and the clean outcomes."""
    data = load_dataset(record["dataset"], data_dir=data_dir, need_train=False).test
    assert data.digest == record["data_digest"]
    clean = torch.tensor([bit == "1" for bit in record["clean_bits"]])
    return load_trained(board, record["training"])[0], data, clean


def screen(model: nn.Module, data: Split, found: Tensor, threat: ThreatModel) -> dict[str, Any]:
    """Screen the images marked in `found` (N,) bool; return which of them stay correct, and the seconds."""
    attack, index = Screen(Screen.Config(), threat), torch.arange(len(found))
    begun = time.perf_counter()
    tell_about_masking(attack, model, data.images(index[:128]), data.labels[:128])
    left = white_box_outcomes(model, attack, data, index, found, "cpu")
    return {"missed": to_bitstring(left), "seconds": time.perf_counter() - begun, "masking": attack.masking_suspected}


def race(
    model: PreprocessedModel, data: Split, clean: Tensor, threat: ThreatModel, found: dict[str, Any]
) -> Iterator[None]:
    """Attack the parts that are left with both attacks in turn; `found` gets seconds and outcomes of each part."""
    with attack_mode(model):
        options = AttackOptions(compiled=(model, compile_for_search(model, data.images(torch.arange(17)))))
    attacks = {"screen": Screen(Screen.Config(), threat), "autoattack": AutoAttack(AutoAttack.Config(), threat)}
    for begin in range(PART * len(found.setdefault("parts", [])), len(clean), PART):
        index, part = torch.arange(begin, min(begin + PART, len(clean))), {}
        for name in attacks if begin // PART % 2 == 0 else reversed(attacks):
            begun, busy = time.perf_counter(), time.process_time()
            left = white_box_outcomes(model, attacks[name], data, index, clean[index], "cpu", options)
            seconds = {"seconds": time.perf_counter() - begun, "cpu_seconds": time.process_time() - busy}
            part[name] = {**seconds, "bits": to_bitstring(left)}
        found["parts"].append(part)
        yield


def show(results: dict[str, Any]) -> None:
    """Print two Markdown tables."""
    print(
        "| model | images | clean | AutoAttack | screen, at most | found by AutoAttack | of these, missed by screen |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, r in results.items():
        if "missed" in r:
            counts = [r[key].count("1") for key in ("clean", "autoattack", "missed")]
            shares = [100 * count / len(r["clean"]) for count in (*counts[:2], counts[1] + counts[2])]
            cells = [f"{share:.1f}" for share in shares] + [str(counts[0] - counts[1]), str(counts[2])]
            print(f"| {name}{' (masking)' if r['masking'] else ''} | {len(r['clean'])} | {' | '.join(cells)} |")
    print("\n| model | images | time | AutoAttack (s) | screen (s) | ratio | by part | same outcomes |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, r in results.items():
        parts = r.get("parts", [])
        pairs = [pair for p in parts for pair in zip(p["autoattack"]["bits"], p["screen"]["bits"], strict=True)]
        for kind in ("seconds", "cpu_seconds") if parts else ():
            times = [(p["autoattack"][kind], p["screen"][kind]) for p in parts]
            total, each = [sum(column) for column in zip(*times, strict=True)], sorted(a / s for a, s in times)
            cells = [kind, f"{total[0]:.0f}", f"{total[1]:.0f}", f"{total[0] / total[1]:.1f}"]
            same = f"{sum(a == b for a, b in pairs)} of {len(pairs)}"
            print(f"| {name} | {len(pairs)} | {' | '.join(cells)} | {each[0]:.1f} to {each[-1]:.1f} | {same} |")


def main() -> int:
    """Attack what is left, then print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--board", type=Path)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--norm", default="Linf", choices=THREATS)
    parser.add_argument("--only", action="append", help="a defense to screen; default: all")
    parser.add_argument("--time", action="append", default=[], help="a defense whose seconds are compared")
    parser.add_argument("--images", type=int, default=60, help="of --time")
    parser.add_argument("--print", action="store_true", dest="only_print", help="attack nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = json.loads(options.results.read_text()) if options.results.is_file() else {}
    threat = ThreatModel(options.norm, THREATS[options.norm])
    records = [] if options.only_print else [r for r in board_records(options.board) if r["threat_norm"] == threat.norm]
    for record in records:
        if options.only and record["defense"] not in options.only:
            continue
        name = f"{record['defense']}, {threat}"
        found = results.setdefault(name, {"clean": record["clean_bits"], "autoattack": record["robust_bits"]})
        timed = record["defense"] in options.time
        if PART * len(found.get("parts", [])) >= options.images if timed else "missed" in found or options.time:
            continue
        model, data, clean = prepare(options.board, options.data_dir, record)
        if timed:
            for _ in race(model, data, clean[: options.images], threat, found):
                options.results.write_text(json.dumps(results, indent=1))
                print(f"{name}: part {len(found['parts'])}", flush=True)
        else:
            robust = torch.tensor([bit == "1" for bit in record["robust_bits"]])
            found |= screen(model, data, clean & ~robust, threat)
            options.results.write_text(json.dumps(results, indent=1))
    show(results)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
