"""Starts and ends the processes of a run on several devices, through Lightning Fabric.

`--devices N` spawns N processes on this machine. torchrun starts the processes itself, on any number of machines that
share the store. torch is imported inside the functions only.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any, NoReturn

from robobench import errors
from robobench.errors import Interrupted, ProcessError, RequestError, RobobenchError

ERROR_GRACE_SECONDS = 3.0  # before a process reports that it lost another one, which may report the cause first


def torchrun_world_size() -> int:
    """Return the number of processes that torchrun started, this one included; 0 without torchrun."""
    return int(os.environ["WORLD_SIZE"]) if "TORCHELASTIC_RUN_ID" in os.environ else 0


def is_nonzero_rank() -> bool:
    """Return whether torchrun started this process with a rank above 0. Only rank 0 writes messages."""
    return torchrun_world_size() > 1 and os.environ["RANK"] != "0"


def resolve_device_count(requested: int, device: str) -> int:
    """Return the number of processes that share the work: those of torchrun, or `requested`.

    Raises:
        RequestError: so many devices are not available.
    """
    import torch

    from robobench.distributed import collectives

    if collectives.world_size() > 1:  # this is one of the processes
        return collectives.world_size()
    if requested < 1:
        raise RequestError(f"--devices must be at least 1, got {requested}")
    if torchrun_world_size() and requested not in (1, torchrun_world_size()):
        raise RequestError(
            f"--devices {requested}: torchrun started {torchrun_world_size()} processes; leave the flag out"
        )
    devices = max(requested, torchrun_world_size())
    if devices == 1:
        return 1
    if importlib.util.find_spec("lightning_fabric") is None:
        raise RequestError(
            f"{devices} devices need lightning-fabric; in a clone of robobench: uv sync --extra distributed, "
            "elsewhere: pip install lightning-fabric"
        )
    if hasattr(sys, "ps1"):
        raise RequestError(f"devices={devices} cannot start processes in an interactive session; write a script")
    if ":" in device:
        raise RequestError(f"--device {device} is one GPU; for {devices} GPUs use --device cuda")
    available = torch.cuda.device_count()
    if device == "cuda" and not torchrun_world_size() and devices > available:
        raise RequestError(f"--devices {devices}: only {available} CUDA devices are available")
    return devices


def run_under_torchrun(device: str, work: Callable[[str], Any]) -> Any:
    """Call `work` with the device of this process, which torchrun started.

    Raises:
        ProcessError: this process or another one failed.
    """
    from robobench.distributed import collectives, signals
    from robobench.distributed.fabric import make_fabric

    local_world_size = int(os.environ["LOCAL_WORLD_SIZE"])
    fabric = make_fabric(device, local_world_size, torchrun_world_size() // local_world_size, started=True)
    fabric.launch()
    try:
        with collectives.process_group(fabric), signals.defer_signals():
            return work(str(fabric.device))
    except collectives.PeerLost as err:
        raise ProcessError(str(err)) from None


def spawn_processes(device: str, devices: int, work: Callable[[str], Any]) -> None:
    """Call `work` with a device in each of `devices` new processes, and wait for all.

    Args:
        work: must be picklable.

    Raises:
        ProcessError: a process died; the others were stopped.
        Interrupted: a signal was received and forwarded; the processes saved their state and stopped.
        RobobenchError: as raised in a process.
    """
    from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

    from robobench.distributed import signals
    from robobench.distributed.fabric import make_fabric

    fabric = make_fabric(device, devices)
    with signals.forward_signals() as received:
        try:
            signum = fabric.launch(functools.partial(_run_spawned, work))
        except ProcessExitedException as err:
            signum = 0
            if not received:
                how = err.signal_name or f"exit status {err.exit_code}"
                raise ProcessError(
                    f"process {err.error_index} of {devices} died ({how}); the others were stopped; "
                    "rerun the same command to resume from the last checkpoint"
                ) from None
        except ProcessRaisedException as err:
            signum = 0
            if not received:
                _raise_original(err)
    if signum or received:
        raise Interrupted(received[0] if received else signum)


def _raise_original(err: Exception) -> NoReturn:
    """Raise the error of a spawned process again: one of robobench as its own type, any other with its traceback."""
    name, _, text = str(err).strip().splitlines()[-1].partition(": ")
    cls = getattr(errors, name.rpartition(".")[2], None)
    if cls is None:
        raise err
    raise cls(text) from None


def _run_spawned(work: Callable[[str], Any], fabric: Any) -> int:
    """Run `work` in a spawned process; return the signal that stopped all processes, or 0."""
    from robobench.distributed import collectives, signals

    os.setpgrp()  # Ctrl-C reaches the parent only, which forwards it; SIGINT here then means that the parent died
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    try:
        with (
            signals.handle_signals(verbose=fabric.global_rank == 0),
            signals.defer_signals(),
            collectives.process_group(fabric),
        ):
            work(str(fabric.device))
        return 0
    except Interrupted as err:
        return err.signum
    except collectives.PeerLost as err:
        if not err.local:
            time.sleep(ERROR_GRACE_SECONDS)
        raise ProcessError(str(err)) from None
    except RobobenchError as err:
        raise type(err)(" ".join(str(err).split())) from None
