"""A disk that is full at a random moment: one line, everything earlier intact, and on with more room.

On a small tmpfs where one can be mounted, else under the system's limit on a file's size.

    python tests/faults/disk.py --times 20
"""

from __future__ import annotations

import argparse
import random
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import harness

ROOM = 64 * 2**20


def mounted(place: Path, size: int) -> bool:
    """Mount a tmpfs of a size; False where that is not allowed."""
    place.mkdir(exist_ok=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], capture_output=True)
    return done.returncode == 0


def fill(times: int, place: Path, seed: int = 0, defense: str = "macd", tmpfs: bool = True) -> list[str]:
    """Run with too little room, then with enough; return what came out wrong."""
    draw, wrong = random.Random(seed), list[str]()
    arguments = harness.command(defense)
    if harness.run(arguments, place / "reference", place / "reference.log") != 0:
        return [f"the uninterrupted run failed: {(place / 'reference.log').read_text()[-500:]}"]
    reference = harness.contents(place / "reference")
    files = [p for p in (place / "reference").rglob("*") if p.is_file()]
    sizes = sorted(p.stat().st_size for p in files)
    refused = 0
    disk = place / "disk"
    real = tmpfs and mounted(disk, ROOM)
    try:
        for number in range(times):
            log = place / f"{number}.log"
            store = disk / "store"
            shutil.rmtree(store, ignore_errors=True)
            if real:
                room = draw.randint(4096, sum(sizes))
                subprocess.run(["mount", "-o", f"remount,size={room}", str(disk)], check=True)
                status = harness.run(arguments, store, log)
                subprocess.run(["mount", "-o", f"remount,size={ROOM}", str(disk)], check=True)
            else:
                room = draw.randint(sizes[len(sizes) // 2], sizes[-1] - 1)
                limit = (room, resource.getrlimit(resource.RLIMIT_FSIZE)[1])
                status = harness.run(
                    arguments, store, log, lambda limit=limit: resource.setrlimit(resource.RLIMIT_FSIZE, limit)
                )
            said = log.read_text()
            refused += status == 1
            if status not in (0, 1) or "Traceback" in said or (status == 1 and "robobench: cannot write" not in said):
                wrong.append(f"with {room} bytes: status {status}: {said[-500:]}")
            before = {p: p.read_bytes() for p in store.glob("*/model.safetensors")}
            if harness.run(arguments, store, log) != 0:
                wrong.append(f"with room again after {room} bytes: {log.read_text()[-500:]}")
                continue
            wrong += [f"{p.parent.name} was written twice" for p, was in before.items() if p.read_bytes() != was]
            wrong += [f"after {room} bytes: {name}" for name in harness.differences(store, reference)]
    finally:
        if real:
            subprocess.run(["umount", str(disk)], check=True)
    how = "a full tmpfs" if real else "a limit on a file's size"
    print(f"disk: {refused} of {times} runs refused by {how}, {len(wrong)} wrong", flush=True)
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", action="store_true", help="use the limit on a file's size in any case")
    asked = parser.parse_args()
    harness.preload()
    with tempfile.TemporaryDirectory() as place:
        wrong = fill(asked.times, Path(place), asked.seed, tmpfs=not asked.limit)
    print("\n".join(wrong) or "nothing lost")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
