"""The whole grid serially, on a local Ray, and on a local Ray while a worker is killed: equal rows, less time.

    python benchmarks/ray_grid.py [--out DIR] [COMPARE'S FLAGS]

Without flags: all nine defenses, four attacks, digits, cnn, the quick preset; each task on one thread, as many at
once as there are cores. The kill is a SIGKILL to the process of the training that is at work once a third of the
networks are trained. Exit status 1 where a line below the times does not hold.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd

TARGET = 0.65  # of the serial time, on two cores
TIMES = [  # the tree may change
    *("train_seconds", "total_train_seconds", "train_cpu_seconds", "total_train_cpu_seconds", "warmup_seconds"),
    *("peak_memory_bytes", "stage_memory", "commit"),
]


class Watch:
    """Looks at a store from outside while a command works in it."""

    def __init__(self, store: Path, networks: int, kill: bool) -> None:
        self.store, self.networks, self.kill = store, networks, kill
        self.built: dict[Path, set[int]] = {}  # artefact -> files seen under its name
        self.killed: int | None = None  # process

    def look(self) -> None:
        """Note which artefacts are there; kill once, where that is asked."""
        for pattern in ("*", "artifacts/evaluations/*", "artifacts/transfer/*", "artifacts/stages/*"):
            for path in self.store.glob(f"{pattern}/artifact.json"):
                if not path.parent.name.startswith("."):
                    self.built.setdefault(path, set()).add(path.stat().st_ino)
        trained = len(list(self.store.glob("*/artifact.json")))
        if self.kill and self.killed is None and 3 * trained >= self.networks:
            for owner in self.store.glob("artifacts/locks/model-*.owner"):
                pid = int(owner.read_text().split()[1])
                os.kill(pid, signal.SIGKILL)
                self.killed = pid
                break

    @property
    def twice(self) -> list[Path]:
        """Artefacts that were built more than once."""
        return [path for path, files in self.built.items() if len(files) > 1]


def compare(out: Path, flags: list[str], look: Callable[[], None] = lambda: None) -> float:
    """Run `robobench compare` into an empty store; return its seconds."""
    command = [sys.executable, "-m", "robobench", "compare", "--threads", "1", "--quiet", "--out", str(out), *flags]
    begun = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it was there a moment ago
                look()
            time.sleep(0.2)
    if process.returncode:
        sys.exit(f"{' '.join(command)}: exit status {process.returncode}")
    return time.monotonic() - begun


def rows(out: Path) -> str:
    """A store's rows without what may differ between two runs."""
    return pd.read_csv(out / "rows.csv").drop(columns=TIMES).to_csv(index=False)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="an empty folder for the three stores; else a temporary one")
    chosen, flags = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as temporary:
        place = chosen.out or Path(temporary)
        print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before the start", flush=True)
        serial = compare(place / "serial", flags)
        expected = rows(place / "serial")
        networks = len(list((place / "serial").glob("*/artifact.json")))
        print(f"serial: {serial:.1f} s, {networks} networks, {expected.count(chr(10)) - 1} rows", flush=True)
        held: dict[str, bool] = {}
        for name in ("ray", "killed"):
            watch = Watch(place / name, networks, name == "killed")
            seconds = compare(place / name, [*flags, "--executor", "ray"], watch.look)
            watch.look()
            print(
                f"{name}: {seconds:.1f} s, {seconds / serial:.2f} of serial, {len(watch.built)} artefacts", flush=True
            )
            held[f"{name}: rows equal to the serial ones"] = rows(place / name) == expected
            held[f"{name}: nothing built twice"] = not watch.twice
            if name == "ray":
                held[f"ray: at most {TARGET} of the serial time"] = seconds <= TARGET * serial
            else:
                held[f"killed: a worker was killed (process {watch.killed})"] = watch.killed is not None
    for line, holds in held.items():
        print(f"{'holds' if holds else 'FAILS'}  {line}")
    return int(not all(held.values()))


if __name__ == "__main__":
    sys.exit(main())
