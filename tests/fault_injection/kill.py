"""SIGKILL at random moments: the finished store equals one that was never interrupted, times aside.

python tests/faults/kill.py --kills 50
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import harness

AUTOATTACK = (
    *("--attacks", "autoattack", "--eps", "0.05", "--examples", "24", "--set", "autoattack.steps=10"),
    *("--set", "autoattack.attacks=apgd-ce,apgd-t", "--set", "autoattack.targets=2"),
)
KINDS = (*harness.DEFENSES, "autoattack")


def kill_often(kind: str, kills: int, place: Path, seed: int = 0) -> list[str]:
    """Kill a run `kills` times in all, restart it until it ends, again and again; return what came out wrong."""
    draw = random.Random(f"{kind} {seed}")
    arguments = harness.command("standard" if kind == "autoattack" else kind)
    if kind == "autoattack":
        arguments += AUTOATTACK
    log, wrong = place / f"{kind}.log", list[str]()
    begun = time.monotonic()
    if harness.run(arguments, place / "reference", log) != 0:
        return [f"{kind}: the uninterrupted run failed: {log.read_text()[-500:]}"]
    whole = time.monotonic() - begun
    reference = harness.contents(place / "reference")
    done = runs = 0
    while done < kills:
        store = place / "store"
        shutil.rmtree(store, ignore_errors=True)
        status = None
        while status is None:
            pid = harness.start(arguments, store, log)
            killed = done < kills and harness.kill_after(pid, draw.uniform(0, whole))
            status = harness.finish(pid)
            if killed:
                done, status = done + 1, None
        runs += 1
        if status != 0:
            wrong.append(f"{kind}: status {status}: {log.read_text()[-500:]}")
        else:
            wrong += [f"{kind}: {name}" for name in harness.differences(store, reference)]
        if wrong:
            break
    said = log.read_text()
    print(
        f"{kind}: {done} kills over {runs} runs of {whole:.1f} s, {said.count('goes on from')} resumed inside a stage, "
        f"{len(wrong)} differences; {time.monotonic() - begun:.0f} s",
        flush=True,
    )
    if "Traceback" in said:
        wrong.append(f"{kind}: a traceback in {log}")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--only", default=",".join(KINDS))
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    harness.preload()
    wrong = []
    for kind in asked.only.split(","):
        with tempfile.TemporaryDirectory() as place:
            wrong += kill_often(kind, asked.kills, Path(place), asked.seed)
    print("\n".join(wrong) or "nothing lost, nothing doubled")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
