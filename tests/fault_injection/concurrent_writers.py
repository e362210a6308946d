"""Run overlapping comparisons at once on one store: each artifact is built once, and rows equal those of serial runs.

python tests/fault_injection/concurrent_writers.py --rounds 3
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path

import harness

BOTH = ("--protocol", "both", "--set", "run.baseline_control=false")  # so that transfer examples are shared too
GRIDS = ("standard,at", "at,trades", "trades,mtard", "standard,mtard")


def run_concurrently(place: Path, grids: tuple[str, ...] = GRIDS) -> list[str]:
    """Run the comparisons one after another, then all at once; return differences and artifacts built twice."""
    commands = [["compare", "--defenses", grid, *harness.TINY, *BOTH] for grid in grids]
    statuses = [harness.run(command, place / "serial", place / "serial.log") for command in commands]
    logs = [place / f"{number}.log" for number in range(len(grids))]
    children = [harness.start(command, place / "shared", log) for command, log in zip(commands, logs, strict=True)]
    statuses += [harness.finish(pid) for pid in children]
    output = "\n".join(log.read_text() for log in logs)
    problems = [f"statuses {statuses}: {output[-500:]}"] if any(statuses) else []
    built = Counter(line for line in output.splitlines() if ": training " in line)
    problems += [f"{count} times '{line}'" for line, count in built.items() if count > 1]
    problems += harness.differences(place / "shared", harness.contents(place / "serial"))
    for kind in ("transfer", "evaluations"):
        folders = [{p.name for p in (place / s / "artifacts" / kind).iterdir()} for s in ("serial", "shared")]
        if folders[0] != folders[1]:
            problems.append(f"{kind}: {folders[0] ^ folders[1]}")
    waits = output.count("waiting for lock on")
    print(
        f"concurrent: {len(grids)} processes, {len(built)} models, {waits} waits, {len(problems)} problems", flush=True
    )
    return problems


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    harness.preload()
    problems = []
    for _ in range(args.rounds):
        with tempfile.TemporaryDirectory() as place:
            problems += run_concurrently(Path(place))
    print("\n".join(problems) or "no problems")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
