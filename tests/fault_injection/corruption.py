"""Damage files of every kind: each damage is detected or harmless, and a new run restores the same rows.

python tests/fault_injection/corruption.py --files 200
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import random
import sys
import tempfile
import time
from pathlib import Path

import harness

COMMAND = [*harness.command("macd"), "--protocol", "both", "--set", "run.baseline_control=false"]
DAMAGES = ("flip", "truncate", "empty", "type", "swap", "remove")


class Payload:
    """A pickle that executes code when it is loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def interrupted_stores(place: Path, log: Path, command: list[str]) -> list[Path]:
    """Return stores of runs that were killed in a training stage, and in an evaluation."""
    stores = []
    files = ("state.safetensors", "array.npy") if "macd" in command else ("state.safetensors",)
    for pattern in (f"checkpoints/*/*/*/{file}" for file in files):
        for _ in range(20):
            store = place / f"killed-{len(stores)}"
            harness.copy(place / "empty", store)
            pid = harness.start(command, store, log)
            while not list((store / "artifacts").glob(pattern)):
                if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                    break
                time.sleep(0.002)
            else:
                harness.kill_after(pid, 0)
            harness.finish(pid)
            if list((store / "artifacts").glob(pattern)):
                stores.append(store)
                break
    from robobench.execution.partial_outcomes import save_partial
    from robobench.store.artifacts import Store
    from robobench.store.partial import PartialResults

    store = harness.copy(place / "reference", place / "killed-evaluation")
    (folder, *_) = Store(store).iter_artifacts("evaluations")
    record = json.loads((folder / "record.json").read_text())
    save_partial(PartialResults(Store(store), f"partial/{folder.name}"), [record["robust_bits"][:8]], {}, 1.0)
    folder.rename(place / "record")
    return [*stores, store]


def damage(file: Path, how: str, others: list[Path], draw: random.Random, marker: Path) -> None:
    """Damage a file in one of DAMAGES; "swap" exchanges it with one of `others`."""
    data = bytearray(file.read_bytes())
    match how:
        case "flip" if data:
            for _ in range(draw.randint(1, 3)):
                data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
            file.write_bytes(bytes(data))
        case "truncate":
            file.write_bytes(bytes(data[: draw.randrange(len(data) + 1)]))
        case "type":
            file.write_bytes(pickle.dumps(Payload(marker)))
        case "swap":
            other = draw.choice(others)
            file.write_bytes(other.read_bytes())
            other.write_bytes(bytes(data))
        case "remove":
            file.unlink()
        case _:
            file.write_bytes(b"")


def damage_files(count: int, place: Path, seed: int = 0, command: list[str] = COMMAND) -> list[str]:
    """Damage `count` files, one at a time, and run every command; return the problems found."""
    draw, problems, log, marker = random.Random(seed), list[str](), place / "log", place / "executed"
    (place / "empty").mkdir()
    if harness.run(command, place / "reference", log) != 0:
        return [f"the uninterrupted run failed: {log.read_text()[-500:]}"]
    reference = harness.contents(place / "reference")
    stores = [place / "reference", *interrupted_stores(place, log, command)]
    files = [(store, p.relative_to(store)) for store in stores for p in store.rglob("*") if p.is_file()]
    kinds = sorted({_kind(path) for _, path in files})
    detected = 0
    for number in range(count):
        kind, how = kinds[number % len(kinds)], DAMAGES[number // len(kinds) % len(DAMAGES)]
        base, path = draw.choice([f for f in files if _kind(f[1]) == kind])
        store = harness.copy(base, place / "store")
        same = [p for p in store.rglob(path.name) if p != store / path] or [store / path]
        damage(store / path, how, same, draw, marker)
        log = place / f"{number}.log"
        commands = (["store", "check"], ["leaderboard"], ["report", "--html", str(place / "page.html")], command)
        statuses = [harness.run(arguments, store, log) for arguments in commands]
        detected += statuses[0] == 1
        output = log.read_text()
        what = f"{how} {base.name}/{path}"
        allowed = ((0, 1), (0, 2), (0, 2), (0,))
        if any(status not in good for status, good in zip(statuses, allowed, strict=True)) or "Traceback" in output:
            problems.append(f"{what}: statuses {statuses}: {output[-700:]}")
        elif marker.exists():
            problems.append(f"{what}: its code was executed")
        else:
            problems += [f"{what}: {name}" for name in harness.differences(store, reference)]
    print(f"corruption: {count} files of {len(kinds)} kinds, {detected} detected, {len(problems)} problems", flush=True)
    return problems


def _kind(path: Path) -> str:
    """Return the kind of a file: its place in the store and its name."""
    place = path.parts[1] if path.parts[0] == "artifacts" else "model" if len(path.parts) > 1 else "top"
    return f"{place}/{path.suffix if place in ('locks', 'logs') else path.name}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    harness.preload()
    with tempfile.TemporaryDirectory() as place:
        problems = damage_files(args.files, Path(place), args.seed)
    print("\n".join(problems) or "no problems")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
