"""Fill the disk at a random moment: the run fails with one line, and resumes when there is space.

Uses a small tmpfs if it can be mounted, else the system's limit on the size of a file.

    python tests/fault_injection/full_disk.py --times 20
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

import harness

ENOUGH_BYTES = 64 * 2**20


def mount_tmpfs(place: Path, size: int) -> bool:
    """Mount a tmpfs of `size` bytes; return False if that is not allowed."""
    place.mkdir(exist_ok=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], capture_output=True)
    return done.returncode == 0


def fill_disk(times: int, place: Path, seed: int = 0, defense: str = "macd", tmpfs: bool = True) -> list[str]:
    """Run with too little space, then with enough; return the problems found."""
    draw, problems = random.Random(seed), list[str]()
    arguments = harness.command(defense)
    if harness.run(arguments, place / "reference", place / "reference.log") != 0:
        return [f"the uninterrupted run failed: {(place / 'reference.log').read_text()[-500:]}"]
    reference = harness.contents(place / "reference")
    files = [p for p in (place / "reference").rglob("*") if p.is_file()]
    sizes = sorted(p.stat().st_size for p in files)
    refused = 0
    disk = place / "disk"
    mounted = tmpfs and mount_tmpfs(disk, ENOUGH_BYTES)
    try:
        for number in range(times):
            log = place / f"{number}.log"
            store = disk / "store"
            shutil.rmtree(store, ignore_errors=True)
            if mounted:
                size = draw.randint(4096, sum(sizes))
                subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], check=True)
                status = harness.run(arguments, store, log)
                subprocess.run(["mount", "-o", f"remount,size={ENOUGH_BYTES}", str(disk)], check=True)
            else:
                size = draw.randint(sizes[len(sizes) // 2], sizes[-1] - 1)
                limit = (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1])
                status = harness.run(
                    arguments, store, log, lambda limit=limit: resource.setrlimit(resource.RLIMIT_FSIZE, limit)
                )
            output = log.read_text()
            refused += status == 1
            if (
                status not in (0, 1)
                or "Traceback" in output
                or (status == 1 and "robobench: cannot write" not in output)
            ):
                problems.append(f"with {size} bytes: status {status}: {output[-500:]}")
            before = {p: p.read_bytes() for p in store.glob("*/model.safetensors")}
            if harness.run(arguments, store, log) != 0:
                problems.append(f"with enough space after {size} bytes: {log.read_text()[-500:]}")
                continue
            problems += [f"{p.parent.name} was written twice" for p, was in before.items() if p.read_bytes() != was]
            problems += [f"after {size} bytes: {name}" for name in harness.differences(store, reference)]
    finally:
        if mounted:
            subprocess.run(["umount", str(disk)], check=True)
    how = "a full tmpfs" if mounted else "a limit on the file size"
    print(f"full disk: {refused} of {times} runs stopped by {how}, {len(problems)} problems", flush=True)
    return problems


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", action="store_true", help="always use the limit on the file size")
    args = parser.parse_args()
    harness.preload()
    with tempfile.TemporaryDirectory() as place:
        problems = fill_disk(args.times, Path(place), args.seed, tmpfs=not args.limit)
    print("\n".join(problems) or "no problems")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
