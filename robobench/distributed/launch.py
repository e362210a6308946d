"""Starts the processes of one run over several devices through Lightning Fabric, and ends them together.

`--devices N` spawns N processes on this machine; under torchrun the processes are there already, on any number of
machines that see the same store. No torch is imported here before it is needed.
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
from robobench.errors import ProcessError, RequestError, RobobenchError

ERROR_GRACE_SECONDS = 3.0  # seconds that a process waits before it says that it lost another, which may say why


def torchrun_world_size() -> int:
    """Return the number of processes that torchrun started this one among; 0 without it."""
    return int(os.environ["WORLD_SIZE"]) if "TORCHELASTIC_RUN_ID" in os.environ else 0


def is_nonzero_rank() -> bool:
    """Say whether torchrun started this process to follow another, which alone speaks."""
    return torchrun_world_size() > 1 and os.environ["RANK"] != "0"


def resolve_device_count(asked: int, device: str) -> int:
    """Return how many processes share the work: those that torchrun started, or as many as `asked` for.

    Raises:
        RequestError: they cannot be had.
    """
    import torch

    from robobench.distributed import collectives

    if collectives.world_size() > 1:  # this is one of them
        return collectives.world_size()
    if asked < 1:
        raise RequestError(f"--devices must be at least 1, got {asked}")
    if torchrun_world_size() and asked not in (1, torchrun_world_size()):
        raise RequestError(f"--devices {asked}: torchrun started {torchrun_world_size()} processes; leave the flag out")
    wanted = max(asked, torchrun_world_size())
    if wanted == 1:
        return 1
    if importlib.util.find_spec("lightning_fabric") is None:
        raise RequestError(f"{wanted} devices need lightning-fabric: pip install 'robobench[distributed]'")
    if hasattr(sys, "ps1"):
        raise RequestError(f"devices={wanted} starts processes, which an interactive session cannot; write a script")
    if ":" in device:
        raise RequestError(f"--device {device} is one GPU; for {wanted} of them write --device cuda")
    here = torch.cuda.device_count()
    if device == "cuda" and not torchrun_world_size() and wanted > here:
        raise RequestError(f"--devices {wanted}: there are {here} CUDA devices here")
    return wanted


def run_under_torchrun(device: str, work: Callable[[str], Any]) -> Any:
    """Do `work` as one of the processes that torchrun started; it is given this process's device.

    Raises:
        ProcessError: this process cannot keep step with the others.
    """
    from robobench.distributed import collectives, signals
    from robobench.distributed.fabric import make_fabric

    here = int(os.environ["LOCAL_WORLD_SIZE"])
    fabric = make_fabric(device, here, torchrun_world_size() // here, started=True)
    fabric.launch()
    try:
        with collectives.process_group(fabric), signals.defer_signals():
            return work(str(fabric.device))
    except collectives.PeerLost as err:
        raise ProcessError(str(err)) from None


def spawn_processes(device: str, devices: int, work: Callable[[str], Any]) -> None:
    """Do `work`, which must be picklable, in so many new processes, each given its device; wait for all.

    Raises:
        ProcessError: one of them died; the others were ended.
        Interrupted: a signal came and was passed on to them; they saved and left.
        RobobenchError: as raised in them.
    """
    from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

    from robobench.distributed import signals
    from robobench.distributed.fabric import make_fabric
    from robobench.errors import Interrupted

    fabric = make_fabric(device, devices)
    with signals.forward_signals() as came:
        try:
            signum = fabric.launch(functools.partial(_in_process, work))
        except ProcessExitedException as err:
            signum = 0
            if not came:
                how = err.signal_name or f"exit status {err.exit_code}"
                raise ProcessError(
                    f"process {err.error_index} of {devices} died ({how}) and the others were ended; "
                    "the same command goes on from the last save"
                ) from None
        except ProcessRaisedException as err:
            signum = 0
            if not came:
                _raise_as_said(err)
    if signum or came:
        raise Interrupted(came[0] if came else signum)


def _raise_as_said(err: Exception) -> NoReturn:
    """Raise one of our own errors again as a process raised it; anything else with its traceback."""
    name, _, text = str(err).strip().splitlines()[-1].partition(": ")
    cls = getattr(errors, name.rpartition(".")[2], None)
    if cls is None:
        raise err
    raise cls(text) from None


def _in_process(work: Callable[[str], Any], fabric: Any) -> int:
    """Be one of the spawned processes; returns the signal that made all of them leave, or 0."""
    from robobench.distributed import collectives, signals
    from robobench.errors import Interrupted

    os.setpgrp()  # a Ctrl-C reaches the parent alone, which passes it on once; SIGINT then means that the parent died
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    try:
        with (
            signals.handle_signals(speaks=fabric.global_rank == 0),
            signals.defer_signals(),
            collectives.process_group(fabric),
        ):
            work(str(fabric.device))
        return 0
    except Interrupted as err:
        return err.signum
    except collectives.PeerLost as err:
        if not err.own:
            time.sleep(ERROR_GRACE_SECONDS)
        raise ProcessError(str(err)) from None
    except RobobenchError as err:
        raise type(err)(" ".join(str(err).split())) from None
