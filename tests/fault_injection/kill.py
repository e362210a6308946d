"""Kill a run at random moments: the finished store must equal that of an uninterrupted run, except for times.

python tests/fault_injection/kill.py --kills 50
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

import harness

AUTOATTACK = (
    *("--attacks", "autoattack", "--eps", "0.05", "--examples", "24", "--set", "autoattack.steps=10"),
    *("--set", "autoattack.attacks=apgd-ce,apgd-t", "--set", "autoattack.targets=2"),
)
KINDS = (*harness.DEFENSES, "autoattack")


def kill_repeatedly(kind: str, kills: int, place: Path, seed: int = 0) -> list[str]:
    """Kill and resume runs, `kills` kills in total; return the problems found."""
    draw = random.Random(f"{kind} {seed}")
    arguments = harness.command("standard" if kind == "autoattack" else kind)
    if kind == "autoattack":
        arguments += AUTOATTACK
    log, problems = place / f"{kind}.log", list[str]()
    begun = time.monotonic()
    if harness.run(arguments, place / "reference", log) != 0:
        return [f"{kind}: the uninterrupted run failed: {log.read_text()[-500:]}"]
    full_seconds = time.monotonic() - begun
    reference = harness.contents(place / "reference")
    done = runs = 0
    while done < kills:
        store = place / "store"
        shutil.rmtree(store, ignore_errors=True)
        status = None
        while status is None:
            pid = harness.start(arguments, store, log)
            killed = done < kills and harness.kill_after(pid, draw.uniform(0, full_seconds))
            status = harness.finish(pid)
            if killed:
                done, status = done + 1, None
        runs += 1
        if status != 0:
            problems.append(f"{kind}: status {status}: {log.read_text()[-500:]}")
        else:
            problems += [f"{kind}: {name}" for name in harness.differences(store, reference)]
        if problems:
            break
    output = log.read_text()
    resumed = output.count(": resuming at")
    print(
        f"{kind}: {done} kills in {runs} runs of {full_seconds:.1f} s, {resumed} resumed in a stage, "
        f"{len(problems)} problems; {time.monotonic() - begun:.0f} s",
        flush=True,
    )
    if "Traceback" in output:
        problems.append(f"{kind}: traceback: {output[output.index('Traceback') :][:500]}")
    return problems


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--only", default=",".join(KINDS))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    harness.preload()
    problems = []
    for kind in args.only.split(","):
        with tempfile.TemporaryDirectory() as place:
            problems += kill_repeatedly(kind, args.kills, Path(place), args.seed)
    print("\n".join(problems) or "no problems")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
