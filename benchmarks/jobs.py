"""What the benchmarks share: jobs that can be stopped and resumed, and the check of a claim."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

STOPPED = 75  # exit status if jobs are left; the same command resumes


@dataclass(frozen=True)
class Job:
    """One call of Python. It is done once it has exited with status 0."""

    name: str
    words: tuple[str, ...]  # after `python`
    after: tuple[str, ...] = ()  # names of the jobs it depends on

    @property
    def mark(self) -> str:
        """Name of the file that marks this call as done."""
        return f"{self.name}-{hashlib.sha256(' '.join(self.words).encode()).hexdigest()[:10]}.done"


def run_jobs(jobs: Sequence[Job], folder: Path, *, workers: int, minutes: float | None = None) -> tuple[int, int]:
    """Run the jobs that are not done, in order, each once its dependencies are over. Logs are written to `folder`.

    After `minutes`, or on SIGINT or SIGTERM, running jobs get SIGTERM, on which robobench saves its work.

    Returns:
        Number of failed jobs and number of jobs left.
    """
    folder.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * minutes if minutes else float("inf")
    over = {job.name for job in jobs if (folder / job.mark).exists()}
    waiting, failed = [job for job in jobs if job.name not in over], 0
    running: list[tuple[Job, subprocess.Popen[bytes], float]] = []
    stop_signals: list[int] = []
    before = {
        n: signal.signal(n, lambda number, _: stop_signals.append(number)) for n in (signal.SIGINT, signal.SIGTERM)
    }
    print(f"{len(over)} of {len(jobs)} jobs are done", flush=True)
    while (waiting or running) and not stop_signals and time.monotonic() < end:
        for job in [job for job in waiting if over.issuperset(job.after)][: workers - len(running)]:
            waiting.remove(job)
            with (folder / f"{job.name}.log").open("ab") as log:
                # In a session of its own, so that Ctrl-C reaches this script only and a job gets one signal.
                process = subprocess.Popen([sys.executable, *job.words], stdout=log, stderr=log, start_new_session=True)
            running.append((job, process, time.monotonic()))
        for entry in [entry for entry in running if entry[1].poll() is not None]:
            running.remove(entry)
            job, process, begun = entry
            over.add(job.name)  # jobs that depend on a failed one fail themselves, with the reason
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
        if process.wait() == 0:  # it finished before the signal
            (folder / job.mark).touch()
        left += process.returncode != 0
        print(f"{job.name}: {'stopped' if process.returncode else 'done'}", flush=True)
    for number, handler in before.items():
        signal.signal(number, handler)
    return failed, left


def check_claim(claim: str, value: float, sign: str, target: float, fair: bool = True) -> str:
    """Return a line that says whether a value meets its target; `fair` is whether this setting can show it."""
    met = value >= target if sign == ">=" else value <= target
    word = ("met" if met else "NOT MET") if fair else "not judged (another setting)"
    return f"- {claim}: {value:.2f}, target {sign} {target:.3g}: {word}"
