"""Work cut into jobs, some at once, stopped when time is up; the next call goes on. What the board scripts share."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

STOPPED = 75  # exit status where work is left: the same command goes on


@dataclass(frozen=True)
class Job:
    """One call of Python, over when it ends well."""

    name: str
    words: tuple[str, ...]  # after `python`
    after: tuple[str, ...] = ()  # jobs that make what this one uses

    @property
    def mark(self) -> str:
        """Name of the file that says this very call is done."""
        return f"{self.name}-{hashlib.sha256(' '.join(self.words).encode()).hexdigest()[:10]}.done"


def work(jobs: Sequence[Job], folder: Path, *, workers: int, minutes: float | None = None) -> tuple[int, int]:
    """Run what is not done yet, in order, as soon as what it needs is over; logs stand in `folder`.

    When time is up, or on SIGINT or SIGTERM, running jobs are told to stop, which lets robobench save what it has.

    Returns:
        How many jobs failed, and how many are left.
    """
    folder.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * minutes if minutes else float("inf")
    over = {job.name for job in jobs if (folder / job.mark).exists()}
    waiting, failed = [job for job in jobs if job.name not in over], 0
    running: list[tuple[Job, subprocess.Popen[bytes], float]] = []
    asked: list[int] = []
    before = {n: signal.signal(n, lambda number, _: asked.append(number)) for n in (signal.SIGINT, signal.SIGTERM)}
    print(f"{len(over)} of {len(jobs)} jobs are done", flush=True)
    while (waiting or running) and not asked and time.monotonic() < end:
        for job in [job for job in waiting if over.issuperset(job.after)][: workers - len(running)]:
            waiting.remove(job)
            with (folder / f"{job.name}.log").open("ab") as log:
                # A session of its own: Ctrl-C reaches this script only, and a job is told to stop once.
                process = subprocess.Popen([sys.executable, *job.words], stdout=log, stderr=log, start_new_session=True)
            running.append((job, process, time.monotonic()))
        for entry in [entry for entry in running if entry[1].poll() is not None]:
            running.remove(entry)
            job, process, begun = entry
            over.add(job.name)  # what builds on a failed job fails by itself, and says why
            if process.returncode == 0:
                (folder / job.mark).touch()
            failed += process.returncode != 0
            how = "done" if process.returncode == 0 else f"FAILED, see {folder / job.name}.log"
            print(f"{job.name}: {how} ({(time.monotonic() - begun) / 60:.1f} min)", flush=True)
        time.sleep(0.2)
    for _, process, _ in running:
        process.terminate()
    left = len(waiting)
    for job, process, _ in running:
        if process.wait() == 0:  # it was done before it could stop
            (folder / job.mark).touch()
        left += process.returncode != 0
        print(f"{job.name}: {'stopped' if process.returncode else 'done'}", flush=True)
    for number, handler in before.items():
        signal.signal(number, handler)
    return failed, left
