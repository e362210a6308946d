"""Several processes at once on one store with overlapping grids: every artefact built once, rows as in series.

python tests/faults/four.py --rounds 3
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import harness

BOTH = ("--protocol", "both", "--set", "run.baseline_control=false")  # transfer examples are shared too
GRIDS = ("standard,at", "at,trades", "trades,mtard", "standard,mtard")


def at_once(place: Path, grids: tuple[str, ...] = GRIDS) -> list[str]:
    """Run the grids one after another and all at once; return what differs, and what was built twice."""
    commands = [["compare", "--defenses", grid, *harness.TINY, *BOTH] for grid in grids]
    statuses = [harness.run(command, place / "serial", place / "serial.log") for command in commands]
    logs = [place / f"{number}.log" for number in range(len(grids))]
    children = [harness.start(command, place / "shared", log) for command, log in zip(commands, logs, strict=True)]
    statuses += [harness.finish(pid) for pid in children]
    said = "\n".join(log.read_text() for log in logs)
    wrong = [f"statuses {statuses}: {said[-500:]}"] if any(statuses) else []
    built = Counter(line for line in said.splitlines() if ": training " in line)
    wrong += [f"{count} times '{line}'" for line, count in built.items() if count > 1]
    wrong += harness.differences(place / "shared", harness.contents(place / "serial"))
    kinds = ("transfer", "evaluations")
    for kind in kinds:
        folders = [{p.name for p in (place / s / "artifacts" / kind).iterdir()} for s in ("serial", "shared")]
        if folders[0] != folders[1]:
            wrong.append(f"{kind}: {folders[0] ^ folders[1]}")
    waits = said.count("waiting for process")
    print(f"at once: {len(grids)} processes, {len(built)} networks, {waits} waits, {len(wrong)} wrong", flush=True)
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    harness.preload()
    wrong = []
    for _ in range(asked.rounds):
        with tempfile.TemporaryDirectory() as place:
            wrong += at_once(Path(place))
    print("\n".join(wrong) or "nothing built twice")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
