"""Run robobench's command line in forked child processes: a run needs no imports, and can be killed or limited.

Run a script as `python tests/fault_injection/kill.py`. All files are written to a temporary folder.
"""

from __future__ import annotations

import functools
import io
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd

TIMES = [
    *("train_seconds", "total_train_seconds", "warmup_seconds", "train_cpu_seconds", "total_train_cpu_seconds"),
    *("peak_memory_bytes", "stage_memory"),
]
ITERATIVE = (
    *(
        "at",
        "trades",
        "iad",
        "mtard",
        "adaad",
        "mart",
        "hat",
        "lbgat",
        "ikl",
        "ard",
        "rslad",
        "absld",
        "saad",
        "igdm",
        "fat",
    ),
)
DEFENSES = (
    "standard",
    *ITERATIVE,
    "gaussian",
    "n-fgsm",
    "free-at",
    "gradalign",
    "fgsm-pgi",
    "liet",
    "rocl",
    "acl",
    "mimir",
    "macd",
)
TINY = (
    *("--threads", "1", "--device", "cpu", "--seed", "0", "--checkpoint-minutes", "0"),
    *("--epochs", "2", "--batch-size", "16", "--set", "run.train_images=64", "--set", "run.eval_batch_size=8"),
    *("--examples", "16", "--protocol", "white-box", "--attacks", "fgsm", "--eps", "0.1"),
)
MORE = {
    **{name: ("--set", f"{name}.inner_steps=2") for name in ITERATIVE},
    "rocl": ("--set", "rocl.head_epochs=2", "--set", "rocl.head_batch_size=16"),
    "acl": ("--set", "acl.tune_epochs=2", "--set", "acl.tune_batch_size=16", "--set", "acl.tune_inner_steps=2"),
    "mimir": ("--set", "mimir.pretrain_epochs=2", "--set", "mimir.pretrain_batch_size=16"),
    "macd": (
        *("--set", "macd.mae_epochs=2", "--set", "macd.feature_epochs=2", "--set", "macd.static_steps=4"),
        *("--set", "macd.encoder_depth=2", "--set", "macd.decoder_depth=1"),
    ),
}


def command(defense: str) -> list[str]:
    """Return a minimal `run` command of a defense."""
    return ["run", "--defense", defense, *TINY, *MORE.get(defense, ())]


def preload() -> None:
    """Import and read everything a run needs, so that a child starts quickly. Creates no tensor before the fork."""
    import safetensors.torch
    import torch._dynamo  # the optimizers import it on first use

    import robobench.cli
    import robobench.data.digits
    import robobench.interface
    import robobench.report.comparison
    import robobench.report.export
    from robobench.plugins.discovery import discover, load_plugin

    for kind in ("defense", "attack"):
        for name in (name for name, found in discover(kind).items() if found.library is None):
            load_plugin(kind, name)
    digits = robobench.data.digits
    digits._read_scans = functools.cache(digits._read_scans)
    digits._read_scans()
    assert safetensors.torch and torch._dynamo and robobench.report.comparison and robobench.report.export


def start(arguments: list[str], out: Path, log: Path, before: Callable[[], None] = lambda: None) -> int:
    """Run a command line on a store in a forked child process; return its process ID."""
    pid = os.fork()
    if pid:
        return pid
    status = 70
    try:
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        sys.stdout, sys.stderr = (io.TextIOWrapper(os.fdopen(n, "wb", 0), write_through=True) for n in (1, 2))
        import torch

        torch.set_num_threads(1)
        from robobench.cli import main

        before()
        status = main([*arguments, "--out", str(out)])
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(status)


def finish(pid: int) -> int:
    """Wait for a child process; return its exit status, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def run(arguments: list[str], out: Path, log: Path, before: Callable[[], None] = lambda: None) -> int:
    """Run a command line in a child process; return its exit status."""
    return finish(start(arguments, out, log, before))


def kill_after(pid: int, seconds: float) -> bool:
    """Kill a child process after some seconds; return False if it ended before."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return False
        time.sleep(min(0.005, max(0.0, end - time.monotonic())))
    os.kill(pid, signal.SIGKILL)
    return True


def contents(store: Path) -> dict[str, object]:
    """Return everything in a store that must not depend on time: weights, configs, metrics, records, rows."""
    if not (store / "rows.csv").is_file():
        return {}
    found: dict[str, object] = {}
    for folder in sorted(p for p in store.iterdir() if (p / "artifact.json").is_file() and ".damaged-" not in p.name):
        for name in ("model.safetensors", "config.json", "metrics.csv"):
            found[f"{folder.name}/{name}"] = (folder / name).read_bytes()
    for folder in sorted((store / "artifacts" / "evaluations").iterdir()):
        if ".damaged-" not in folder.name and not folder.name.startswith("."):
            record = json.loads((folder / "record.json").read_text())
            found[folder.name] = {**record, "seconds": None, "commit": None}
    rows = pd.read_csv(store / "rows.csv").drop(
        columns=[*TIMES, "commit"]
    )  # the working tree may change during the test
    found["rows"] = rows.to_csv()
    return found


def differences(store: Path, reference: dict[str, object]) -> list[str]:
    """Return the names of contents that differ from the reference, and of leftover temporary files."""
    found = contents(store)
    different = [name for name in sorted(found.keys() | reference.keys()) if found.get(name) != reference.get(name)]
    leftover = [str(p) for p in store.rglob(".*") if p.name != ".rows.lock"]
    return different + leftover + [str(p) for p in (store / "artifacts").glob("checkpoints/*/*")]


def copy(store: Path, target: Path) -> Path:
    """Copy a store; an existing target is replaced."""
    shutil.rmtree(target, ignore_errors=True)
    return Path(shutil.copytree(store, target))
