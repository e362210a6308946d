"""A short form of every fault injection script, for the test suite: a few faults of each kind in one process."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import concurrent_writers
import corruption
import full_disk
import fuzz_cli
import harness
import kill


def main() -> int:
    harness.preload()
    problems = fuzz_cli.fuzz(20)
    scripts = (
        lambda place: kill.kill_repeatedly("standard", 3, place),
        lambda place: full_disk.fill_disk(1, place, defense="standard", tmpfs=False),
        lambda place: concurrent_writers.run_concurrently(place, ("standard", "standard,at")),
        lambda place: corruption.damage_files(2, place, command=harness.command("standard")),
    )
    for script in scripts:
        with tempfile.TemporaryDirectory() as place:
            problems += script(Path(place))
    print("\n".join(problems))
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
