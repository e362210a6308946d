"""Damaged files of every kind: each is noticed or harmless, no traceback is shown, and the same rows come back.

python tests/faults/damage.py --files 200
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

sys.path.insert(0, str(Path(__file__).parent))
import harness

COMMAND = [*harness.command("macd"), "--protocol", "both", "--set", "run.baseline_control=false"]
WAYS = ("flip", "truncate", "empty", "type", "swap", "remove")


class Payload:
    """A pickle that runs code where it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def unfinished(place: Path, log: Path, command: list[str]) -> list[Path]:
    """Make stores that a kill left in the midst of a training stage, and of an evaluation."""
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
    from robobench.store.artifacts import Store
    from robobench.store.partial import PartialResults, save_partial

    store = harness.copy(place / "reference", place / "killed-evaluation")
    (folder, *_) = Store(store).iter_artifacts("evaluations")
    record = json.loads((folder / "record.json").read_text())
    save_partial(PartialResults(Store(store), f"partial/{folder.name}"), [record["robust_bits"][:8]], {}, 1.0)
    folder.rename(place / "record")
    return [*stores, store]


def damage(file: Path, way: str, others: list[Path], draw: random.Random, mark: Path) -> None:
    """Damage a file in one of the ways."""
    data = bytearray(file.read_bytes())
    match way:
        case "flip" if data:
            for _ in range(draw.randint(1, 3)):
                data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
            file.write_bytes(bytes(data))
        case "truncate":
            file.write_bytes(bytes(data[: draw.randrange(len(data) + 1)]))
        case "type":
            file.write_bytes(pickle.dumps(Payload(mark)))
        case "swap":
            other = draw.choice(others)
            theirs = other.read_bytes()
            other.write_bytes(bytes(data))
            file.write_bytes(theirs)
        case "remove":
            file.unlink()
        case _:
            file.write_bytes(b"")


def damaged(count: int, place: Path, seed: int = 0, command: list[str] = COMMAND) -> list[str]:
    """Damage one file at a time and run everything; return what came out wrong."""
    draw, wrong, log, mark = random.Random(seed), list[str](), place / "log", place / "ran"
    (place / "empty").mkdir()
    if harness.run(command, place / "reference", log) != 0:
        return [f"the uninterrupted run failed: {log.read_text()[-500:]}"]
    reference = harness.contents(place / "reference")
    stores = [place / "reference", *unfinished(place, log, command)]
    files = [(store, p.relative_to(store)) for store in stores for p in store.rglob("*") if p.is_file()]
    kinds = sorted({_kind(path) for _, path in files})
    noticed = 0
    for number in range(count):
        kind, way = kinds[number % len(kinds)], WAYS[number // len(kinds) % len(WAYS)]
        base, path = draw.choice([f for f in files if _kind(f[1]) == kind])
        store = harness.copy(base, place / "store")
        same = [p for p in store.rglob(path.name) if p != store / path] or [store / path]
        damage(store / path, way, same, draw, mark)
        log = place / f"{number}.log"
        asked = (["store", "check"], ["leaderboard"], ["report", "--html", str(place / "page.html")], command)
        statuses = [harness.run(what, store, log) for what in asked]
        noticed += statuses[0] == 1
        said = log.read_text()
        what = f"{way} {base.name}/{path}"
        allowed = ((0, 1), (0, 2), (0, 2), (0,))
        if any(status not in good for status, good in zip(statuses, allowed, strict=True)) or "Traceback" in said:
            wrong.append(f"{what}: statuses {statuses}: {said[-700:]}")
        elif mark.exists():
            wrong.append(f"{what}: its code was run")
        else:
            wrong += [f"{what}: {name}" for name in harness.differences(store, reference)]
    print(f"damage: {count} files of {len(kinds)} kinds, {noticed} noticed, {len(wrong)} wrong", flush=True)
    return wrong


def _kind(path: Path) -> str:
    """Name a file's kind: its place in the store and its name."""
    place = path.parts[1] if path.parts[0] == "artifacts" else "model" if len(path.parts) > 1 else "top"
    return f"{place}/{path.suffix if place in ('locks', 'logs') else path.name}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    harness.preload()
    with tempfile.TemporaryDirectory() as place:
        wrong = damaged(asked.files, Path(place), asked.seed)
    print("\n".join(wrong) or "each was noticed or harmless")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
