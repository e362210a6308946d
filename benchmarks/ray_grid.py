"""Run a grid serially, on a local Ray or Slurm, and there while a worker is killed; compare rows and times.

    python benchmarks/ray_grid.py [--out DIR] [--executor slurm --slurm partition=NAME] [COMPARE'S FLAGS]
    benchmarks/slurm_node.sh FOLDER python benchmarks/ray_grid.py --executor slurm   # starts a Slurm on this machine

Without flags: all nine defenses, four attacks, digits, cnn, the quick preset. Each task uses one thread, and as many
run at once as there are cores. The worker is killed with SIGKILL during a training, once a third of the models are
trained. Exit status 1 if a line below the times is not met.
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
TIMES = [  # and other columns that differ between two runs; the commit may change meanwhile
    *("train_seconds", "total_train_seconds", "train_cpu_seconds", "total_train_cpu_seconds", "warmup_seconds"),
    *("peak_memory_bytes", "stage_memory", "commit"),
]


class StoreMonitor:
    """Observes a store while a command works in it.

    Args:
        models: number of models that the command trains.
        kill: kill the process of a training, once.
    """

    def __init__(self, store: Path, models: int, kill: bool) -> None:
        self.store, self.models, self.kill = store, models, kill
        self.built: dict[Path, set[int]] = {}  # manifest of an artifact -> inodes of the files seen under this name
        self.killed: int | None = None  # process id

    def poll(self) -> None:
        """Record which artifacts exist; kill a training if it is time."""
        for pattern in ("*", "artifacts/evaluations/*", "artifacts/transfer/*", "artifacts/stages/*"):
            for path in self.store.glob(f"{pattern}/artifact.json"):
                if not path.parent.name.startswith("."):
                    self.built.setdefault(path, set()).add(path.stat().st_ino)
        trained = len(list(self.store.glob("*/artifact.json")))
        if self.kill and self.killed is None and 3 * trained >= self.models:
            for owner in self.store.glob("artifacts/locks/model-*.owner"):
                pid = int(owner.read_text().split()[1])
                os.kill(pid, signal.SIGKILL)
                self.killed = pid
                break

    @property
    def built_twice(self) -> list[Path]:
        """Artifacts that were built more than once."""
        return [path for path, files in self.built.items() if len(files) > 1]


def compare(out: Path, flags: list[str], poll: Callable[[], None] = lambda: None) -> float:
    """Run `robobench compare` into an empty store, calling `poll` meanwhile; return the seconds."""
    command = [sys.executable, "-m", "robobench", "compare", "--threads", "1", "--quiet", "--out", str(out), *flags]
    begun = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # gone since it was listed
                poll()
            time.sleep(0.2)
    if process.returncode:
        sys.exit(f"{' '.join(command)}: exit status {process.returncode}")
    return time.monotonic() - begun


def comparable_rows(out: Path) -> str:
    """Return a store's rows without the columns that differ between two runs."""
    return pd.read_csv(out / "rows.csv").drop(columns=TIMES).to_csv(index=False)


def main() -> int:
    """Run three times and print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="an empty folder for the three stores; default: a temporary one")
    parser.add_argument("--executor", choices=("ray", "slurm"), default="ray")
    parser.add_argument("--slurm", action="append", default=[], help="options of sbatch, as for compare")
    options, flags = parser.parse_known_args()
    parallel = ["--executor", options.executor, *(word for text in options.slurm for word in ("--slurm", text))]
    with tempfile.TemporaryDirectory() as temporary:
        place = options.out or Path(temporary)
        print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before the start", flush=True)
        serial = compare(place / "serial", flags)
        expected = comparable_rows(place / "serial")
        models = len(list((place / "serial").glob("*/artifact.json")))
        print(f"serial: {serial:.1f} s, {models} models, {expected.count(chr(10)) - 1} rows", flush=True)
        met: dict[str, bool] = {}
        for name in (options.executor, "killed"):
            monitor = StoreMonitor(place / name, models, name == "killed")
            seconds = compare(place / name, [*flags, *parallel], monitor.poll)
            monitor.poll()
            print(
                f"{name}: {seconds:.1f} s, {seconds / serial:.2f} of serial, {len(monitor.built)} artifacts", flush=True
            )
            met[f"{name}: rows equal to the serial ones"] = comparable_rows(place / name) == expected
            met[f"{name}: nothing built twice"] = not monitor.built_twice
            if name == "ray":
                met[f"ray: at most {TARGET} of the serial time"] = seconds <= TARGET * serial
            elif name == "killed":
                met[f"killed: a worker was killed (process {monitor.killed})"] = monitor.killed is not None
    for line, is_met in met.items():
        print(f"{'met' if is_met else 'NOT MET'}: {line}")
    return int(not all(met.values()))


if __name__ == "__main__":
    sys.exit(main())
